# The one list of verbs, for people, hooks and CI. `make help` prints it.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help install lock demo ui serve backup restore check fmt test test-k8s k8s-secrets push-images pin-images scan sbom model-data model-train model-evidence model-rollout bench audit clean secrets images up status logs down test-stack roll

help: ## Print this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

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
	cut_out worker serving features tracking pipelines monitoring models postgres s3 kubernetes signing
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

secrets: ## Make the stack's secrets, once, in infra/compose/secrets
	@$(PYTHON) infra/compose/make_secrets.py

images: ## Build the images: serving, worker, tools
	GIT_COMMIT=$$(git describe --always --abbrev=40 --dirty --exclude='*' 2>/dev/null || echo unknown) docker compose build

up: ## Start the whole stack with docker compose and say what is where
	@$(PYTHON) infra/compose/stack.py up

roll: ## Replace the prediction service's replicas one by one, without a failed request
	@$(PYTHON) infra/compose/stack.py roll

status: ## Say what of the stack is where and whether it is healthy
	@$(PYTHON) infra/compose/stack.py status

logs: ## Follow the stack's logs; SERVICE=name for one service
	@docker compose logs --follow --tail 100 $(SERVICE)

down: ## Stop the stack, also one that came up half; VOLUMES=1 removes its data too
	@$(PYTHON) infra/compose/stack.py down $(if $(VOLUMES),--volumes)

fmt: install ## Format and mend what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# On two cores the threads of BLAS and OpenMP fight each other: one each is several times faster.
test: install ## Run every test
	OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest

test-k8s: install ## Render every overlay, hold it to the API's schemas and the house's policy; CONTEXT=name applies it there
	KUBE_TEST_CONTEXT="$(CONTEXT)" $(BIN)/python -m pytest tests/k8s -ra

k8s-secrets: ## Hand the secrets that `make secrets` has made to a cluster: make k8s-secrets CONTEXT=name
	kubectl --context "$(CONTEXT)" create namespace trellis --dry-run=client -o yaml | kubectl --context "$(CONTEXT)" apply -f -
	kubectl --context "$(CONTEXT)" -n trellis create secret generic trellis --from-file=infra/compose/secrets \
	  --dry-run=client -o yaml | kubectl --context "$(CONTEXT)" apply -f -

push-images: ## Push the images of STACK_IMAGES and STACK_TAG; prints them by digest, as pin-images takes them
	@for image in serving worker tools; do docker push --quiet "$(STACK_IMAGES)/$$image:$(STACK_TAG)" >&2 || exit 1; done
	@printf 'pins='; for image in serving worker tools; do \
	  printf '%s=%s ' $$image "$$(docker image inspect --format '{{index .RepoDigests 0}}' "$(STACK_IMAGES)/$$image:$(STACK_TAG)")"; done; echo

pin-images: ## Name images by digest in the cluster overlay: make pin-images COMMIT=… IMAGES="serving=registry/x@sha256:… …"
	$(PYTHON) infra/k8s/pin_images.py --commit "$(COMMIT)" $(IMAGES)

scan: install ## Look for secrets in what is tracked; a find that is none goes into .secrets.baseline
	@mkdir -p dist && cp .secrets.baseline dist/secrets.baseline  # the hook brings line numbers up to date, and ends with 3
	git ls-files -z | xargs -0 sh -c '$(BIN)/detect-secrets-hook --baseline dist/secrets.baseline "$$@" || [ $$? = 3 ]' scan
	$(BIN)/zizmor --offline --quiet .github/workflows

sbom: install ## List what is installed and what each image holds, as CycloneDX, in dist/
	@mkdir -p dist
	$(BIN)/cyclonedx-py environment $(VENV) --pyproject pyproject.toml --mc-type application --of JSON -o dist/sbom.cdx.json
	@for image in serving worker tools; do \
	  $(BIN)/cyclonedx-py requirements infra/docker/$$image.lock --pyproject pyproject.toml --mc-type application --of JSON \
	    -o dist/sbom-$$image.cdx.json || exit 1; done

model-data: install ## Ingest, snapshot and validate a model's data: make model-data MODEL=name
	$(BIN)/trellis flow prepare "$(MODEL)"

model-train: install ## Train, check, gate and register a version; fails unless the gate promotes
	$(BIN)/trellis flow train "$(MODEL)"

model-evidence: install ## Take the latest gate decision again from its evidence and keep both in dist/evidence
	@mkdir -p dist/evidence
	$(BIN)/trellis decisions --model "$(MODEL)" --kind gate --json > dist/evidence/decisions.json
	$(BIN)/trellis explain gate --json > dist/evidence/gate.json
	$(BIN)/trellis rollout show "$(MODEL)" --json > dist/evidence/rollout.json

model-rollout: install ## Look at a model's rollout once and take the step that the evidence allows
	$(BIN)/trellis flow advance "$(MODEL)"
test-stack: install ## Bring the stack up from nothing, run the whole loop through it, kill every container under load
	STACK_TEST=1 $(BIN)/python -m pytest tests/stack -x -s

bench: install ## Run the benchmarks; they print ratios against the stock way and fail where a goal is missed; FULL=1: its sizes (hours)
	@for bench in tests/benchmarks/bench_*.py; do full=; \
	  if [ -n "$(FULL)" ] && grep -q -e '--full' $$bench; then full=--full; fi; echo "== $$bench $$full"; \
	  OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 $(BIN)/python $$bench $$full || exit 1; done

audit: install ## Known vulnerabilities and licences of the pinned dependencies
	$(BIN)/python infra/audit.py

clean: ## Remove what runs have written; .venv stays
	rm -rf var .bench dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
