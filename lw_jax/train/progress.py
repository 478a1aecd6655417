"""What a person watching a stage sees: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SHOWN = ("loss", "share/", "accuracy", "matched_minus_deranged", "dropped", "bad_steps")
"""Metrics shown beside the bar; a key that ends in a slash shows all that begin with it. `dropped`,
questions a step that were too long, and `bad_steps`, that were not finite, only where there are
some."""


def headline(metrics: Mapping[str, Any]) -> str:
    """`loss 1.234  share/ce 80%  ...` of the metrics worth a glance."""
    parts = []
    for key, value in metrics.items():
        if isinstance(value, list) or not key.startswith(SHOWN) or key.startswith("loss/"):
            continue
        if key in ("dropped", "bad_steps") and not value:
            continue
        if value is None:
            parts.append(f"{key} none")
            continue
        parts.append(f"{key} {value:.0%}" if key.startswith("share/") else f"{key} {value:.4g}")
    return "  ".join(parts)


class Display:
    """A context manager around a stage's steps."""

    def __init__(self, stage: str, start: int, steps: int) -> None:
        self.console = Console()
        self.stage, self.start, self.steps = stage, start, steps
        self.began = time.monotonic()
        self.bar = Progress(
            TextColumn(f"[bold]{stage}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[rate]}  {task.fields[text]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task(stage, total=steps, completed=start, rate="", text="")

    def __enter__(self) -> Display:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def step(self, done: int) -> None:
        """Move the bar to `done` steps."""
        self.bar.update(self.task, completed=done)

    def train(self, done: int, metrics: Mapping[str, Any], seconds_per_step: float) -> None:
        """The metrics of an interval that ended after `done` steps."""
        rate = f"{1 / max(seconds_per_step, 1e-9):.1f} it/s"
        self.bar.update(self.task, rate=rate, text=headline(metrics))
        if not self.console.is_terminal:
            passed = time.monotonic() - self.began
            left = passed / max(1, done - self.start) * (self.steps - done)
            self.say(f"{done}/{self.steps}  {rate}  {left:.0f} s left  {headline(metrics)}")

    def say(self, text: str) -> None:
        """A line above the bar."""
        self.console.print(f"{self.stage}  {text}", markup=False, highlight=False, soft_wrap=True)
