#!/usr/bin/env bash
# All tests. Those with a Ray of two CPUs wait for processes most of the time, so the others run beside them, politely; WordNet comes from
# Debian's packages where apt can reach them.
set -euo pipefail
cd "$(dirname "$0")/.."
export NLTK_DATA="$PWD/.venv/nltk_data" OMP_NUM_THREADS=1
bash tests/fetch_wordnet.sh "$NLTK_DATA"
nice .venv/bin/python -m pytest -q --durations=15 -m "not ray" tests rlhfv_ray eval > .venv/tests.log 2>&1 &
others=$!
status=0
.venv/bin/python -m pytest -q --durations=15 -m ray tests || status=$?
wait $others || status=$?
cat .venv/tests.log
exit $status
