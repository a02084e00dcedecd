# Two commands do everything on a fresh machine: `make demo` and `make test`. Another interpreter (3.11 or newer): make demo PYTHON=python3.12
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
DEMO   ?= demo
UV      = uv==0.13.8

# compiled once, not by every process of the tests
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test quick test-oldest test-kaggle gpu learn lab docs readme lock clean help
.DEFAULT_GOAL := help

help:            ## this list
	@grep -E '^[a-z-]+: .*##|^[a-z-]+: *##' Makefile | sed -E 's/:[^#]*## */\t/' | expand -t 14

demo: $(VENV)/ready  ## simulate a competition, train, predict, ensemble, report (into demo/)
	$(BIN)/hms-hbac demo --out $(DEMO)

test: $(VENV)/ready  ## sync check, then pytest: every notebook in its own process, the rules of the house, all else
	$(BIN)/python tools/check_sync.py
	@$(BIN)/python tools/test_versions.py --last
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder tests

quick: $(VENV)/ready ## sync check, lint, notebooks and tests of what changed; under 90 s
	$(BIN)/python tools/check_sync.py
	$(BIN)/python tools/check_house.py
	$(BIN)/ruff check -q
	$(BIN)/python tools/quick.py

test-oldest: $(VENV)/ready ## the package's tests and the rehearsal with the oldest versions that settings.ini allows
	$(BIN)/python tools/test_versions.py oldest

test-kaggle: $(VENV)/ready ## the same with the versions of Kaggle's image and of its next base
	$(BIN)/python tools/test_versions.py kaggle kaggle-next

gpu: $(VENV)/ready   ## on a machine with a GPU: all checks and speeds, resumable (into build/gpu/); elsewhere a dry run
	$(BIN)/python tools/gpu.py

learn: $(VENV)/ready ## every recipe at scale small on one fold, two seeds, two baselines; resumable, many hours (bench/learn.md)
	$(BIN)/python bench/learn.py --out bench/learn.md

lab: $(VENV)/ready   ## JupyterLab on the notebooks
	$(BIN)/jupyter lab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/nbs/index.ipynb

docs: $(VENV)/ready   ## the site: every notebook, an API page per module, links checked (into site/)
	$(BIN)/python tools/build_docs.py

readme: $(VENV)/ready  ## render README.md from nbs/index.ipynb
	$(BIN)/python tools/build_readme.py

lock: $(VENV)/ready  ## pin every version anew from requirements-dev.in
	$(BIN)/uv pip compile requirements-dev.in --universal --python-version 3.11 --no-header --no-annotate -o requirements-dev.txt

clean:           ## remove the environment and everything that was made
	rm -rf $(VENV) $(DEMO) build dist *.egg-info _proc _docs site .pytest_cache .hypothesis

# The environment: made once, remade when a pin changes. uv installs in seconds; where it cannot, pip does the same slowly.
$(VENV)/ready: requirements-dev.txt setup.py settings.ini
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "hms_hbac needs Python 3.11 or newer to develop: make PYTHON=python3.12")'
	@echo "Setting up $(VENV) (once; about 6 GB with CUDA libraries)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q $(UV) || true
	@if ! $(BIN)/uv pip install -p $(BIN)/python -q -r requirements-dev.txt; then $(BIN)/python -m pip install -r requirements-dev.txt; fi
	@$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e .
	@printf '#!/bin/sh\nexec "%s" "%s" "$$@"\n' "$(abspath $(BIN)/python)" "$(abspath tools/quarto.py)" > $(BIN)/quarto
	@chmod +x $(BIN)/quarto
	@touch $@
