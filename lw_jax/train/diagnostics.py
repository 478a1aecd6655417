"""`diagnostics.jsonl`: one line per interval and per evaluation, the same after any resume."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lw_jax.errors import UserError
from lw_jax.train.alarms import FAULTS

TIMES = ("seconds", "seconds_per_step")
"""Keys in which an uninterrupted and a resumed run may differ."""


class Journal:
    """The lines of one stage in the run's diagnostics file."""

    def __init__(self, path: Path, stage: str) -> None:
        self.path, self.stage = path, stage

    def rewind(self, step: int) -> None:
        """Drop this stage's lines beyond `step`, and a line cut short by a crash."""
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue
            if entry["stage"] != self.stage or entry["step"] <= step:
                kept.append(line + "\n")
        new = self.path.with_suffix(".tmp")
        new.write_text("".join(kept), encoding="utf-8")
        os.replace(new, self.path)

    def write(self, step: int, kind: str, values: Mapping[str, Any]) -> None:
        """Append a line: kind `train` (means over the interval) or `evaluate`."""
        entry = {"stage": self.stage, "step": step, "kind": kind} | dict(values)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as f:
            f.write(json.dumps(entry, ensure_ascii=False) + "\n")


def fired(path: Path) -> list[dict[str, Any]]:
    """The alarms of a run's quick evaluations, per stage in the order in which they first fired:
    name, fault of docs/faults.md or None, stage, steps `first` and `last`, and `times`."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    if not path.is_file():
        return []
    for line in path.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
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


def check_finite(stage: str, step: int, metrics: Mapping[str, Any]) -> None:
    """Stop a stage whose loss or gradient norm is no number.

    Raises:
        UserError: names the stage, the step (counted from 1) and the metric.
    """
    for key in ("loss", "grad_norm"):
        if key in metrics and not np.isfinite(metrics[key]):
            raise UserError(
                f"stages.{stage}: {key} is {float(metrics[key])} at step {step}; the last "
                "checkpoint is kept: lower optimiser.lr or optimiser.clip and start a new run"
            )
