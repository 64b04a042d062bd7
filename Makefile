# Works with GNU make 3.81 and on paths with spaces: every path here is relative to this folder.
PYTHON ?= python3
# A Databricks Runtime, `make test DATABRICKS=17.3`: with its Spark, from an environment beside .venv.
DATABRICKS ?=
PY := .venv$(if $(DATABRICKS),-databricks-$(DATABRICKS))/bin/python
# Of the tests: each has a Spark session and a PostgreSQL server of its own (docs/adr/0020).
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help install demo demo-databricks load report ui test test-databricks lint bench bench-quick clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -e 's/:.*## /|/' | awk -F'|' '{ printf "  make %-15s %s\n", $$1, $$2 }'

install: ## Make .venv with the pinned dependencies; the other targets do so by themselves
	@$(PYTHON) bootstrap.py $(DATABRICKS)

demo: install ## Start PostgreSQL with sample data, load tables, files and changes, print the report
	@$(PY) -m bronze_assets.demo demo

load: install ## Load what is outstanding from the server that BRONZE_SOURCE_URL names
	@$(PY) -m bronze_assets load

report: install ## Write the KPI pages and open one
	@$(PY) -m bronze_assets report

ui: install ## Open Dagster's UI on the same state, until Ctrl-C
	@$(PY) -m bronze_assets.demo ui

test: install ## Run the tests; ALL=1 runs the slow ones too, NIGHTLY=1 leaves nothing out; DATABRICKS=17.3 or 18 on its Spark
	@$(PY) -m pytest --numprocesses $(WORKERS) --dist loadfile $(if $(NIGHTLY),,-m "not nightly$(if $(ALL),, and not slow)")

lint: install ## Check style, format and types
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy

demo-databricks: install ## Load the ten tables through the step launcher, against a stand-in for a workspace
	@$(PY) -m bronze_assets_tests.demo_databricks

test-databricks: install ## Smoke test of a real workspace, as docs/databricks.md says
	@$(PY) -m bronze_assets_tests.smoke_databricks

bench: install ## Measure loads against others and against goals, for hours; BENCH="--only full warm --runs 5"
	@$(PYTHON) bootstrap.py bench
	@$(PY) -m benchmarks $(BENCH)

bench-quick: install ## The small bench of CI: fails if a ratio is three times the recorded one
	@$(PY) -m benchmarks --quick

clean: ## Stop what was started and remove BRONZE_HOME (default .bronze)
	@if [ -x $(PY) ]; then $(PY) -m bronze_assets.demo clean; else echo "Nothing is installed, so nothing was started."; fi
