# Everything runs in .venv, made from constraints.txt. A fresh machine needs Python 3.11 or 3.12.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || echo python3)
BIN = .venv/bin
export RAY_USAGE_STATS_ENABLED = 0
export MLFLOW_DISABLE_TELEMETRY = true
# Ray starts many Python processes. Bytecode saves each of them from compiling torch again.
export PYTHONDONTWRITEBYTECODE =

.PHONY: demo test check image unit soak models walk bench docs clean

demo: .venv/ready
	$(BIN)/python experiments/ddpo.py shapes --controls permuted blank

test: .venv/dev-ready check
	bash tests/run.sh

unit: .venv/dev-ready
	$(BIN)/python -m pytest -q --durations=5 -n 2 --dist loadscope -m "not slow and not soak" \
	    tests/unit rlhfv_ray eval

# Kills workers and actors for minutes, lets drivers race for leases, runs four sweeps at a time on
# one MLflow server, and damages every file of every stage in turn, which takes about an hour.
# The server needs PostgreSQL (Debian's package `postgresql`).
soak: .venv/dev-ready
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt -e ".[team]"
	$(BIN)/python -m pytest -q -s tests/ray/soak.py
	$(BIN)/python -m pytest -q -m soak tests
	$(BIN)/python -m tests.ray.stage_mutation

# Tries small checkpoints of many architectures, and writes docs/models.md.
# torchvision fits torch's build with CUDA ("===" leaves out the CPU build): an environment of its
# own, of several GB, which needs no GPU.
models:
	test -x .venv-vision/bin/python || $(PYTHON) -m venv .venv-vision
	.venv-vision/bin/python -m pip install -q --no-compile -c constraints.txt \
	    torch===2.13.0 setuptools wheel
	.venv-vision/bin/python -m pip install -q --no-compile -c constraints.txt -e ".[dev,vision]"
	.venv-vision/bin/python -m tests.model_table

# Types every command of the README, in a fresh clone.
walk: .venv/dev-ready
	$(BIN)/python -m tests.walk

# Measures speed on one CPU thread in about 25 minutes. Run nothing else meanwhile: rows are void
# where other processes use more than a tenth of a core.
bench: .venv/ready
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt -e ".[bench]"
	$(BIN)/python benchmarks/run.py --json runs/benchmarks.json --page docs/benchmarks/cpu.md

# Builds the pages into site/, and fails for a page, a link or a function that is not there.
docs: .venv/ready
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build  # a notice of its authors on its successor

check: .venv/dev-ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/codespell
	$(BIN)/hadolint deploy/Dockerfile
	bash tests/audit.sh

# The image of all clusters, of several GB.
image:
	docker build -f deploy/Dockerfile -t rlhfv-ray .

# torch comes first, because deepspeed's build looks for it. Without a GPU, its CPU build suffices.
.venv/ready: constraints.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt torch setuptools wheel
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt -e .
	touch $@

.venv/dev-ready: .venv/ready
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf runs site .venv .venv-vision
