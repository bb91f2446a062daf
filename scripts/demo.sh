#!/usr/bin/env bash
# From a fresh clone: environment, a real training that writes checkpoints, and their validation in another process meanwhile.
# With --wandb all three meet in a Weights & Biases server on this machine (tests/wandb_server), the SDK being the real one.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
make_environment cpu,demo
stay_in_checkout

rm -rf runs/demo
mkdir -p runs/demo
started=()
trap 'kill "${started[@]}" 2> /dev/null || true' EXIT
export OMP_NUM_THREADS=1  # training and validation side by side, a core each

run=demo report_to=none
if [ "${1:-}" = --wandb ]; then
  run=demo_wandb report_to=wandb
  .venv/bin/python tests/wandb_server --port 0 --dir runs/demo/server > runs/demo/server.url 2> runs/demo/server.log &
  started+=($!)
  until [ -s runs/demo/server.url ]; do sleep 0.1; done
  WANDB_BASE_URL=$(head -n 1 runs/demo/server.url)
  export WANDB_BASE_URL WANDB_API_KEY=0123456789012345678901234567890123456789 WANDB_ENTITY=demo WANDB_PROJECT=dr_validate-demo
  export WANDB_LOG_MODEL=checkpoint WANDB_DIR=$PWD/runs/demo WANDB_CACHE_DIR=$PWD/runs/demo/cache WANDB_SILENT=true
  export WANDB_DATA_DIR=$PWD/runs/demo/data WANDB_CONFIG_DIR=$PWD/runs/demo/config WANDB_X_DISABLE_STATS=true
fi

.venv/bin/python scripts/train_demo.py --out runs/demo/checkpoints --report-to $report_to > runs/demo/training.log 2>&1 &
training=$!
started+=($training)
# W&B makes the project when the training starts; a project that does not exist is a mistake to the watcher.
[ $run = demo ] || until ls -d runs/demo/wandb/run-* > /dev/null 2>&1; do sleep 0.2; kill -0 $training; done
# The watcher follows the training until this file says that no further checkpoint will come.
(while kill -0 $training 2> /dev/null; do sleep 0.5; done; touch runs/demo/training-is-over) &

echo "Training in process $training (runs/demo/training.log); validating beside it:"
echo "  python -m dr_validate +run=$run"
status=0
.venv/bin/python -m dr_validate +run=$run || status=$?
wait $training || { tail -n 20 runs/demo/training.log; exit 1; }
.venv/bin/python -m dr_validate +run=$run task=report
[ $run = demo ] || .venv/bin/python scripts/show_dashboard.py
exit $status
