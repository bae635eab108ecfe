#!/usr/bin/env bash
# Runs all tests. Tests with Ray mostly wait for processes, so the others run beside them at low
# priority. WordNet comes from Debian's packages where apt can reach them.
set -euo pipefail
cd "$(dirname "$0")/.."
export NLTK_DATA="$PWD/.venv/nltk_data" OMP_NUM_THREADS=1
bash tests/fetch_wordnet.sh "$NLTK_DATA"
nice .venv/bin/python -m pytest -q --durations=15 -m "not ray and not soak" tests rlhfv_ray eval \
    > .venv/tests.log 2>&1 &
others=$!
status=0
.venv/bin/python -m pytest -q --durations=15 -m "ray and not soak" tests || status=$?
wait $others || status=$?
cat .venv/tests.log
exit $status
