"""A sender on devices of its own: a program there makes its taps, and the others are given them.

The programs of training and evaluation know it as `Elsewhere`, and find its taps in the batch.
Nothing waits: the copies begin when the taps are there, and the sender reads the next batch while
the other devices work on this one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from lw_jax.bridge.bridge import Bridge, kept_taps
from lw_jax.mesh import batch_sharding, moved_rows, put_batch, ways
from lw_jax.models.frozen import Elsewhere, Sender
from lw_jax.types import Array, SourceTokens

PARTS = ("ids", "lengths", "skip")
Batch = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class SenderApart:
    """A sender on devices of its own.

    Attributes:
        model: its layers up to the highest tap, on them.
        mesh: these devices.
    """

    model: Sender
    mesh: Mesh

    @property
    def elsewhere(self) -> Elsewhere:
        """The sender as programs of other devices know it."""
        return Elsewhere(self.model.arch, self.model.attention)

    def taps(self, bridge: Bridge, batch: Batch, where: NamedSharding) -> dict[str, Array]:
        """The taps of a batch, on other devices; nothing is waited for.

        Args:
            bridge: whose views read the sender.
            batch: of `lw_jax.text.collate`, on the host or on other devices.
            where: where the rows of a batch lie there.

        Returns:
            [B, n, T, D] by `kept_taps`.
        """
        asked = {key: np.asarray(batch[key]) for key in _asked(bridge)}
        rows = len(next(iter(asked.values())))
        own = batch_sharding(self.mesh)
        if over := -rows % ways(self.mesh, "rows"):
            asked = {key: np.concatenate([x, x[:1].repeat(over, 0)]) for key, x in asked.items()}
        made = sender_taps(bridge, own, self.model, put_batch(self.mesh, asked))
        return {key: moved_rows(x, where, rows) for key, x in made.items()}

    def shapes(self, bridge: Bridge, batch: Batch, where: NamedSharding) -> dict[str, Any]:
        """What stands for `taps` when a program is traced."""
        made = sender_taps.eval_shape(*self.call(bridge, batch))
        return {k: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where) for k, x in made.items()}

    def call(self, bridge: Bridge, batch: Batch) -> tuple[Any, ...]:
        """What stands for the arguments of `sender_taps` when it is traced for such a batch."""
        own = batch_sharding(self.mesh)
        rows = {
            key: jax.ShapeDtypeStruct(batch[key].shape, batch[key].dtype, sharding=own)
            for key in _asked(bridge)
        }
        return bridge, own, self.model, rows


@partial(jax.jit, static_argnums=(0, 1))
def sender_taps(
    bridge: Bridge, where: NamedSharding, sender: Sender, batch: dict[str, Array]
) -> dict[str, Array]:
    """The taps [B, n, T, D] of every view that reads the sender, by `kept_taps`.

    Args:
        bridge: the bridge.
        where: where the rows of a batch lie on the sender's devices.
        sender: the sender.
        batch: the tokens of these views.
    """
    found = {}
    for key, source in _read(bridge).items():
        tokens = SourceTokens(*(batch[f"{key}/{part}"] for part in PARTS))
        states = jnp.moveaxis(source.extract(sender, tokens, None).states, 0, 1)
        found[kept_taps(key)] = jax.lax.with_sharding_constraint(states, where)
    return found


def _read(bridge: Bridge) -> dict[str, Any]:
    """The sources that read the sender, by their keys in a batch."""
    return {
        bridge.config.batch_key(name): source
        for name, source in bridge.config.views.items()
        if source.reads_sender and source.reads_receiver is None
    }


def _asked(bridge: Bridge) -> list[str]:
    """The keys in a batch of what the sender reads."""
    return [f"{key}/{part}" for key in _read(bridge) for part in PARTS]
