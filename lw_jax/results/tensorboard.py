"""A run's diagnostics and evaluation as TensorBoard events (tensorboardX, an optional extra).

Written from the run's files, so it can be done at any time, again, and after any resume. With
`tensorboard: true` a train stage writes them while it trains.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lw_jax.errors import UserError
from lw_jax.report.board import write_evaluation
from lw_jax.report.read import ADVICE, METRICS, read
from lw_jax.runs.directory import DIAGNOSTICS
from lw_jax.train import board
from lw_jax.train.board import FOLDER, Board
from lw_jax.utils.files import DIAGNOSTICS_LINE, read_line, shown


def write_events(run_dir: Path) -> Path:
    """Write `<run_dir>/tensorboard/<stage>` anew, and `.../evaluation`; the folder.

    Raises:
        UserError: no diagnostics there, or tensorboardX is not installed.
    """
    lines = _lines(run_dir)
    board.check()
    folder = run_dir / FOLDER
    for old in folder.glob("*/events.*"):
        old.unlink()
    boards: dict[str, Board] = {}
    with shown(run_dir / DIAGNOSTICS, "take out the line that is wrong"):
        for line in lines:
            stage, step, kind = line.pop("stage"), line.pop("step"), line.pop("kind")
            if stage not in boards:
                boards[stage] = Board(folder / stage)
            boards[stage].figures(step, kind, line)
            boards[stage].text("alarms", line.get("alarms", ()), step)
    for one in boards.values():
        one.close()
    if (run_dir / "config.yaml").is_file():
        with shown(run_dir / METRICS, ADVICE):
            write_evaluation(read(run_dir), run_dir)
    return folder


def _lines(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of a run's diagnostics; UserError says why there are none."""
    source = run_dir / "diagnostics.jsonl"
    if not source.is_file():
        if (run_dir / "bridge.json").is_file():
            raise UserError(
                f"{run_dir}: an exported bridge, which has no diagnostics; give the directory of "
                "the run that trained it"
            )
        if (run_dir / "config.yaml").is_file():
            raise UserError(
                f"{run_dir}: no diagnostics.jsonl: this run has trained nothing, or nothing yet; "
                "figures of its evaluations are in metrics.json"
            )
        raise UserError(f"{run_dir}: no diagnostics.jsonl there, so it is no run directory")
    found = []
    for number, text in enumerate(source.read_bytes().splitlines(), 1):
        line = read_line(text, DIAGNOSTICS_LINE)
        if line is None:  # cut, not UTF-8, of another form
            raise UserError(f"{source}:{number}: no line of diagnostics; take it out")
        found.append(line)
    return found
