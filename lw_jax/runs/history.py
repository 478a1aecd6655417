"""`metrics_history.jsonl`, beside the run directories: a line for every stage that ended, with the
call that ran it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lw_jax.errors import said
from lw_jax.train.diagnostics import read
from lw_jax.utils.files import append_line

FILE = "metrics_history.jsonl"


@dataclass(frozen=True)
class Call:
    """The command line of a run or an evaluation.

    Attributes:
        argv: its words, after the program's name.
        overrides: its flags, by key, as text.
    """

    argv: tuple[str, ...] = ()
    overrides: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, argv: Sequence[str], flags: Sequence[tuple[str, str]]) -> Call:
        """The call of these words, whose flags were read as such."""
        return cls(tuple(argv), dict(flags))

    def to_json(self) -> dict[str, Any]:
        """For a line of the history."""
        return {"argv": list(self.argv), "overrides": dict(self.overrides)}


def add(run_dir: Path, line: Mapping[str, Any], call: Call) -> None:
    """Appends a line. Results are elsewhere, so where it cannot be written that is said, and costs
    nothing else.

    Args:
        run_dir: directory of the run.
        line: what it says.
        call: that ran the stage.
    """
    path = run_dir.parent / FILE
    try:
        append_line(path, dict(line) | call.to_json())
    except OSError as error:
        print(f"WARNING {path}: no line was added: {error.strerror or said(error)}")


def of_training(
    run_dir: Path, stage: str, kind: str, seconds: float, diagnostics: Path
) -> dict[str, Any]:
    """The line of a stage that does not evaluate: its last loss, if it has one.

    Args:
        run_dir: directory of the run.
        stage: name of the stage.
        kind: `train`, `calibrate` or `pretrain`.
        seconds: of this process.
        diagnostics: the run's `diagnostics.jsonl`.
    """
    lines = read(diagnostics) if diagnostics.is_file() else []
    own = [e for e in lines if e["stage"] == stage and e["kind"] == "train" and "loss" in e]
    last = {"step": own[-1]["step"], "loss": own[-1]["loss"]} if own else {}
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "run": run_dir.name,
        "stage": stage,
        "kind": kind,
        "seconds": seconds,
        **last,
    }
