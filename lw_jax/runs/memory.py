"""Memory that a training step needs on a device, from shapes alone."""

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
        frozen: the frozen weights.
        state: the bridge and its optimiser.
        work: intermediate results.
        room: memory of the device.
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
    """Bytes on one device where the sender also writes.

    Attributes:
        frozen: the frozen weights of the other methods.
        sender: the complete sender; what it shares with those is counted twice.
        room: memory of the device.
        method: that needs it.
    """

    frozen: int
    sender: int
    room: int
    method: str = "relay"

    @property
    def total(self) -> int:
        """Bytes of weights; intermediate results are not included."""
        return self.frozen + self.sender

    def __str__(self) -> str:
        return (
            f"{self.method}: {_size(self.sender)} whole sender + {_size(self.frozen)} frozen "
            f"weights = {_size(self.total)} of {_size(self.room)} a device, without work"
        )


def estimate(step: AbstractStep, room: int | None = None) -> Need:
    """Compiles a step to find its work space, unless its arguments alone are too large.

    Args:
        step: the step of a train stage.
        room: memory of a device; None: as the first device reports.
    """
    frozen, state = size_in_bytes(step.frozen), size_in_bytes(step.state)
    there = device_memory() if room is None else room
    if frozen + state >= there:
        return Need(frozen, state, 0, there)
    memory = step.traced.lower().compile().memory_analysis()
    if memory is None:  # the backend does not report it
        return Need(frozen, state, 0, there)
    own = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Need(frozen, state, memory.temp_size_in_bytes + own, there)


def _size(count: int) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / 2**20:.1f} MiB"


def device_memory() -> int:
    """Memory of one device: an accelerator's own, or a share of the host's."""
    stats = jax.devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // jax.device_count()
