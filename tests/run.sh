#!/usr/bin/env bash
# All tests, in one run of pytest; WordNet comes from Debian's packages where apt can reach them.
set -euo pipefail
cd "$(dirname "$0")/.."
export NLTK_DATA="$PWD/.venv/nltk_data" OMP_NUM_THREADS=1
bash tests/fetch_wordnet.sh "$NLTK_DATA"
exec .venv/bin/python -m pytest -q --durations=15 tests rlhfv_ray eval "$@"
