#!/usr/bin/env bash
# From a fresh clone: environment, checks, the whole test suite.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
make_environment cpu,dev
stay_in_checkout
bash scripts/check.sh
.venv/bin/python -m pytest --cov --cov-report= "$@"
.venv/bin/coverage combine --quiet
.venv/bin/coverage report --skip-covered | tail -n 40
