"""Holds what is delivered near the receiver's loudness: its RMS, its learned scale, its colour."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import jax.numpy as jnp

from lw_jax.errors import UserError
from lw_jax.objectives.base import Term, masked
from lw_jax.objectives.context import Context
from lw_jax.objectives.targets import given_slots
from lw_jax.types import Array
from lw_jax.utils.schedule import Schedule


@dataclass(frozen=True)
class Config:
    """Squared deviation of the soft tokens' loudness.

    Args:
        weight: of this objective in the loss (the earlier systems: scale 0.05, colour 1e-4).
        schedule: factor of the weight over the steps.
        of: `rms`, each token's RMS over that of the receiver's embeddings, from 1; `scale`, the
            learned scale over its start, from 1; `colour`, the channels' gains from 1 and biases
            from 0.
    """

    at_rest: ClassVar[float] = 1e-4  # a deviation of 1 %

    weight: float = 0.05
    schedule: Schedule = Schedule()
    of: Literal["rms", "scale", "colour"] = "rms"


def terms(config: Config, context: Context, receiver: str) -> dict[str, Term]:
    """The mean square, per soft token (`rms`) or once for a batch."""
    slots, mask = given_slots(context, receiver, "scale_l2")
    if config.of == "rms":
        own = context.dims.receivers[receiver].embed_rms
        rms = jnp.sqrt(jnp.mean(jnp.square(slots.astype(jnp.float32)), axis=-1) + 1e-12)
        counts = mask & context.valid_contexts[:, None]
        return {"scale_l2": masked(jnp.square(rms / own - 1.0), counts)}
    value = sown(
        context, receiver, config.of, "scale_l2.of", "set its conditioning or colour, or use rms"
    )
    loss = value if config.of == "colour" else jnp.square(value - 1.0)
    return {"scale_l2": Term(loss, jnp.float32(1.0))}


def sown(context: Context, receiver: str, name: str, key: str, remedy: str) -> Array:
    """What the soft tokens' reader noted of its scale or its colour.

    Raises:
        UserError: it has none; key: of the objective, remedy: for this message.
    """
    found = context.reader_intermediates(receiver).get("soft_tokens", {})
    if name not in found:
        raise UserError(f"objectives.{key}: bridge.reader.soft_tokens has no {name}; {remedy}")
    return cast(Array, found[name])
