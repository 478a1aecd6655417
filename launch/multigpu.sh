#!/usr/bin/env bash
# Run a config on all GPUs of a node: frozen weights split over MODEL of them, rows over the rest.
#   MODEL=2 bash launch/multigpu.sh configs/gsm8k.yaml [--KEY=VALUE ...]
# Exit code 143: it was asked to stop (SIGTERM) and has saved; the same command goes on. Under SLURM
# the job is then queued again:
#   sbatch --requeue --signal=B:TERM@120 --wrap "exec bash launch/multigpu.sh CONFIG.yaml ..."
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/venv.sh
make_venv
install gpu --editable ".[gpu]" --constraint requirements.txt
config="${1:?usage: MODEL=2 bash launch/multigpu.sh CONFIG.yaml [--KEY=VALUE ...]}"
shift
run_or_queue_again \
    "$VENV/bin/python" -m lw_jax.launch --config "$config" --mesh.tensor="${MODEL:-1}" "$@"
