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
	protos bench bench-quick bench-scale faults fuzz mutants coverage soak newcomer lock clean distclean

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

# Compatibility is promised from release to release; until there is one, with the frozen version.
lint-protos: $(SETUP)
	@$(BIN)/buf lint
	@$(BIN)/buf format --diff --exit-code
	@$(BIN)/python tools/protos.py --check
	@release=$$(git describe --tags --abbrev=0 --match 'v[0-9]*' 2>/dev/null); \
	if [ -n "$$release" ]; then \
		$(BIN)/buf breaking --against ".git#tag=$$release" && echo "protos are compatible with $$release"; \
	else \
		$(BIN)/buf breaking --against tests/compatibility/v1/image.binpb && \
		echo "protos are compatible with the frozen version"; \
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

bench: $(SETUP) ## Measure against floors and alternatives, see docs/performance.md (ARGS='--only chat')
	@$(BIN)/python -m tests.bench $(ARGS)

bench-quick: $(SETUP) ## The same with fewer samples, in some two minutes
	@$(BIN)/python -m tests.bench --quick $(ARGS)

bench-scale: $(SETUP) ## One control plane under 10,000 agents (ARGS='--agents 1000' for fewer)
	@$(BIN)/python -m tests.bench.scale $(ARGS)

# Servers are started by fork and exec while gRPC runs, which its own handlers of forks complain of.
faults: $(SETUP) ## Break servers, connections and databases under updates and watches, and check every promise (ARGS='--sqlite --runs 1000')
	@GRPC_ENABLE_FORK_SUPPORT=0 $(BIN)/python -m tests.faults.run $(ARGS)

fuzz: $(SETUP) ## Say anything to everything, and see that nothing suffers (ARGS='--seed 1 --seconds 600')
	@$(BIN)/python -m tests.fuzz $(ARGS)

mutants: $(SETUP) ## Break each promise on purpose, and see that its validator notices (ARGS='-k no-fence')
	@$(BIN)/python -m pytest -n 2 -v tests/faults/test_mutants.py tests/methods/test_perturbed.py $(ARGS)

# The folders that mirror these packages, and those whose servers run in the tests' own processes.
coverage: $(SETUP) ## Lines and branches of the rules that tests run: at least 95 of 100 in each package
	@$(BIN)/coverage erase
	@$(BIN)/coverage run -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m 'not long' \
		tests/control_plane/domain tests/control_plane/services tests/control_plane/rpc \
		tests/control_plane/store tests/control_plane/cluster/test_replicas.py \
		tests/trainer_agent/parameters tests/trainer_agent/steering \
		tests/trainer_agent/test_user_parameters.py --timeout 600 $(ARGS)
	@$(BIN)/coverage combine --quiet
	@status=0; for package in control_plane/domain control_plane/services trainer_agent/parameters; do \
		$(BIN)/coverage report --include="$$package/*" --fail-under=95 || status=1; \
	done; exit $$status

soak: $(SETUP) ## Have it all go on for an hour, and see that nothing grows (ARGS='--minutes 600 --postgres')
	@GRPC_ENABLE_FORK_SUPPORT=0 $(BIN)/python -m tests.soak $(ARGS)

# Needs no environment: it makes its own, as a newcomer does.
newcomer: ## Do what a newcomer does, in an empty folder: clone, wheel, README, examples, demos (ARGS=--quick)
	@python3 -m tools.newcomer $(ARGS)

lock: $(SETUP) ## Write constraints.txt from what is installed in .venv
	@$(BIN)/python tools/lock.py

clean: ## Remove caches and results
	@rm -rf .coverage .coverage.* .hypothesis .import_linter_cache .make .mypy_cache .pytest_cache .ruff_cache build dist out
	@find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +

distclean: clean ## Remove the environment too
	@rm -rf .venv
