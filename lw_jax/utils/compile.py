"""Compiles jitted programs in parallel, before they are first called, or behind what runs.

One compilation does not keep all cores busy. A jitted function that is called later, on arguments
of the same shapes, dtypes and shardings, finds its program compiled.
"""

from __future__ import annotations

import math
import os
from collections.abc import Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import jax
from rich.console import Console

from lw_jax.utils import alive, hosts

SECONDS = 5
"""What a program of a small model takes to compile, about, on one core."""


def own_cores() -> int:
    """The processor's cores that this process may use: several runs that share a machine may have
    some each (`taskset`, a container's set)."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
        key = _key(program, arguments)
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
        count, cores = len(self.lowered), own_cores()
        line = f"compiling {count} program{'s' * (count > 1)}"
        about = SECONDS * math.ceil(count / cores)
        console.print(
            f"{line} (once; about {about} s for small models on a CPU, longer for large ones)",
            highlight=False,
            soft_wrap=True,
        )
        with (
            console.status(alive.Compiling(line)),
            ThreadPoolExecutor(min(count, cores)) as pool,
        ):
            made = pool.map(jax.stages.Lowered.compile, self.lowered.values())
            return dict(zip(self.lowered, made, strict=True))


class Behind:
    """Programs in the order in which they are needed: whoever needs one waits for that one alone,
    and the others are traced and compiled behind what runs meanwhile.

    What goes wrong with any of them is raised at the next `wait`, whatever that waits for.

    Args:
        console: that is told how many there are.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._programs: dict[Hashable, tuple[jax.stages.Wrapped, tuple[Any, ...]]] = {}
        self._traced: dict[Hashable, jax.stages.Traced] = {}
        self._running: dict[Hashable, Future[None]] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._waited_for: set[Hashable] = set()

    def add(self, program: jax.stages.Wrapped, *arguments: Any) -> Hashable:
        """Takes a program in, after those that are there already; see `AheadOfTime.add`.

        Nothing is traced yet, and no array is held: those of a state may be donated meanwhile.

        Returns:
            The program's key.
        """
        key = _key(program, arguments)
        if key not in self._programs:
            self._programs[key] = program, jax.tree.map(_shape, arguments)
        return key

    def traced(self, key: Hashable) -> jax.stages.Traced:
        """A program that was added, traced; before `start`."""
        if key not in self._traced:
            program, shapes = self._programs[key]
            self._traced[key] = program.trace(*shapes)
        return self._traced[key]

    def start(self) -> None:
        """Compiles the first program; when it is there, the others begin."""
        if not self._programs:
            return
        first, *others = self._programs
        more = len(others)
        behind = f", and {more} more behind the first steps" if more else ""
        self.console.print(
            f"compiling 1 program{behind} (once; about {SECONDS} s each for small models on a CPU, "
            "longer for large ones)",
            highlight=False,
            soft_wrap=True,
        )
        with self.console.status(alive.Compiling("compiling the first step")):
            self._compile(first)
        self._pool = ThreadPoolExecutor(max(1, own_cores() - 1), "compile")
        self._running = {key: self._pool.submit(self._compile, key) for key in others}

    def wait(self, *keys: Hashable) -> None:
        """Returns when these programs are compiled; those that were not added are no matter. Of
        several processes each waits until all have them: in a program they wait less patiently."""
        for key in [key for key, one in self._running.items() if one.done()]:
            self._running.pop(key).result()
        for key in keys:
            one = self._running.pop(key, None)
            if one is None:
                continue
            if one.cancel():  # it waits behind others
                self._compile(key)
            else:
                one.result()
        new = {key for key in keys if key in self._programs} - self._waited_for
        if new:
            self._waited_for |= new
            hosts.meet("programs that are compiled")

    def _compile(self, key: Hashable) -> None:
        program, shapes = self._programs[key]
        traced = self._traced.pop(key, None)
        (program.trace(*shapes) if traced is None else traced).lower().compile()

    def close(self) -> None:
        """Leaves out what has not begun."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)


def _key(program: jax.stages.Wrapped, arguments: tuple[Any, ...]) -> Hashable:
    leaves, tree = jax.tree.flatten(arguments)
    return program, tree, tuple(_kind(leaf) for leaf in leaves)


def _shape(leaf: Any) -> Any:
    """What stands for an array of a device when a program is traced."""
    if not isinstance(leaf, jax.Array):
        return leaf
    where = leaf.sharding if leaf.committed else None
    weak = leaf.aval.weak_type
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where, weak_type=weak)


def _kind(leaf: Any) -> Hashable:
    """What a program depends on in an argument."""
    if not hasattr(leaf, "shape"):
        return leaf
    weak = getattr(leaf, "weak_type", False)
    where = getattr(leaf, "sharding", None) if getattr(leaf, "committed", True) else None
    return leaf.shape, leaf.dtype, weak, where
