# Everything from nothing but Python 3.11 and pip. The first target that needs it makes .venv.
#
#   make demo     train, prove, compare on the embedded data; opens nothing, prints where the report is
#   make test     lint, then all tests but the slow ones
#   make test-slow  all tests, with property tests on new random examples
#   make lowest   the fast tests with the lowest versions that pyproject.toml allows, torch aside
#   make mutants  which small changes of the code no test notices
#
# TORCH is what pip installs as torch, e.g. make test TORCH="torch==2.13.0".

PYTHON ?= python3
TORCH ?= torch
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
REPORT := demo-report
LOWEST := .venv-lowest
FAST := tests/house tests/plot tests/report tests/problem tests/graph tests/constants tests/activations tests/norms tests/layers tests/files tests/cli tests/verifiers/test_lipsdp_fast.py tests/adapters/sdp/test_lipsdp.py tests/adapters/milp tests/adapters/onnx/test_roundtrip.py

.PHONY: demo test lint format test-slow mutants lowest bench docs clean

demo: $(READY)
	$(BIN)/lipbridge study run demo --out $(REPORT)
	@echo "Open $(REPORT)/report.html"

test: lint
	$(BIN)/python -m pytest -n $(WORKERS) -m "not slow"

lint: $(READY) docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test-slow: $(READY)
	LIPBRIDGE_EXPLORE=1 $(BIN)/python -m pytest -n $(WORKERS)

mutants: $(READY)
	$(BIN)/python -m tests.mutants --jobs $(WORKERS)

lowest:
	$(PYTHON) -m venv $(LOWEST)
	$(PYTHON) tests/lowest.py sdp onnx milp report frames test > $(LOWEST)/lowest.txt
	$(LOWEST)/bin/pip install --quiet --disable-pip-version-check "$(TORCH)" -r $(LOWEST)/lowest.txt -e .
	$(LOWEST)/bin/python -m pytest -n $(WORKERS) -m "not slow" $(FAST)

bench: $(READY)
	$(BIN)/python -m benchmarks.spine

docs: $(READY)
	$(BIN)/mkdocs build --strict --quiet --config-file docs/mkdocs.yml

clean:
	rm -rf $(VENV) $(LOWEST) $(REPORT) site

# auto-LiRPA's own pins exclude every current torch, so it is installed without its dependencies; the extra `lirpa`
# has the few that it imports.
$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "lipbridge needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check "$(TORCH)" -e ".[all,dev]"
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps "auto-LiRPA==0.3"
	touch $(READY)
