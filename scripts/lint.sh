#!/usr/bin/env bash
# Every linter runs even if an earlier one complained; the exit status is 1 if any did.
set -uo pipefail
cd "$(dirname "$0")/.."
status=0
.venv/bin/ruff check --quiet . || status=1
.venv/bin/mypy --no-error-summary || status=1
layers=$(.venv/bin/lint-imports --no-cache 2>&1) || { status=1; printf '%s\n' "$layers"; }
exit "$status"
