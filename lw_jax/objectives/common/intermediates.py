"""What objectives read of the bridge's inner values: codes of the bottleneck, a reader's scale."""

from __future__ import annotations

from typing import cast

from lw_jax.errors import UserError
from lw_jax.objectives.common.context import Context
from lw_jax.types import Array


def of_bottleneck(ctx: Context, name: str, remedy: str) -> Array:
    """A value that the bottleneck sowed.

    Args:
        ctx: of the step.
        name: of the value.
        remedy: what sows it, for the message.

    Raises:
        UserError: this bridge's bottleneck sows no such value.
    """
    found = ctx.intermediates.get("bottleneck", {})
    if name not in found:
        raise UserError(f"this bridge's bottleneck has no {name}; {remedy}")
    return cast(Array, found[name])


def of_soft_tokens(ctx: Context, receiver: str, name: str, remedy: str) -> Array:
    """A value that a reader of soft tokens sowed, for one receiver.

    Args:
        ctx: of the step.
        receiver: whose reader.
        name: of the value.
        remedy: what would have it sown, for the message.

    Raises:
        UserError: no reader sows such a value.
    """
    for found in ctx.reader_intermediates(receiver).values():
        if name in found:
            return cast(Array, found[name])
    raise UserError(f"no reader of {receiver} has a {name}; {remedy}")


def real_slots(ctx: Context, codes: Array) -> Array:
    """[B, M] bool: slots with codes [B, M, n], of contexts of which some question counts."""
    return (codes[..., 0] >= 0) & ctx.valid_contexts[:, None]
