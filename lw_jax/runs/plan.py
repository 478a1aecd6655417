"""What each stage of a config needs on every device, before any weight is read.

Weights, bridge and optimiser are counted from shapes and shardings. What a training step needs
besides is what the compiler says that has planned it, for the devices that are here or for a TPU
that need not be; for other devices that are not here the host plans it, so that it is a guess.
Written answers need keys and values of the longest sequence that an evaluation lays out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec

import jax
from jax.experimental import topologies
from jax.sharding import Mesh
from rich.console import Console
from rich.table import Table

from lw_jax.config.schema import Config
from lw_jax.errors import UserError, said
from lw_jax.evaluate.config import EvaluateConfig
from lw_jax.mesh import MeshConfig, make_mesh, make_sender_mesh, ways
from lw_jax.models.frozen import Elsewhere, FrozenModels
from lw_jax.models.spec import SENDER
from lw_jax.runs.abstract import (
    AbstractStep,
    abstract_apart,
    abstract_models,
    abstract_step,
    size_in_bytes,
)
from lw_jax.runs.doctor import examined
from lw_jax.runs.findings import Examination
from lw_jax.runs.memory import device_memory, estimate_sender, in_words, settled
from lw_jax.train.config import TrainConfig

ADVICE = {
    "weights": "spread the models (mesh.fsdp, mesh.tensor), or set quant",
    "bridge": "lower latent_dim, slots, widths or depths of the bridge",
    "work": "lower batch_size, accumulate more, or set remat: full",
    "cache": "lower the evaluation's batch_size, or its max_new_tokens",
}
"""What to change, by what is largest."""

READER, OWN = "sender, up to its highest tap", ", the sender's own devices"

TPU_GB = {"TPU v4": 32, "TPU v5 lite": 16, "TPU v5": 95, "TPU v6 lite": 32, "TPU7x": 96}
"""GiB of one device (of TPU7x a chip is two), as Google's documentation says, by jax's name."""


@dataclass(frozen=True)
class Budget:
    """Bytes on one device in a stage.

    Attributes:
        stage: its key.
        parts: by what they are for: kind (of `ADVICE`), name, bytes.
        host: bytes of host memory and of files beside them, by name.
    """

    stage: str
    parts: tuple[tuple[str, str, int], ...]
    host: tuple[tuple[str, int], ...] = ()

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return sum(part[2] for part in self.parts)

    def over(self, room: int) -> str | None:
        """What to change, in one line; None: it fits.

        Args:
            room: bytes of a device.
        """
        if self.total < room:
            return None
        kinds = {kind: sum(n for k, _, n in self.parts if k == kind) for kind in ADVICE}
        largest = max(kinds, key=lambda kind: kinds[kind])
        need = f"{in_words(self.total)} a device, which has {in_words(room)}"
        return f"{self.stage}: {need}: {ADVICE[largest]}"


def print_plan(
    config: Config,
    console: Console,
    devices: int | None = None,
    room: int | None = None,
    topology: str | None = None,
) -> int:
    """Prints what every stage needs, and what does not fit.

    Args:
        config: of the run.
        console: prints for people.
        devices: how many devices there will be; None: those that are here.
        room: bytes of each; None: as they say.
        topology: name of a TPU's, `v5e:4x4`, whose devices need not be here; None: none.

    Returns:
        The exit code: 0 where all fits, else 2.

    Raises:
        UserError: anything wrong with the config, or with its mesh on so many devices.
    """
    here = jax.devices()
    if devices is not None and len(here) < devices:
        raise UserError(
            f"--devices: jax was started with {len(here)} devices; give --devices on the command "
            "line of a new process"
        )
    if topology is not None:
        here = tpu_devices(topology)
        room = tpu_memory(here[0].device_kind) if room is None else room
    used = here if devices is None else here[:devices]
    mesh, sender_mesh = make_mesh(config.mesh, used), make_sender_mesh(config.mesh, used)
    # the doctor is asked of one device: it is the stages' shapes that are wanted of it
    found = examined(replace(config, mesh=MeshConfig(data=1)), memory=False, files=False)
    for wrong in found.findings:
        if wrong.level == "error":
            raise UserError(f"{wrong.key}: {wrong.text}")
    found = replace(found, config=config)
    there = device_memory() if room is None else room
    kind = here[0].device_kind if devices is None else "planned on the host"
    many = f"{mesh.size} device{'s' * (mesh.size > 1)} ({kind})"
    own = "" if sender_mesh is None else f"; for the sender {sender_mesh.size} more, "
    own += "" if sender_mesh is None else _sizes(sender_mesh)
    console.print(
        f"{many}, {_sizes(mesh)}{own}, {in_words(there)} each",
        highlight=False,
        soft_wrap=True,
    )
    over = []
    for budget in budgets(found, mesh, there, sender_mesh):
        _show(budget, there, console)
        over += [line] if (line := budget.over(there)) else []
    if over:
        raise UserError("; ".join(over))
    return 0


def tpu_devices(topology: str) -> list[jax.Device]:
    """The devices of a TPU that need not be here; programs can be compiled for them.

    Args:
        topology: its name: the kind, and the chips along each side (`v5e:4x4`, `v4:2x2x1`).

    Raises:
        UserError: libtpu is not there, or knows no such TPU.
    """
    if find_spec("libtpu") is None:
        raise UserError(
            'plan --topology: the compiler for TPUs is not there; pip install "lw_jax[tpu]"'
        )
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # this host is none, and need not be asked
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise UserError(
            f"--topology: no TPU {topology!r} ({said(error, 160)}); for example v5e:4x4, v4:2x2x1"
        ) from error
    return list(found.devices)


def tpu_memory(kind: str) -> int:
    """Bytes of one device of a TPU.

    Raises:
        UserError: not known of this kind.
    """
    if kind not in TPU_GB:
        raise UserError(f"--device_gb: missing; say how many GB (10^9 bytes) a {kind} has")
    return TPU_GB[kind] * 2**30


def _sizes(mesh: Mesh) -> str:
    return " x ".join(f"{name} {size}" for name, size in mesh.shape.items())


def budgets(
    seen: Examination, mesh: Mesh, room: int, sender_mesh: Mesh | None = None
) -> Iterator[Budget]:
    """What each stage needs on a device, and on one of the sender's own.

    Args:
        seen: the config, its models and the lengths of its rows.
        mesh: the device mesh.
        room: bytes of a device; a step whose weights alone are more is not compiled.
        sender_mesh: the sender's own devices; None: it has none.
    """
    for name, stage in seen.config.stages.items():
        if stage.train is not None:
            where = f"stages.{name}.train"
            yield from _training(seen, where, stage.train, mesh, room, sender_mesh)
        elif stage.evaluate is not None:
            where = f"stages.{name}.evaluate"
            yield from _evaluation(seen, where, stage.evaluate, mesh, sender_mesh)


def _training(
    seen: Examination,
    key: str,
    cfg: TrainConfig,
    mesh: Mesh,
    room: int,
    sender_mesh: Mesh | None,
) -> Iterator[Budget]:
    for task, own in cfg.each().items():
        where = key if task is None else f"{key}.tasks.{task}"
        _check_rows(where, own, mesh, sender_mesh)
        make = partial(_step, seen, mesh, sender_mesh)
        own, need = settled(own, make, room)
        step = make(own)
        params = size_in_bytes(step.state.params)
        host: tuple[tuple[str, int], ...] = ()
        if cfg.reuse is not None:
            kept = (cfg.reuse.memory_gb, "memory"), (cfg.reuse.disk_gb, "files")
            host = tuple((f"kept in {place}, at most", int(gb * 1e9)) for gb, place in kept)
        yield Budget(
            where,
            (
                *_models(step.frozen),
                ("bridge", "bridge and heads", params),
                ("bridge", "optimiser and averages", size_in_bytes(step.state) - params),
                ("work", "batch", size_in_bytes(step.batch)),
                ("work", "activations and gradients", need.work),
                *_taps_ahead(step),
            ),
            host,
        )
        if (apart := estimate_sender(step, room)) is not None:
            parts = ("weights", READER, apart.frozen), ("work", "activations and taps", apart.work)
            yield Budget(f"{where}{OWN}", parts)


def _taps_ahead(step: AbstractStep) -> Iterator[tuple[str, str, int]]:
    """A sender on devices of its own is up to two batches ahead."""
    if step.apart is not None and step.bridge is not None:
        taps = step.apart.shapes(step.bridge, step.batch, step.batch["valid"].sharding)
        yield "work", "taps of the next two batches", 2 * size_in_bytes(taps)


def _step(
    seen: Examination, mesh: Mesh, sender_mesh: Mesh | None, train: TrainConfig
) -> AbstractStep:
    config, specs, sizes = seen.config, seen.specs, seen.sizes
    return abstract_step(config, train, specs, sizes, mesh, sender_mesh=sender_mesh)


def _evaluation(
    seen: Examination, key: str, cfg: EvaluateConfig, mesh: Mesh, sender_mesh: Mesh | None
) -> Iterator[Budget]:
    config, apart = seen.config, ways(mesh, "rows")
    frozen = abstract_models(config, seen.specs, mesh, cfg.layout or config.layout)
    parts = list(_models(frozen))
    reader = abstract_apart(config, seen.specs, sender_mesh)
    elsewhere = [] if reader is None else [("weights", READER, size_in_bytes(reader.model))]
    if cfg.of_whole_sender:
        own = size_in_bytes(seen.specs[SENDER].abstract(sender_mesh or mesh))
        whole = "weights", f"whole sender ({cfg.of_whole_sender[0]})", own
        (parts if reader is None else elsewhere).append(whole)
    rows = -(-cfg.batch_size // apart)
    caches = {}
    for name, model in frozen.receivers.items():
        tokens = sum(seen.sizes.get(f"{name}/{part}", 0) for part in ("context", "ask"))
        arch = model.arch
        heads = arch.kv_heads
        if heads % ways(mesh, "kv_heads") == 0:
            heads //= ways(mesh, "kv_heads")
        each = 2 * arch.layers * heads * arch.head_dim * model.params["embed"].dtype.itemsize
        caches[name] = rows * (tokens + cfg.decode.max_new_tokens) * each
    if caches:
        name = max(caches, key=lambda one: caches[one])
        parts.append(("cache", f"keys and values of {name}", caches[name]))
    yield Budget(key, tuple(parts))
    if elsewhere:
        yield Budget(f"{key}{OWN}", tuple(elsewhere))


def _models(frozen: FrozenModels) -> Iterator[tuple[str, str, int]]:
    if frozen.sender is not None and not isinstance(frozen.sender, Elsewhere):
        yield "weights", READER, size_in_bytes(frozen.sender)
    for name, model in frozen.receivers.items():
        yield "weights", f"receiver {name}", size_in_bytes(model)


def _check_rows(key: str, cfg: TrainConfig, mesh: Mesh, sender_mesh: Mesh | None) -> None:
    """Raises UserError if a batch cannot be split over the mesh, or over the sender's devices."""
    rows, parts = cfg.batch_size // cfg.accumulate, ways(mesh, "rows")
    if rows % parts:
        raise UserError(
            f"{key}: {rows} contexts a microbatch cannot be split over {parts} devices; "
            "change batch_size, accumulate, mesh.data or mesh.fsdp"
        )
    if sender_mesh is not None and cfg.batch_size % ways(sender_mesh, "rows"):
        raise UserError(
            f"{key}: {cfg.batch_size} contexts cannot be split over the sender's "
            f"{ways(sender_mesh, 'rows')} devices; change batch_size, mesh.sender.data or "
            "mesh.sender.fsdp"
        )


def _show(budget: Budget, room: int, console: Console) -> None:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(min_width=32)
    table.add_column(justify="right", no_wrap=True)
    for _, name, count in budget.parts:
        table.add_row(f"  {name}", in_words(count))
    left = f"{budget.total / room:.0%} of a device"
    table.add_row("  all", f"{in_words(budget.total)}", left)
    for name, count in budget.host:
        table.add_row(f"  host: {name}", in_words(count))
    console.print(budget.stage, highlight=False)
    console.print(table, highlight=False)
