#!/usr/bin/env bash
# Run the tests; arguments go to pytest, e.g. `bash launch/test.sh tests/config -m slow`.
# Two processes, a file at a time. VENV=... reuses an environment.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/venv.sh
make_dev_venv
exec "$VENV/bin/python" -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder "$@"
