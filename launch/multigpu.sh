#!/usr/bin/env bash
# Run a config on all GPUs of a node: frozen weights split over MODEL of them, rows over the rest.
#   MODEL=2 bash launch/multigpu.sh configs/gsm8k.yaml [--KEY=VALUE ...]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/venv.sh
make_venv
install gpu --editable ".[gpu]" --constraint requirements.txt
config="${1:?usage: MODEL=2 bash launch/multigpu.sh CONFIG.yaml [--KEY=VALUE ...]}"
shift
exec "$VENV/bin/python" -m lw_jax.launch --config "$config" --mesh.model="${MODEL:-1}" "$@"
