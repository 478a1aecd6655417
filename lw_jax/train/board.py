"""TensorBoard events of a stage while it trains (tensorboardX, an optional extra).

`diagnostics.jsonl` has the same figures, and `lw-jax tensorboard` makes events of it at any time.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lw_jax.errors import UserError

FOLDER = "tensorboard"


class Board:
    """Events of one stage.

    Args:
        folder: where they go.
        after: steps that were taken before; events of later ones, of a leg that was killed, are
            not shown again. None: nothing is said of earlier events.
    """

    def __init__(self, folder: Path, after: int | None = None) -> None:
        check()
        from tensorboardX import SummaryWriter

        purge = None if after is None else after + 1
        self.writer = SummaryWriter(str(folder), purge_step=purge, flush_secs=5)

    def figures(self, step: int, kind: str, values: Mapping[str, Any]) -> None:
        """A line of the diagnostics: its numbers, under `<kind>/<key>`."""
        for key, value in values.items():
            if isinstance(value, (int, float)):
                self.writer.add_scalar(f"{kind}/{key}", value, step)

    def text(self, tag: str, lines: Iterable[str], step: int) -> None:
        """Lines as preformatted text."""
        held = "\n".join(f"    {line}" for line in "\n".join(lines).splitlines())
        if held:
            self.writer.add_text(tag, held, step)

    def close(self) -> None:
        """Writes what is left."""
        self.writer.close()


@contextmanager
def board(wanted: bool, run_dir: Path, stage: str, after: int) -> Iterator[Board | None]:
    """The board of a stage that trains; None if nobody wants one."""
    held = Board(run_dir / FOLDER / stage, after) if wanted else None
    try:
        yield held
    finally:
        if held is not None:
            held.close()


def check() -> None:
    """Raises UserError if tensorboardX is not installed."""
    if importlib.util.find_spec("tensorboardX") is None:
        raise UserError("tensorboard: pip install 'lw_jax[tensorboard]' first")
