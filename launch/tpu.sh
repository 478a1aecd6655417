#!/usr/bin/env bash
# Run a config on a Cloud TPU VM, or on all hosts of a pod, which find each other by themselves.
#   TPU=NAME ZONE=us-east5-a bash launch/tpu.sh configs/gsm8k.yaml [--KEY=VALUE ...]
# starts it on all hosts of that TPU by gcloud, each in the directory THERE (lw_jax in the home
# directory there); without TPU it runs on this host. On several hosts the run directory has to be on
# a file system that all share, for example a mounted bucket. DRY=1 prints what would be started.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/venv.sh
usage="usage: TPU=NAME ZONE=ZONE bash launch/tpu.sh CONFIG.yaml [--KEY=VALUE ...]"
[[ -n "${1:-}" ]] || wrong "$usage"
[[ -z "${TPU:-}" || -n "${ZONE:-}" ]] || wrong "ZONE, that of the TPU $TPU, is missing; $usage"
config="$1"
shift
if [[ -n "${TPU:-}" ]]; then
    printf -v words ' %q' ${FSDP:+"FSDP=$FSDP"} ${TENSOR:+"TENSOR=$TENSOR"} \
        bash launch/tpu.sh "$config" "$@"
    start gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all \
        --command="cd $(printf '%q' "${THERE:-lw_jax}") && env$words"
    exit
fi
make_venv
install tpu --editable ".[tpu]" --constraint requirements.txt
start "$VENV/bin/python" -m lw_jax.launch --config "$config" \
    ${FSDP:+"--mesh.fsdp=$FSDP"} ${TENSOR:+"--mesh.tensor=$TENSOR"} "$@"
