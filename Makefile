# One line each. `make flights` and `make test` need nothing but Python >= 3.11: they make their own environment first.
# ROWS=20000: a short run of flights. ARGS: more arguments, for the program behind a target.
export VENV ?= .venv
BIN = $(VENV)/bin
.PHONY: setup check test test-all bench flights

setup: ; @scripts/bootstrap dev
check: setup ; $(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports
test: ; scripts/test $(ARGS)
test-all: setup ; $(BIN)/python -m pytest -m "" $(ARGS)
bench: setup ; $(BIN)/python -m benchmarks $(ARGS)
flights: ; scripts/flights $(if $(ROWS),--rows $(ROWS)) $(ARGS)
