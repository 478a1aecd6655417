# Sourced by the other scripts: a virtual environment with the pinned packages, made once.
# DRY=1: nothing is installed or started; what would be started is printed.
VENV="${VENV:-.venv}"

dry() { [[ -n "${DRY:-}" ]]; }

# wrong WHAT: ends the script with one line, as the program ends for bad input.
wrong() {
    echo "error: $1" >&2
    exit 2
}

# shown COMMAND...: prints a command as a shell would take it.
shown() {
    printf 'would run:'
    printf ' %q' "$@"
    printf '\n'
}

# start COMMAND...: the command in place of this script; with DRY=1 it is printed.
start() {
    if dry; then
        shown "$@"
    else
        exec "$@"
    fi
}

find_python() {
    local name
    for name in ${PYTHON:-python3.11 python3.12 python3 python}; do
        if "$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' \
            2>/dev/null; then
            echo "$name"
            return
        fi
    done
    echo "error: Python 3.11 or 3.12 is needed (set PYTHON=/path/to/python)" >&2
    return 2
}

# install WHAT ARGUMENTS...: pip install, unless it was done with these very files before.
install() {
    local what="$1" stamp now
    shift
    dry && return
    stamp="$VENV/.installed-$what"
    now="$(cat requirements.txt pyproject.toml | cksum) $*"
    if [[ "$(cat "$stamp" 2>/dev/null)" != "$now" ]]; then
        echo "installing $what packages into $VENV (once)"
        "$VENV/bin/python" -m pip install -qq --disable-pip-version-check "$@"
        echo "$now" >"$stamp"
    fi
}

make_venv() {
    dry && return
    if [[ ! -x "$VENV/bin/python" ]]; then
        local python
        python="$(find_python)"
        echo "making a virtual environment in $VENV with $python"
        "$python" -m venv "$VENV"
    fi
    install runtime --requirement requirements.txt
}

make_dev_venv() {
    make_venv
    install dev --editable ".[dev]" --constraint requirements.txt
    # The CPU build of torch, where pip can find one; never the CUDA build with its gigabytes.
    install parity "torch==2.13.0+cpu" 2>/dev/null ||
        echo "no CPU build of torch found: parity is tested against golden values only"
}

# run_or_queue_again COMMAND...: the command in place of this script; under SLURM as a child that
# gets the script's SIGTERM, and after code 143 (it was stopped, and has saved) the job is queued
# again.
run_or_queue_again() {
    if dry || [[ -z "${SLURM_JOB_ID:-}" ]]; then
        start "$@"
        return
    fi
    local child="" code=0 asked=""
    # before the command starts, so that no signal is lost
    trap 'asked=TERM; [[ -z "$child" ]] || kill -TERM "$child"' TERM
    trap 'asked=INT; [[ -z "$child" ]] || kill -INT "$child"' INT
    "$@" &
    child=$!
    [[ -z "$asked" ]] || kill -"$asked" "$child"
    wait "$child" || code=$?
    while kill -0 "$child" 2>/dev/null; do # a signal ended the wait, not the command
        code=0
        wait "$child" || code=$?
    done
    if [[ $code == 143 ]]; then
        scontrol requeue "$SLURM_JOB_ID"
    fi
    exit "$code"
}
