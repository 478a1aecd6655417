"""What the objectives on discrete codes read from the bottleneck's notes."""

from __future__ import annotations

from lw_jax.errors import UserError
from lw_jax.objectives.context import Context
from lw_jax.types import Array


def sown(context: Context, name: str, objective: str, bottlenecks: str) -> Array:
    """A value that the bottleneck noted.

    Raises:
        UserError: this bridge's bottleneck notes no such value; names those that do.
    """
    held = context.intermediates.get("bottleneck", {})
    if name not in held:
        raise UserError(
            f"objectives.{objective}: this bridge's bottleneck has no {name}; "
            f"set bridge.bottleneck.{bottlenecks}"
        )
    return held[name]


def real_slots(context: Context, codes: Array) -> Array:
    """[B, M] bool: slots with codes [B, M, n], of contexts of which some question counts."""
    return (codes[..., 0] >= 0) & context.valid_contexts[:, None]
