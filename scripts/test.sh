#!/usr/bin/env bash
# From a fresh clone: environment, checks, the whole test suite.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
make_environment cpu,dev
stay_in_checkout
bash scripts/check.sh
# Two tests at a time, one thread each: most of them start processes of their own.
OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 --dist worksteal --basetemp .venv/tmp/pytest --cov --cov-report= "$@"
.venv/bin/coverage report --skip-covered | tail -n 40
