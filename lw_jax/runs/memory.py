"""Memory that a training step needs on a device, from shapes alone."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import jax

from lw_jax.runs.abstract import AbstractStep, size_in_bytes
from lw_jax.train.config import TrainConfig

GIB = 2**30
SHARE = 0.95
"""Of a device's memory that a step may take where `remat` is `auto`."""
CONTROL_GROUP = (
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
)
"""Limits that a container or a batch system has set, of versions 2 and 1."""


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
            f"{in_words(self.frozen)} frozen weights + {in_words(self.state)} bridge and optimiser "
            f"+ {in_words(self.work)} work = {in_words(self.total)} of {in_words(self.room)} a "
            "device"
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
            f"{self.method}: {in_words(self.sender)} whole sender + {in_words(self.frozen)} frozen "
            f"weights = {in_words(self.total)} of {in_words(self.room)} a device, without work"
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
    return Need(frozen, state, _work(step.traced), there)


def estimate_sender(step: AbstractStep, room: int | None = None) -> Need | None:
    """What a sender on devices of its own needs on each of them: weights, and the work of one batch
    while the taps of the one before are copied; None: it has none. See `estimate`."""
    if step.apart is None or step.traced_sender is None:
        return None
    frozen, there = size_in_bytes(step.apart.model), device_memory() if room is None else room
    work = _work(step.traced_sender) if frozen < there else 0
    return Need(frozen, 0, work, there)


def _work(program: jax.stages.Traced) -> int:
    """Bytes on a device for what a program makes, its results included; 0: the backend does not
    say."""
    memory = program.lower().compile().memory_analysis()
    if memory is None:
        return 0
    own = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return int(memory.temp_size_in_bytes + own)


def settled(
    train: TrainConfig, make: Callable[[TrainConfig], AbstractStep], room: int | None = None
) -> tuple[TrainConfig, Need]:
    """What `remat: auto` means for a stage: the least that is computed again for which its step
    fits into `SHARE` of a device; any other config as it is. The program that is compiled to find
    out is the one that is run, and the cache of programs has it then.

    Args:
        train: config of the stage.
        make: its step.
        room: memory of a device; None: as the first device reports.
    """
    if train.remat != "auto":
        return train, estimate(make(train), room)
    for remat in ("none", "dots"):
        own = replace(train, remat=remat)
        step = make(own)
        if remat == "none" and not step.frozen.apart:
            continue
        try:
            need = estimate(step, room)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            continue
        if need.work and need.total <= SHARE * need.room:
            return own, need
    own = replace(train, remat="full")
    return own, estimate(make(own), room)


def in_words(count: int) -> str:
    """Bytes as MiB or GiB."""
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / 2**20:.1f} MiB"


def device_memory() -> int:
    """Memory of one device: an accelerator's own, or a share of what this process may have."""
    stats = jax.devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    return min(host_memory(), address_space() or host_memory()) // jax.device_count()


def host_memory() -> int:
    """Memory of the host, or what its control group leaves to this process, if that is less."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in CONTROL_GROUP:
        try:
            found.append(int(Path(file).read_text(encoding="ascii")))
        except (OSError, ValueError):
            continue  # there is none, or it says "max"
    return min(found)


def address_space() -> int | None:
    """Bytes of addresses that this process may have (`ulimit -v`), if less than the host's memory;
    None: as many as it likes. An allocation beyond them in XLA ends the process at once."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if limit == resource.RLIM_INFINITY or limit >= host_memory() else limit
