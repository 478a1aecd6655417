"""Every soft token lies where the receiver has the stretch of text that it stands for.

An alignment stage before compression: targets are the receiver's own mean states over equal
stretches of the text, one for each slot, so order is given and content is local. The target needs
no answers and no run of the receiver beyond `layer`.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp

from lw_jax.layers.pooling import stretch_weights
from lw_jax.objectives.base import Objective, Terms, masked
from lw_jax.objectives.common.context import Context
from lw_jax.objectives.common.measures import Distance, cosine, distance
from lw_jax.objectives.common.targets import slot_states, text_states
from lw_jax.utils.bounds import LayersOrNone, Weight


@dataclass(frozen=True)
class Config(Objective):
    """Distance of each soft token to the mean of its stretch of the text.

    Args:
        layer: both are taken after so many layers of the receiver; 0: its input embeddings.
        distance: `relative_mse` (over the target's mean square), `mse`, or `cosine` (1 - cosine).
        mse_weight: so many times the `mse` is added (the earlier systems' per-token PCA: `cosine`
            and 0.1).
    """

    layer: LayersOrNone = 0
    distance: Distance = "relative_mse"
    mse_weight: Weight = 0.0

    def terms(self, ctx: Context, receiver: str) -> Terms:
        """The distance per soft token."""
        slots, mask = slot_states(ctx, receiver, self.layer)
        text, real = text_states(ctx, receiver, self.layer)
        index = jnp.broadcast_to(jnp.arange(real.shape[1])[None], real.shape)
        used = jnp.maximum(1, jnp.sum(mask, axis=1))
        weights = stretch_weights(index, real, used, slots.shape[1])
        target = jnp.einsum("bmt,btd->bmd", weights, text.astype(jnp.float32))
        counts = mask & ctx.valid_contexts[:, None] & jnp.any(real, axis=1)[:, None]
        apart = distance(self.distance, slots, target)
        if self.mse_weight:
            apart = apart + self.mse_weight * distance("mse", slots, target)
        alike = masked(cosine(slots, target), counts)
        return Terms(masked(apart, counts), watched={"slot_cosine": alike}, cosine=alike)
