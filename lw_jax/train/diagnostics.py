"""`diagnostics.jsonl`: one line per interval and per evaluation, the same after any resume."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lw_jax.errors import UserError
from lw_jax.train.alarms import FAULTS
from lw_jax.train.state import SOUND
from lw_jax.utils.files import DIAGNOSTICS_LINE, append_line, read_lines, write_text

TIMES = ("seconds", "seconds_per_step", "share_of_time", "peak_gib")
"""Keys in which an uninterrupted and a resumed run may differ."""


class Journal:
    """The lines of one stage in the run's diagnostics file."""

    def __init__(self, path: Path, stage: str) -> None:
        self.path, self.stage = path, stage

    def rewind(self, step: int) -> int:
        """Drop this stage's lines beyond `step`, and lines that are damaged or were cut short.

        Returns:
            How many lines of the stage were beyond.
        """
        if not self.path.exists():
            return 0
        lines, bad = read_lines(self.path, DIAGNOSTICS_LINE)
        if bad > 1:  # one may be cut short by a kill
            print(f"{self.path}: {bad} damaged lines are left out")
        kept = [e for e in lines if e["stage"] != self.stage or e["step"] <= step]
        write_text(self.path, "".join(json.dumps(e, ensure_ascii=False) + "\n" for e in kept))
        return len(lines) - len(kept)

    def write(self, step: int, kind: str, values: Mapping[str, Any]) -> None:
        """Append a line: kind `train` (means over the interval), `watch` or `evaluate`."""
        append_line(self.path, {"stage": self.stage, "step": step, "kind": kind} | dict(values))


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's diagnostics that have a stage, a step and a kind."""
    return read_lines(path, DIAGNOSTICS_LINE)[0]


def fired(path: Path) -> list[dict[str, Any]]:
    """The alarms of a run's quick evaluations, per stage in the order in which they first fired:
    name, fault of docs/faults.md or None, stage, steps `first` and `last`, and `times`."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for entry in read(path):
        for key in entry:
            if not key.startswith("alarm/"):
                continue
            name, stage, step = key.removeprefix("alarm/"), entry["stage"], entry["step"]
            new = {"name": name, "fault": FAULTS.get(name), "stage": stage, "first": step}
            held = found.setdefault((stage, name), new | {"times": 0})
            held |= {"last": step, "times": held["times"] + 1}
    return list(found.values())


class Window:
    """Running sums of the metrics since the last line; JSON, so that a checkpoint carries them."""

    def __init__(self, sums: Mapping[str, Any] | None = None) -> None:
        self.sums: dict[str, list[Any]] = {k: list(v) for k, v in (sums or {}).items()}

    def add(self, metrics: Mapping[str, Any]) -> None:
        """Add one step's metrics: scalars or arrays. Steps of another plan may lack some keys."""
        for key, value in metrics.items():
            total, count = self.sums.get(key, [0.0, 0])
            now = np.asarray(value, np.float64) + np.asarray(total)
            self.sums[key] = [now.tolist(), count + 1]

    def close(self) -> dict[str, Any]:
        """Means over the steps that had the key; empties the window."""
        means = {k: (np.asarray(total) / count).tolist() for k, (total, count) in self.sums.items()}
        self.sums = {}
        return means


class DivergedError(UserError):
    """A stage ended because its steps were not finite.

    Attributes:
        step: the last of them.
    """

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


def is_sound(metrics: Mapping[str, Any]) -> bool:
    """Whether a step counts: everything that it gave is finite."""
    return wrong_metric(metrics) is None and bool(metrics.get(SOUND, True))


def wrong_metric(metrics: Mapping[str, Any]) -> str | None:
    """What is not finite of a step's loss and gradients, in words; None: both are finite."""
    for key in ("loss", "grad_norm"):
        if key in metrics and not np.isfinite(metrics[key]):
            return f"{key} is {float(metrics[key])}"
    return None
