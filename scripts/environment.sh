# Sourced by the other scripts: makes .venv in the checkout and installs EXTRAS (for example cpu,dev) into it, once per
# change of what is to be installed. Nothing outside the checkout is written.
make_environment() {
  local extras=$1
  local python=${PYTHON:-python3}
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed (set PYTHON=...)" >&2; return 2; }
  export PIP_CACHE_DIR="$PWD/.venv/cache/pip" PIP_DISABLE_PIP_VERSION_CHECK=1
  local wanted
  wanted="$extras $(cat pyproject.toml scripts/constraints.txt | sha256sum)"
  [ "$(cat .venv/installed 2>/dev/null)" = "$wanted" ] && return 0
  [ -x .venv/bin/python ] || "$python" -m venv .venv
  echo "Installing into .venv, once; this takes minutes" >&2
  # The CPU build of torch first: asked for later, by another package, it would bring gigabytes of CUDA.
  .venv/bin/python -m pip install --quiet --constraint scripts/constraints.txt torch
  .venv/bin/python -m pip install --quiet --constraint scripts/constraints.txt --editable ".[$extras]"
  echo "$wanted" > .venv/installed
}

# From here on, whatever a library keeps for itself (caches, settings, temporary files) stays in the checkout too.
stay_in_checkout() {
  export HOME="$PWD/.venv/home" TMPDIR="$PWD/.venv/tmp" HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 TOKENIZERS_PARALLELISM=true
  export XDG_CACHE_HOME="$PWD/.venv/cache" WANDB_ERROR_REPORTING=false
  unset PYTHONDONTWRITEBYTECODE  # each of a hundred processes would compile the package, and pytest all tests, again
  mkdir -p "$HOME" "$TMPDIR" "$XDG_CACHE_HOME"
}
