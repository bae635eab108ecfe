#!/usr/bin/env bash
# Runs all tests, in two processes at a time. Tests with Ray mostly wait for processes, so the others
# run beside them at low priority. These end in about half the time, and those that are marked
# `aside` follow them. WordNet comes from Debian's packages where apt can reach them.
set -euo pipefail
cd "$(dirname "$0")/.."
export NLTK_DATA="$PWD/.venv/nltk_data" OMP_NUM_THREADS=1
bash tests/fetch_wordnet.sh "$NLTK_DATA"

beside() {
    local failed=0
    nice .venv/bin/python -m pytest -q --durations=15 -m "not soak" \
        --ignore=tests/ray tests rlhfv_ray eval || failed=$?
    .venv/bin/python -m pytest -q --durations=15 -m "aside and not soak" tests/ray || failed=$?
    return $failed
}

beside > .venv/tests.log 2>&1 &
others=$!
status=0
.venv/bin/python -m pytest -q --durations=15 -m "not aside and not soak" tests/ray || status=$?
wait $others || status=$?
cat .venv/tests.log
exit $status
