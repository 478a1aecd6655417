"""Records of runs, and the docs made of them.

    python -m lw_jax.results record RUN_DIR... docs/records/TOPIC.jsonl
    python -m lw_jax.results write docs/results
    python -m lw_jax.results tensorboard RUN_DIR
    python -m lw_jax.results normalised RUN_DIR... [text=RUN_DIR...]
    python -m lw_jax.results reading latent=RUN_DIR[,RUN_DIR...] NAME=RUN_DIR[,RUN_DIR...]...

A record replaces the line of its name; `docs/records` alone is enough for a name that is there.
Each `docs/results/<topic>.yaml` is the source of a page: prose with figures
(`lw_jax.results.figures`), tables (rows of records, columns of `lw_jax.results.columns`) and
pictures. `README.yaml` is the page with the contents. `normalised` prints the teacher-normalised
score of several seeds' evaluations on the same rows, with intervals over articles and seeds; a
`text=RUN_DIR`, a tuned reader's own evaluation, may be the score's upper end as well;
`reading` what the sender contributes: the bridge minus the best of others that read less.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from lw_jax.errors import UserError
from lw_jax.results.normalised import sentences
from lw_jax.results.page import write_pages
from lw_jax.results.reading import parsed, reading
from lw_jax.results.record import write_record
from lw_jax.results.tensorboard import write_events
from lw_jax.utils.guarded import guarded
from lw_jax.utils.output import never_fails_to_encode

USAGE = (__doc__ or "").strip()
TEXT = "text="


def main(argv: Sequence[str]) -> int:
    """The process's exit code: 2 for bad input, with one line that says what is wrong."""
    return guarded(lambda: _done(argv))


def _done(argv: Sequence[str]) -> int:
    """Does what the words ask for; the exit code."""
    match argv:
        case ["-h" | "--help" | "help", *_]:
            print(USAGE)
        case ["record", *runs, where] if runs:
            for run in runs:
                print(write_record(Path(run), Path(where)))
        case ["write", folder]:
            for path in write_pages(Path(folder)):
                print(path)
        case ["tensorboard", run]:
            print(write_events(Path(run)))
        case ["normalised", *runs] if runs:
            text = [run.removeprefix(TEXT) for run in runs if run.startswith(TEXT)]
            seeds = [Path(run) for run in runs if not run.startswith(TEXT)]
            if not seeds:
                raise UserError(_wrong(argv))
            for line in sentences(seeds, [Path(run) for run in text]):
                print(line)
        case ["reading", *runs] if runs:
            for line in reading(parsed(runs)):
                print(line)
        case _:
            raise UserError(_wrong(argv))
    return 0


def _wrong(argv: Sequence[str]) -> str:
    """What is wrong with a command line."""
    found = {
        "record": "record: give a run directory, or several, and then a file docs/records/X.jsonl",
        "write": "write: give one folder, that of the pages' sources (docs/results)",
        "tensorboard": "tensorboard: give one run directory",
        "normalised": "normalised: give the run directory of every seed",
        "reading": "reading: give latent=RUN_DIR, the bridge's, and NAME=RUN_DIR of each other",
    }
    got = argv[0] if argv else "nothing"
    line = found.get(got, f"results: expected {', '.join(found)}; got {got}")
    return f"{line}; `python -m lw_jax.results --help` says more"


if __name__ == "__main__":
    never_fails_to_encode()
    raise SystemExit(main(sys.argv[1:]))
