"""A process that is killed at a file: `kill -9` comes when a file has taken its place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lw_jax.utils import files


class Killed(BaseException):
    """Stands for `kill -9`: nothing catches it."""


@contextmanager
def killed_after(name: str, times: int) -> Iterator[None]:
    """What is run here is killed when a file of that name has been written so many times."""
    move, moved = files.os.replace, []

    def replace(source: Any, target: Any) -> None:
        move(source, target)
        if Path(target).name == name:
            moved.append(target)
            if len(moved) == times:
                raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files.os, "replace", replace)
        try:
            yield
        except Killed:
            return
    pytest.fail(f"{name} was written {len(moved)} times, not {times}")
