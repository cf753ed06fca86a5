# make run     everything from a fresh clone to a scored model: environment, recipe, table, report
# make test    the fast tests      make test-all  every test      make check  lint, types and import contracts
.PHONY: run install test test-all check lint types contracts bench lock clean

VENV := .venv
BIN := $(VENV)/bin
RECIPE ?= quickstart
# pytest workers; each test keeps to two threads of its own at most
WORKERS ?= auto
FIND_PYTHON := for p in $(PYTHON) python3 python3.13 python3.12 python3.11; do \
	  "$$p" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo "$$p" && break; done

run: install
	@$(BIN)/fairway run $(RECIPE) $(ARGS)

install: $(VENV)/.installed

$(VENV)/.installed: requirements.lock pyproject.toml
	@python="$$($(FIND_PYTHON))"; \
	if [ -z "$$python" ]; then \
	  echo "Fairway needs Python 3.11, 3.12 or 3.13; none is on PATH. Install one, or say make PYTHON=/path/to/python3" >&2; exit 3; fi; \
	if ! "$$python" -c 'import venv, ensurepip' 2>/dev/null; then \
	  echo "$$python has no venv or ensurepip, which Debian and Ubuntu keep in a package of their own: apt-get install python3-venv" >&2; exit 3; fi; \
	[ -x $(BIN)/python ] || "$$python" -m venv $(VENV)
	@echo "installing requirements.lock into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

test: install
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow and not gpu"

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
