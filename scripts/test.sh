#!/usr/bin/env bash
# From a fresh clone: environment, checks, the whole test suite; with arguments for pytest, only what these ask for. `--cov` tells
# which lines of the package tests reach: it doubles the time of the fast tier.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
make_environment cpu,dev
stay_in_checkout
bash scripts/check.sh
# Whole modules at a time, in the order of tests/conftest.py, one thread each.
run_tests() {
  OMP_NUM_THREADS=1 .venv/bin/python -m pytest --dist loadfile --no-loadscope-reorder --basetemp .venv/tmp/pytest "$@"
}
if [ $# -gt 0 ]; then
  run_tests -n 3 --dist worksteal "$@"
else
  run_tests -n 2 -m "not slow"  # the fast tier by itself: only there nothing else has imported torch before it
  run_tests -n 4 -m slow  # most start processes of their own, and wait for them
fi
