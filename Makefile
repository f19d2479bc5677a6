# GNU Make 4.3 or newer, a POSIX shell and Python 3.11 or newer; everything else is installed into
# .venv. A target whose inputs have not changed does nothing.

BIN := .venv/bin
# In the environment itself, so that removing it asks for a new one.
SETUP := .venv/.midcourse-setup
PROTOS := .make/protos
NODE_MODULES := examples/node/node_modules

# Folders too: removing a .proto file must count as a change.
PROTO_INPUTS := $(shell find protos/midcourse -name __pycache__ -prune -o \( -name '*.proto' -o -type d \) -print)

# The method that `make demo` trains with: sft, dpo, orpo, grpo or rloo.
METHOD ?= sft
# The model that `make demo-chat` asks; by default one that there is a key for, else a tiny local one.
MODEL ?=
# Tests wait for processes much of their time, so there are more of them than processors.
# They get the files in the order that tests/conftest.py puts them into.
WORKERS := -n 3 --dist loadfile --no-loadscope-reorder
# More arguments for pytest, the demo or the benchmarks: make test ARGS='-k learning_rate'
ARGS ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo demo-chat demo-cluster test test-long test-node lint lint-code lint-types lint-imports lint-protos format \
	protos bench bench-quick bench-scale faults lock clean distclean

help: ## List the targets
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(SETUP) ## Make .venv with the locked versions; the midcourse command is then in .venv/bin

$(SETUP): pyproject.toml constraints.txt tools/setup.sh
	@tools/setup.sh
	@touch $@

demo: $(SETUP) ## Steer a real training run and show it (METHOD=sft, dpo, orpo, grpo or rloo)
	@$(BIN)/python -m examples.demo --method $(METHOD) $(ARGS)

demo-chat: $(SETUP) ## Ask a model about a run with a spike in it (MODEL=...)
	@$(BIN)/python -m examples.demo_chat --model "$(MODEL)" $(ARGS)

demo-cluster: $(SETUP) ## Three control planes on one PostgreSQL, and the death of one
	@$(BIN)/python -m examples.demo_cluster $(ARGS)

test: $(SETUP) ## Run the tests (ARGS='-k name' for some of them, ARGS='-n 0' in one process)
	@$(BIN)/python -m pytest $(WORKERS) -m 'not long' $(ARGS)

test-long: $(SETUP) ## Run all tests, those too that only vary others
	@$(BIN)/python -m pytest $(WORKERS) --hypothesis-profile=thorough $(ARGS)

test-node: $(SETUP) $(NODE_MODULES) ## Run the Node example against a real control plane (needs node and npm)
	@$(BIN)/python -m pytest tests/node $(ARGS)

$(NODE_MODULES): examples/node/package.json examples/node/package-lock.json
	@npm ci --prefix examples/node --no-audit --no-fund
	@touch $@

lint: lint-code lint-types lint-imports lint-protos ## Check code, types, imports and protos (-k: all in spite of errors)

lint-code: $(SETUP)
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check

lint-types: $(SETUP)
	@$(BIN)/mypy

lint-imports: $(SETUP)
	@$(BIN)/lint-imports --no-logo

# Compatibility is promised from release to release: until there is one, the protos may change.
lint-protos: $(SETUP)
	@$(BIN)/buf lint
	@$(BIN)/buf format --diff --exit-code
	@$(BIN)/python tools/protos.py --check
	@release=$$(git describe --tags --abbrev=0 --match 'v[0-9]*' 2>/dev/null); \
	if [ -n "$$release" ]; then \
		$(BIN)/buf breaking --against ".git#tag=$$release" && echo "protos are compatible with $$release"; \
	else \
		echo "protos: no release tag here to stay compatible with"; \
	fi

format: $(SETUP) ## Format the code and mend what can be mended mechanically
	@$(BIN)/ruff check --fix --quiet || true
	@$(BIN)/ruff format
	@$(BIN)/buf format --write

protos: $(PROTOS) ## Generate the Python code of the .proto files

$(PROTOS): $(PROTO_INPUTS) tools/protos.py constraints.txt | $(SETUP)
	@$(BIN)/python tools/protos.py
	@mkdir -p $(@D)
	@touch $@

bench: $(SETUP) ## Measure against floors and peers
	@$(BIN)/python -m tests.bench $(ARGS)

bench-quick: $(SETUP) ## The same in under two minutes, with wider error bars
	@$(BIN)/python -m tests.bench --quick $(ARGS)

bench-scale: $(SETUP) ## One control plane under 10,000 agents (ARGS='--agents 1000' for fewer)
	@$(BIN)/python -m tests.bench.scale $(ARGS)

# Servers are started by fork and exec while gRPC runs, which its own handlers of forks complain of.
faults: $(SETUP) ## Kill servers and the database under updates and watches, and check every promise (ARGS='--seed 1 --seconds 60 --runs 5')
	@GRPC_ENABLE_FORK_SUPPORT=0 $(BIN)/python -m tests.faults.run $(ARGS)

lock: $(SETUP) ## Write constraints.txt from what is installed in .venv
	@$(BIN)/python tools/lock.py

clean: ## Remove caches and results
	@rm -rf .coverage .hypothesis .import_linter_cache .make .mypy_cache .pytest_cache .ruff_cache build dist out
	@find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +

distclean: clean ## Remove the environment too
	@rm -rf .venv
