"""Compiles jitted programs in parallel, before they are first called.

One compilation does not keep all cores busy. A jitted function that is called later, on arguments
of the same shapes, dtypes and shardings, finds its program compiled.
"""

from __future__ import annotations

import math
import os
from collections.abc import Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import jax
from rich.console import Console

SECONDS = 5
"""What a program of a small model takes to compile, about, on one core."""


@dataclass
class AheadOfTime:
    """Programs to compile; one that is added twice is compiled once."""

    traced: dict[Hashable, jax.stages.Traced] = field(default_factory=dict)
    lowered: dict[Hashable, jax.stages.Lowered] = field(default_factory=dict)

    def add(self, program: jax.stages.Wrapped, *arguments: Any) -> Hashable:
        """Traces a program.

        Args:
            program: a jitted function.
            arguments: its arguments as it will be called: arrays, or `jax.ShapeDtypeStruct`s with
                shardings, and static values.

        Returns:
            The program's key.
        """
        leaves, tree = jax.tree.flatten(arguments)
        key = (program, tree, tuple(_kind(leaf) for leaf in leaves))
        if key not in self.lowered:
            self.traced[key] = program.trace(*arguments)
            self.lowered[key] = self.traced[key].lower()
        return key

    def compile(self, console: Console) -> dict[Hashable, jax.stages.Compiled]:
        """Compiles all programs, one for each core at a time.

        Returns:
            The compiled programs by key.
        """
        if not self.lowered:
            return {}
        count, cores = len(self.lowered), os.cpu_count() or 1
        line = f"compiling {count} program{'s' * (count > 1)}"
        about = SECONDS * math.ceil(count / cores)
        console.print(
            f"{line} (once; about {about} s for small models on a CPU, longer for large ones)",
            highlight=False,
            soft_wrap=True,
        )
        with (
            console.status(line),
            ThreadPoolExecutor(min(count, cores)) as pool,
        ):
            made = pool.map(jax.stages.Lowered.compile, self.lowered.values())
            return dict(zip(self.lowered, made, strict=True))


def _kind(leaf: Any) -> Hashable:
    """What a program depends on in an argument."""
    if not hasattr(leaf, "shape"):
        return leaf
    weak = getattr(leaf, "weak_type", False)
    return leaf.shape, leaf.dtype, weak, getattr(leaf, "sharding", None)
