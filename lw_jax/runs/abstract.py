"""A stage's training step from shapes alone: no weights, no rows, no network.

`step.lower(*arguments).compile()` runs the partitioner and says what memory the step takes;
`jax.eval_shape(step, *arguments)` only checks that the parts of a bridge fit together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from lw_jax.bridge.apart import SenderApart, sender_taps
from lw_jax.bridge.bridge import Bridge, fresh
from lw_jax.bridge.config import SOURCE
from lw_jax.config.schema import Config
from lw_jax.mesh import batch_sharding, make_sender_mesh, trained_shardings
from lw_jax.models.dims import sizes
from lw_jax.models.frozen import Elsewhere, Frozen, FrozenModels
from lw_jax.models.spec import FrozenSpec
from lw_jax.runs.frozen import Make, make_receivers, make_sender, sender_arch
from lw_jax.text.layout import Prompt
from lw_jax.text.layout_config import LayoutConfig
from lw_jax.train.config import TrainConfig
from lw_jax.train.curriculum import phases_of
from lw_jax.train.optimiser import stage_optimiser
from lw_jax.train.plan import Plan, init_heads, plan_at
from lw_jax.train.state import TrainState, new_state
from lw_jax.train.step import make_step
from lw_jax.types import PyTree
from lw_jax.utils.schedule import BatchKind

HEAD = (0, 0, 0, 0)
"""Stands for [BOS] and primer; only its length matters."""


@dataclass(frozen=True)
class AbstractStep:
    """A jitted step and its arguments as `jax.ShapeDtypeStruct`s with shardings.

    Attributes:
        step: the jitted step.
        state: the training state.
        frozen: the frozen models.
        batch: the batch, from `batch_shapes`.
        plan: the step's objectives.
        trained: True for every leaf of the parameters that the stage trains.
        apart: a sender on devices of its own; None: it is among the frozen models, or there is
            none.
        bridge: what is trained; None: not known.
    """

    step: jax.stages.Wrapped
    state: TrainState
    frozen: FrozenModels
    batch: dict[str, jax.ShapeDtypeStruct]
    plan: Plan
    trained: PyTree
    apart: SenderApart | None = None
    bridge: Bridge | None = None

    @property
    def arguments(self) -> tuple[Any, ...]:
        """The arguments of `step`."""
        return self.state, self.frozen, self.batch

    @cached_property
    def traced(self) -> jax.stages.Traced:
        """The traced step."""
        return self.step.trace(*self.arguments)

    @cached_property
    def traced_sender(self) -> jax.stages.Traced | None:
        """The traced program of a sender on devices of its own; None: it has none."""
        if self.apart is None or self.bridge is None:
            return None
        return sender_taps.trace(*self.apart.call(self.bridge, self.batch))


def abstract_step(
    config: Config,
    train: TrainConfig,
    specs: Mapping[str, FrozenSpec],
    lengths: Mapping[str, int],
    mesh: Mesh,
    kind: BatchKind = "latent",
    at: int = 0,
    sender_mesh: Mesh | None = None,
) -> AbstractStep:
    """The first step of a train stage, or one with the objectives of a later step.

    Args:
        config: config of the run.
        train: config of the stage.
        specs: the frozen models by name.
        lengths: tokens of each part of a batch, as `lw_jax.text.collate.measure` gives them.
        mesh: the device mesh.
        kind: what the step trains.
        at: the step (0-based) whose objectives it has.
        sender_mesh: the sender's own devices; None: as the config says of those that are here.

    Raises:
        UserError: a tap beyond the sender, readers that exclude each other, ...
    """
    bridge = abstract_bridge(config, specs)
    objectives = train.objectives or config.objectives
    params = jax.eval_shape(partial(_params, bridge, objectives), jax.random.key(0))
    optimiser, trained = stage_optimiser(train, bridge, objectives, params)
    state = jax.eval_shape(lambda p: new_state(p, optimiser, jax.random.key(0), train.ema), params)
    plan, first = plan_at(objectives, at, kind), phases_of(train.curriculum, train.steps)[0]
    batch = batch_shapes(train, list(config.receivers), lengths, mesh)
    apart = abstract_apart(config, specs, sender_mesh)
    if apart is not None:
        batch |= apart.shapes(bridge, batch, batch_sharding(mesh))
    return AbstractStep(
        make_step(train, bridge, optimiser, mesh, plan, trained=trained, ratio=first.ratio),
        jax.tree.map(_at, state, trained_shardings(mesh, state)),
        abstract_models(config, specs, mesh, train.layout or config.layout),
        batch,
        plan,
        trained,
        apart,
        bridge,
    )


def abstract_bridge(config: Config, specs: Mapping[str, FrozenSpec]) -> Bridge:
    """The bridge between these frozen models, whose receivers are not measured.

    Args:
        config: config of the run.
        specs: the frozen models by name.

    Raises:
        UserError: a tap beyond the sender, or no source reads it.
    """
    assert config.bridge is not None
    receivers = {name: sizes(specs[name].arch) for name in config.receivers}
    return Bridge(config.bridge, config.bridge.dims(sender_arch(specs), receivers))


def abstract_models(
    config: Config, specs: Mapping[str, FrozenSpec], mesh: Mesh, layout: LayoutConfig
) -> FrozenModels:
    """The frozen models of a stage on the mesh, from shapes: the sender only up to its highest tap.

    Args:
        config: config of the run.
        specs: the frozen models by name.
        mesh: the device mesh.
        layout: layout of the stage.
    """

    make = _making(mesh)
    prompts = dict.fromkeys(config.receivers, Prompt(HEAD, layout.with_text, layout.transform))
    sender: Frozen | Elsewhere | None = make_sender(config, specs, make)
    if sender is not None and config.mesh.sender is not None:
        sender = Elsewhere(sender.arch, sender.attention)
    return FrozenModels.of(sender, make_receivers(config, specs, make), prompts)


def abstract_apart(
    config: Config, specs: Mapping[str, FrozenSpec], mesh: Mesh | None = None
) -> SenderApart | None:
    """A sender on devices of its own, from shapes; None: it has none.

    Args:
        config: config of the run.
        specs: the frozen models by name.
        mesh: its devices; None: as the config says of those that are here.
    """
    own = make_sender_mesh(config.mesh) if mesh is None else mesh
    sender = None if own is None else make_sender(config, specs, _making(own))
    return None if own is None or sender is None else SenderApart(sender, own)


def _making(mesh: Mesh) -> Make:
    return lambda spec, layers, head: spec.abstract(mesh, layers, head)


def batch_shapes(
    train: TrainConfig,
    receivers: list[str],
    lengths: Mapping[str, int],
    mesh: Mesh,
) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of a batch of `lw_jax.text.collate`.

    Args:
        train: config of the stage.
        receivers: names of the receivers.
        lengths: tokens of each part of a batch.
        mesh: the device mesh.
    """
    rows, asked = train.batch_size, train.batch_size * train.questions
    where = batch_sharding(mesh)

    def array(*shape: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

    batch = {
        "valid": array(asked, dtype=jnp.bool_),
    }
    for key in (key for key in lengths if key.partition("/")[0] == SOURCE):
        batch[f"{key}/ids"] = array(rows, lengths[key])
        batch[f"{key}/lengths"] = batch[f"{key}/skip"] = array(rows)
    for name in receivers:
        for part, count in (("context", rows), ("ask", asked), ("answer", asked)):
            batch[f"{name}/{part}/ids"] = array(count, lengths[f"{name}/{part}"])
            batch[f"{name}/{part}/lengths"] = array(count)
        batch[f"{name}/answer/start"] = array(asked)
    return batch


def size_in_bytes(tree: PyTree) -> int:
    """Bytes that one device holds of all leaves."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        shape = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
        count = 1
        for size in shape:
            count *= size
        total += count * (
            4 if jnp.issubdtype(leaf.dtype, jax.dtypes.extended) else leaf.dtype.itemsize
        )
    return total


def _params(bridge: Bridge, objectives: Any, rng: Any) -> PyTree:
    return {"bridge": fresh(bridge, rng), "heads": init_heads(objectives, bridge.dims, rng)}


def _at(leaf: jax.ShapeDtypeStruct, where: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)
