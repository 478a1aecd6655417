#!/usr/bin/env bash
# Run a config on all GPUs of one node: weights, bridge and optimiser in pieces over FSDP of them,
# heads over TENSOR of them, rows over all but TENSOR.
#   FSDP=8 bash launch/multigpu.sh configs/gsm8k.yaml [--KEY=VALUE ...]
# DRY=1 prints what would be started. Exit code 143: it was asked to stop (SIGTERM) and has saved; the
# same command goes on. Under SLURM the job is then queued again; launch/slurm.sh asks for the nodes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/venv.sh
[[ -n "${1:-}" ]] || wrong "usage: FSDP=8 bash launch/multigpu.sh CONFIG.yaml [--KEY=VALUE ...]"
config="$1"
shift
make_venv
install gpu --editable ".[gpu]" --constraint requirements.txt
run_or_queue_again \
    "$VENV/bin/python" -m lw_jax.launch --config "$config" \
    ${FSDP:+"--mesh.fsdp=$FSDP"} ${TENSOR:+"--mesh.tensor=$TENSOR"} "$@"
