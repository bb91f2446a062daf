#!/usr/bin/env bash
# From a fresh clone: environment, checks, the whole test suite; with arguments for pytest, only what these ask for. `--cov` tells
# which lines of the package tests reach: it doubles the time of the fast tier.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
make_environment cpu,dev
stay_in_checkout
# Whole modules at a time, in the order of tests/conftest.py, one thread each.
tests=(env OMP_NUM_THREADS=1 .venv/bin/python -m pytest --dist loadfile --no-loadscope-reorder)
if [ $# -gt 0 ]; then
  bash scripts/check.sh
  exec "${tests[@]}" --basetemp .venv/tmp/pytest -n 3 --dist worksteal "$@"
fi
{ # Compiles all tests, and with numba all metrics: half a CPU minute, or else the first processes would do it side by side.
  "${tests[@]}" --collect-only -q
  .venv/bin/python -c 'from dr_validate.metrics.ranx import RanxMetrics
RanxMetrics(names=("ndcg", "mrr", "map", "recall@1", "precision@1", "hit_rate@1", "r-precision")).warm_up()'
} > .venv/tmp/collected 2>&1 &
bash scripts/check.sh
wait
# Both tiers at once: most slow tests start processes of their own, and wait for them; that time is for the fast tier, which has a
# process of its own, where nothing else has imported torch before it. What it says comes at the end.
"${tests[@]}" --basetemp .venv/tmp/fast -n 1 -m "not slow" > .venv/tmp/fast.log 2>&1 &
trap 'kill %% 2> /dev/null || true' EXIT
code=0
"${tests[@]}" --basetemp .venv/tmp/slow -n 3 -m slow || code=$?
wait %% || code=$?
cat .venv/tmp/fast.log
exit $code
