# teachwafer: what people type. `make help` lists it.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(shell command -v $(name))))
VENV ?= .venv
BIN := $(VENV)/bin
CONSTRAINTS := constraints/cpu.txt
STAMP := $(VENV)/.installed
TEST_STAMP := $(VENV)/.installed-test
SOURCES := services gateway hatch_build.py tests
TESTS ?= tests

.PHONY: help
help: ## List the commands
	@grep -hE '^[a-z][a-z-]*:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-18s %s\n", $$1, $$2}'

.PHONY: run
run: $(STAMP) ## Start everything and open the portal on http://127.0.0.1:8080
	$(BIN)/teachwafer serve

.PHONY: demo
demo: $(STAMP) ## Do the main job once without a browser: wafers, generate, train, publish, classify
	$(BIN)/teachwafer demo

.PHONY: test
test: $(TEST_STAMP) browser ## Run all tests
	$(BIN)/pytest $(TESTS)

.PHONY: verify
verify: $(TEST_STAMP) ## Check style, types, imports, protocol definitions and manifests, as the CI does
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(MAKE) --no-print-directory lint-protos

.PHONY: lint-protos
lint-protos: $(TEST_STAMP)
	@image=$$(mktemp --suffix=.binpb) && trap 'rm -f $$image' EXIT && \
	  $(BIN)/python hatch_build.py --image $$image && $(BIN)/buf lint $$image --config buf.yaml

.PHONY: format
format: $(TEST_STAMP) ## Format the code
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

.PHONY: protos
protos: $(TEST_STAMP) ## Generate the Python modules of protos/ anew
	$(BIN)/python hatch_build.py

.PHONY: bench
bench: $(TEST_STAMP) ## Measure side by side: serving, generating, training
	for file in tests/bench/[a-z]*.py; do echo "== $$file" && $(BIN)/python $$file || exit 1; done
	$(BIN)/python tests/bench/serving --peers ""

.PHONY: bench-serving
bench-serving: $(TEST_STAMP) ## Measure the predictor beside other model servers and write docs/bench (installs them into .venvs)
	$(BIN)/python tests/bench/serving --out docs/bench/serving.json

.PHONY: pretrain
pretrain: $(STAMP) ## Pretrain the shipped backbones anew (hours; continues where it was stopped)
	$(BIN)/python -m services.trainer.pretrain

.PHONY: pretrain-generator
pretrain-generator: $(STAMP) ## Pretrain the prior of the learned generator anew (minutes; continues where it was stopped)
	$(BIN)/python -m services.generator.pretrain

.PHONY: evaluate-protocols
evaluate-protocols: $(TEST_STAMP) ## Measure all protocols and write docs/quality, with wafers_dev.npz in TEACHWAFER_DATA, default ../shared/data (hours; goes on where it was stopped)
	$(BIN)/python tests/quality/rivals.py suite --wafers $(or $(TEACHWAFER_DATA),../shared/data)/wafers_dev.npz
	$(BIN)/python -m services.trainer.protocols suite --wafers $(or $(TEACHWAFER_DATA),../shared/data)/wafers_dev.npz $(SUITE)

.PHONY: test-malformed
test-malformed: $(TEST_STAMP) ## Send 10,000 malformed requests to the predictor
	TEACHWAFER_MALFORMED_REQUESTS=10000 $(BIN)/pytest tests/integration/predictor/test_malformed.py

.PHONY: test-gpu
test-gpu: $(TEST_STAMP) ## Run the tests that need an NVIDIA GPU
	TEACHWAFER_TEST_GPU=0 $(BIN)/pytest tests/gpu

.PHONY: screenshots
screenshots: $(TEST_STAMP) browser ## Take the pictures of docs/screens anew
	$(BIN)/python tests/browser/screenshots.py

.PHONY: setup
setup: $(STAMP) ## Install everything that running needs into .venv

.PHONY: clean
clean: ## Remove what was installed and generated; your wafers and models in .teachwafer stay
	rm -rf $(VENV) .venvs gen build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis

.PHONY: browser
browser: # Chromium and Korean letters for the browser tests
	@bash tests/browser/install.sh

$(VENV)/bin/uv:
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null || \
	  { echo "teachwafer needs Python 3.11, 3.12 or 3.13 as python3 on the PATH, or PYTHON=/path/to/python."; exit 1; }
	"$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) uv

# A stamp marks a finished installation, so that an interrupted one starts again.
$(STAMP): $(VENV)/bin/uv pyproject.toml hatch_build.py $(CONSTRAINTS) $(shell find protos -name '*.proto')
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c $(CONSTRAINTS) -e '.[gateway,generator,predictor,trainer]'
	@touch $@

$(TEST_STAMP): $(STAMP)
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c $(CONSTRAINTS) -e '.[gateway,generator,predictor,trainer,test]'
	@touch $@
