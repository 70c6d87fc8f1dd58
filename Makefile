# The one list of verbs, for people, hooks and CI. `make help` prints it.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help install lock demo ui serve backup restore check fmt test bench clean

help: ## Print this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

install: $(READY) ## Make .venv and install the pinned dependencies

# uv where it is, pip elsewhere; uv does not read pip's configured find-links, so they are handed over.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Trellis needs Python 3.11 or newer; set PYTHON=python3.x")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@if command -v uv >/dev/null; then \
	  links=$$($(BIN)/python -m pip config get global.find-links 2>/dev/null || true); \
	  uv pip install --quiet --python $(BIN)/python $${links:+--find-links "$$links"} --compile-bytecode -r requirements.lock && \
	  uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e . ; \
	else \
	  PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pip install --quiet --disable-pip-version-check --compile -r requirements.lock && \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e . ; \
	fi
	@touch $(READY)

COMPILE = uv pip compile pyproject.toml --quiet --no-emit-index-url --no-emit-find-links --no-header --no-annotate \
  $$(links=$$($(PYTHON) -m pip config get global.find-links 2>/dev/null) && echo "--find-links $$links")

# torch is looked up anew each time: its pin here names the plain release, which would bring the CUDA libraries along.
lock: ## Bring requirements.lock, and the images' parts of it, in step with pyproject.toml (needs uv); UPGRADE=1 moves every pin to its newest release
	$(COMPILE) --all-extras --group dev $(if $(UPGRADE),--upgrade,--upgrade-package torch) -o requirements.lock >/dev/null
	@cut_out() { out=$$1; shift; $(COMPILE) $${@/#/--extra=} -c requirements.lock --upgrade -o infra/docker/$$out.lock >/dev/null; }; \
	cut_out serving serving features postgres signing && \
	cut_out tools tracking pipelines monitoring postgres s3 && \
	cut_out worker features tracking pipelines monitoring models postgres s3 signing
	@sed -i.bak 's/+cpu$$//' requirements.lock infra/docker/*.lock && rm requirements.lock.bak infra/docker/*.bak

demo: install ## Run the main job on the flights of 2013: train, serve, challenge, roll back, drift, retrain
	$(BIN)/trellis demo

ui: install ## Open the pages of the last demo: the models' own, MLflow, Evidently, the service's API
	$(BIN)/trellis ui

serve: install ## Serve the models that have a rollout plan
	$(BIN)/trellis serve

backup: install ## Save everything while it runs: make backup TO=DIRECTORY
	$(BIN)/trellis backup "$(TO)"

restore: install ## Bring a backup back into an empty home: make restore FROM=DIRECTORY
	$(BIN)/trellis restore "$(FROM)"

check: install ## Lint, types and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fmt: install ## Format and mend what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# On two cores the threads of BLAS and OpenMP fight each other: one each is several times faster.
test: install ## Run every test
	OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest

bench: install ## Run the benchmarks; they print ratios against the stock way
	@for bench in tests/benchmarks/bench_*.py; do echo "== $$bench"; $(BIN)/python $$bench || exit 1; done

clean: ## Remove what runs have written; .venv stays
	rm -rf var .bench dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
