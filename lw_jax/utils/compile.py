"""Jitted programs compiled side by side, before they are first called.

On a machine with more cores than the compilation of one program keeps busy. A jitted function that
is called later on arguments of the same shapes, dtypes and shardings finds its program compiled.
"""

from __future__ import annotations

import os
from collections.abc import Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import jax
from rich.console import Console


@dataclass
class AheadOfTime:
    """Programs that will be wanted; one that is wanted twice is compiled once."""

    lowered: dict[Hashable, jax.stages.Lowered] = field(default_factory=dict)

    def add(self, program: jax.stages.Wrapped, *arguments: Any) -> Hashable:
        """Trace a program on arguments as it will be called with: arrays, or
        `jax.ShapeDtypeStruct`s with shardings, and its static arguments. Gives its key."""
        leaves, tree = jax.tree.flatten(arguments)
        key = (program, tree, tuple(_kind(leaf) for leaf in leaves))
        if key not in self.lowered:
            self.lowered[key] = program.lower(*arguments)
        return key

    def compile(self, console: Console) -> dict[Hashable, jax.stages.Compiled]:
        """Compile them all, as many at a time as there are cores; gives them by key."""
        if not self.lowered:
            return {}
        count, cores = len(self.lowered), os.cpu_count() or 1
        with (
            console.status(f"compiling {count} program{'s' * (count > 1)}"),
            ThreadPoolExecutor(min(count, cores)) as pool,
        ):
            made = pool.map(jax.stages.Lowered.compile, self.lowered.values())
            return dict(zip(self.lowered, made, strict=True))


def _kind(leaf: Any) -> Hashable:
    """What of an argument a program depends on."""
    if not hasattr(leaf, "shape"):
        return leaf
    weak = getattr(leaf, "weak_type", False)
    return leaf.shape, leaf.dtype, weak, getattr(leaf, "sharding", None)
