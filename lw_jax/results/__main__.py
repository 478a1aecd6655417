"""Records of runs, and the docs made of them.

    python -m lw_jax.results record RUN_DIR... docs/records/TOPIC.jsonl
    python -m lw_jax.results write docs/results
    python -m lw_jax.results tensorboard RUN_DIR

A record replaces the line of its name; `docs/records` alone is enough for a name that is there.
Each `docs/results/<topic>.yaml` is the source of a page: prose with figures
(`lw_jax.results.figures`), tables (rows of records, columns of `lw_jax.results.columns`) and
pictures. `README.yaml` is the page with the contents.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from lw_jax.errors import UserError
from lw_jax.results.page import write_pages
from lw_jax.results.record import write_record
from lw_jax.results.tensorboard import write_events


def main(argv: Sequence[str]) -> int:
    """The process's exit code: 2 for bad input, with one line that says what is wrong."""
    try:
        match argv:
            case ["record", *runs, where] if runs:
                for run in runs:
                    print(write_record(Path(run), Path(where)))
            case ["write", folder]:
                for path in write_pages(Path(folder)):
                    print(path)
            case ["tensorboard", run]:
                print(write_events(Path(run)))
            case ["-h" | "--help"]:
                print(__doc__)
            case _:
                raise UserError(
                    "results: expected record RUN_DIR... FILE, write DIR or tensorboard RUN_DIR "
                    "(--help says more)"
                )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
