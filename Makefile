# make run     everything from a fresh clone to a scored model: environment, recipe, table, report
# make test    the fast tests      make test-all  every test      make check  lint, types and import contracts
.PHONY: run install test test-all check lint types contracts bench lock clean

VENV := .venv
BIN := $(VENV)/bin
RECIPE ?= quickstart
# pytest workers; each test keeps to two threads of its own at most
WORKERS ?= auto

run: install
	@$(BIN)/fairway run $(RECIPE) $(ARGS)

install: $(VENV)/.installed

$(VENV)/.installed: requirements.lock pyproject.toml
	@echo "installing requirements.lock into $(VENV) ..."
	@.ci/install $(VENV) "$(PYTHON)"
	@touch $@

test: install
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow and not gpu"

# Tests of faults wait as much as they compute: two cores have time for three.
test-all: WORKERS := $(if $(filter 2,$(shell nproc 2>/dev/null)),$(WORKERS:auto=3),$(WORKERS))
test-all: install
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

check: lint types contracts

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: install
	$(BIN)/pyright

contracts: install
	$(BIN)/lint-imports

bench: install
	$(BIN)/python -m pytest benchmarks --benchmark-enable -p no:cacheprovider -q

lock: install
	@{ sed -n '/^#/p' requirements.lock; $(BIN)/python -m pip freeze --all --exclude-editable | sed -e '/^pip==/d' -e 's/+cpu$$//; s/+cu[0-9]*$$//'; } > requirements.lock.new
	@mv requirements.lock.new requirements.lock

clean:
	rm -rf $(VENV) build dist *.egg-info
