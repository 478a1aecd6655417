#!/usr/bin/env bash
# Run a config on several hosts by hand, one process a host with all of its GPUs.
#   HOSTS="gpu1 gpu2" bash launch/hosts.sh configs/gsm8k.yaml [--KEY=VALUE ...]
# starts it on all of them by ssh, each in this same directory, and ends when they have; or, without
# ssh, on each host by itself:
#   COORDINATOR=gpu1:6340 COUNT=2 INDEX=0 bash launch/hosts.sh configs/gsm8k.yaml    # on gpu1
#   COORDINATOR=gpu1:6340 COUNT=2 INDEX=1 bash launch/hosts.sh configs/gsm8k.yaml    # on gpu2
# PORT (6340) has to be open between them, and the run directory on a file system that all share.
# DRY=1 prints what would be started.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/venv.sh
usage='usage: HOSTS="gpu1 gpu2" (or COORDINATOR, COUNT, INDEX) bash launch/hosts.sh CONFIG.yaml'
[[ -n "${1:-}" ]] || wrong "$usage"
config="$1"
shift
if [[ -n "${HOSTS:-}" ]]; then
    read -r -a names <<<"$HOSTS"
    children=()
    for i in "${!names[@]}"; do
        printf -v words ' %q' COORDINATOR="${names[0]}:${PORT:-6340}" COUNT="${#names[@]}" \
            INDEX="$i" ${FSDP:+"FSDP=$FSDP"} ${TENSOR:+"TENSOR=$TENSOR"} VENV="$VENV" \
            bash launch/hosts.sh "$config" "$@"
        there="cd $(printf '%q' "$PWD") && env$words"
        if dry; then
            shown ssh -tt "${names[$i]}" "$there"
        else
            ssh -tt "${names[$i]}" "$there" </dev/null & # -tt: what ends ssh ends the run
            children+=($!)
        fi
    done
    code=0
    for child in ${children[@]+"${children[@]}"}; do
        wait "$child" || code=$?
    done
    exit "$code"
fi
[[ -n "${COORDINATOR:-}" && -n "${COUNT:-}" && -n "${INDEX:-}" ]] || wrong "$usage"
make_venv
install gpu --editable ".[gpu]" --constraint requirements.txt
start "$VENV/bin/python" -m lw_jax.launch --config "$config" \
    --hosts.coordinator="$COORDINATOR" --hosts.count="$COUNT" --hosts.index="$INDEX" \
    ${FSDP:+"--mesh.fsdp=$FSDP"} ${TENSOR:+"--mesh.tensor=$TENSOR"} "$@"
