#!/usr/bin/env bash
# Train and evaluate a wire between two small frozen models, from a bare Python, on a CPU.
#   bash launch/quickstart.sh [--KEY=VALUE ...]      flags go to the run, e.g. --seed=1
# PYTHON=... picks the interpreter (3.11 or 3.12); VENV=... where packages go (default .venv).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/venv.sh
make_venv
exec "$VENV/bin/python" -m lw_jax.launch --config configs/quickstart.yaml "$@"
