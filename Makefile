# Every target is one line; `make` alone lists them. Each does its own set-up.
.DEFAULT_GOAL := help
.PHONY: help setup tools demo test check lint fmt bench golden docs gpu clean
export UV_PYTHON_DOWNLOADS := never
BIN := .venv/bin

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-7s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
setup: ## .venv with the locked dependencies, so that .venv/bin/claimscope works
	@scripts/setup.sh
tools: ## a C compiler and Prometheus through apt, where that is allowed
	@scripts/tools.sh
demo: setup tools ## three agents and the controller in a simulated cluster, with Prometheus, until Ctrl-C
	@$(BIN)/claimscope demo
test: setup tools ## all tests
	@$(BIN)/pytest
check: lint test ## lint and test
lint: setup ## ruff, mypy --strict and the layers
	@scripts/lint.sh
fmt: setup ## sort imports and fix what ruff can fix
	@$(BIN)/ruff check --fix --quiet .
bench: setup tools ## benchmarks; writes docs/performance.md
	@$(BIN)/python -m benchmarks
golden: setup tools ## rewrite the expected files of the tests
	@CLAIMSCOPE_UPDATE_GOLDEN=1 $(BIN)/pytest -k golden
docs: setup ## rewrite the generated pages under docs/, and what follows from the Helm chart
	@$(BIN)/python scripts/sbom.py
	@$(BIN)/python -m alerts
	@$(BIN)/python -m alerts.shortened
	@$(BIN)/python -m alerts.chart
	@$(BIN)/python -m alerts.runbooks
	@$(BIN)/python -m dashboards
	@$(BIN)/python scripts/manifests.py
	@$(BIN)/python scripts/docs.py
gpu: setup ## record and check NVML on a real GPU
	@$(BIN)/python scripts/gpu.py
clean: ## remove everything that can be made again
	@rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
