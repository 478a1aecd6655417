"""What a training step takes of a device's memory, from shapes alone."""

from __future__ import annotations

import os
from dataclasses import dataclass

import jax

from lw_jax.runs.abstract import AbstractStep, size_in_bytes

GIB = 2**30


@dataclass(frozen=True)
class Need:
    """Bytes on one device for a training step.

    Attributes:
        frozen: of the frozen weights.
        state: of the bridge and its optimiser.
        work: of what is computed.
        room: that there are.
    """

    frozen: int
    state: int
    work: int
    room: int

    @property
    def total(self) -> int:
        """Bytes needed."""
        return self.frozen + self.state + self.work

    def __str__(self) -> str:
        return (
            f"{_size(self.frozen)} frozen weights + {_size(self.state)} bridge and optimiser + "
            f"{_size(self.work)} work = {_size(self.total)} of {_size(self.room)} a device"
        )


@dataclass(frozen=True)
class RelayNeed:
    """Bytes on one device where the sender writes as well.

    Attributes:
        frozen: of the frozen weights of every method.
        sender: of the whole sender; what it shares with those is counted twice.
        room: that there are.
    """

    frozen: int
    sender: int
    room: int

    @property
    def total(self) -> int:
        """Bytes of weights; what is computed comes on top."""
        return self.frozen + self.sender

    def __str__(self) -> str:
        return (
            f"relay: {_size(self.sender)} whole sender beside {_size(self.frozen)} frozen weights "
            f"= {_size(self.total)} of {_size(self.room)} a device, without work"
        )


def estimate(step: AbstractStep, room: int | None = None) -> Need:
    """Compile a step to see its work space, unless its arguments alone are too much.

    Args:
        step: of a train stage.
        room: bytes that a device has; by default, what the first device says.
    """
    frozen, state = size_in_bytes(step.frozen), size_in_bytes(step.state)
    there = device_memory() if room is None else room
    if frozen + state >= there:
        return Need(frozen, state, 0, there)
    memory = step.step.lower(*step.arguments).compile().memory_analysis()
    if memory is None:  # a backend that does not tell
        return Need(frozen, state, 0, there)
    own = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Need(frozen, state, memory.temp_size_in_bytes + own, there)


def _size(count: int) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / 2**20:.1f} MiB"


def device_memory() -> int:
    """Bytes that one device has: an accelerator's own, or its share of the host's."""
    stats = jax.devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // jax.device_count()
