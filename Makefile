# The commands of CONTRIBUTING.md. `make test` sets up .venv-test; the others use it.
BIN = .venv-test/bin

.PHONY: test lint format types docs site

test:
	bash launch/test.sh

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format:
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types:
	$(BIN)/mypy

docs:
	$(BIN)/python -m bert_jax.config.reference > docs/config.md

site:
	$(BIN)/mkdocs build
