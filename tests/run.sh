#!/usr/bin/env bash
# All tests: those without Ray in two processes, then those with a Ray of two CPUs; WordNet comes from Debian's packages where apt can reach them.
set -euo pipefail
cd "$(dirname "$0")/.."
export NLTK_DATA="$PWD/.venv/nltk_data" OMP_NUM_THREADS=1
bash tests/fetch_wordnet.sh "$NLTK_DATA"
.venv/bin/python -m pytest -q --durations=15 -n 2 --dist loadscope -m "not ray" tests rlhfv_ray eval
.venv/bin/python -m pytest -q --durations=15 -m ray tests
