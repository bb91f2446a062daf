#!/usr/bin/env bash
# From a fresh clone: environment, a real training that writes checkpoints, and their validation in another process meanwhile.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
make_environment cpu,demo
stay_in_checkout

rm -rf runs/demo
mkdir -p runs/demo
OMP_NUM_THREADS=1 .venv/bin/python scripts/train_demo.py --out runs/demo/checkpoints > runs/demo/training.log 2>&1 &
training=$!
# The watcher follows the training until this file says that no further checkpoint will come.
(wait_for() { while kill -0 "$1" 2> /dev/null; do sleep 0.5; done; }; wait_for $training; touch runs/demo/training-is-over) &
trap 'kill $training 2> /dev/null || true' EXIT

echo "Training in process $training (runs/demo/training.log); validating beside it:"
echo "  python -m dr_validate +run=demo"
status=0
OMP_NUM_THREADS=1 .venv/bin/python -m dr_validate +run=demo || status=$?
wait $training || { tail -n 20 runs/demo/training.log; exit 1; }
exit $status
