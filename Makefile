# Everything runs in .venv, made from constraints.txt; nothing else is needed on a fresh machine with Python 3.11 or 3.12.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || echo python3)
BIN = .venv/bin
export RAY_USAGE_STATS_ENABLED = 0
export MLFLOW_DISABLE_TELEMETRY = true
# Ray starts many Pythons: without bytecode each of them would compile torch, transformers and the rest anew.
export PYTHONDONTWRITEBYTECODE =

.PHONY: demo test check unit soak bench clean

demo: .venv/ready
	$(BIN)/python experiments/ddpo.py shapes

test: .venv/dev-ready check
	bash tests/run.sh

unit: .venv/dev-ready
	$(BIN)/python -m pytest -q --durations=5 -n 2 --dist loadscope tests/unit rlhfv_ray eval

# Minutes of killed workers and actors, and four sweeps at a time on an MLflow server with PostgreSQL (Debian's package `postgresql`).
soak: .venv/dev-ready
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt -e ".[team]"
	$(BIN)/python -m pytest -q -s tests/ray/soak.py

# Speed on one CPU thread, about 10 minutes; leave the machine alone meanwhile.
bench: .venv/ready
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt -e ".[bench]"
	$(BIN)/python benchmarks/run.py --json runs/benchmarks.json --page docs/benchmarks/cpu.md

check: .venv/dev-ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/codespell
	bash tests/audit.sh

# torch first: deepspeed's build looks for it, and its CPU build is enough without a GPU.
.venv/ready: constraints.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt torch setuptools wheel
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt -e .
	touch $@

.venv/dev-ready: .venv/ready
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf runs .venv
