#!/usr/bin/env bash
# Run a config on NODES nodes of a SLURM cluster, one process a node with all of its GPUs.
#   NODES=4 GPUS=8 TIME=8:00:00 FSDP=8 bash launch/slurm.sh configs/gsm8k.yaml [--KEY=VALUE ...]
# SBATCH holds further flags of sbatch ("--partition=gpu --account=me"). Two minutes before its time
# is up the job saves and is queued again. The processes find each other by SLURM's variables; the
# run directory has to be on a file system that all nodes share. DRY=1 prints what would be started.
set -euo pipefail
cd "${LW_JAX_HOME:-$(dirname "${BASH_SOURCE[0]}")/..}"
source launch/venv.sh
[[ -n "${1:-}" ]] || wrong "usage: NODES=4 bash launch/slurm.sh CONFIG.yaml [--KEY=VALUE ...]"
config="$1"
shift
if [[ -z "${SLURM_JOB_ID:-}" ]]; then
    # sbatch copies this script, so it is told where the others are
    LW_JAX_HOME="$PWD"
    export LW_JAX_HOME
    # shellcheck disable=SC2086  # SBATCH holds several words
    start sbatch --nodes="${NODES:-1}" --ntasks-per-node=1 --gpus-per-node="${GPUS:-8}" \
        --time="${TIME:-8:00:00}" --requeue --signal=B:TERM@120 --export=ALL ${SBATCH:-} \
        launch/slurm.sh "$config" "$@"
    exit
fi
make_venv
install gpu --editable ".[gpu]" --constraint requirements.txt
run_or_queue_again srun --ntasks-per-node=1 --kill-on-bad-exit=1 \
    "$VENV/bin/python" -m lw_jax.launch --config "$config" \
    ${FSDP:+"--mesh.fsdp=$FSDP"} ${TENSOR:+"--mesh.tensor=$TENSOR"} "$@"
