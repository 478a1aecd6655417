"""What an objective sees, and what it returns.

An objective is a module with a `Config` (fields `weight` and `schedule`) and
`terms(config, context, receiver) -> {name: Term}`. Sums and counts are returned apart, so that
masked means merge right over microbatches and devices.

A `Config` of an objective that holds something where it is may have a class variable `at_rest`: at
a loss of that or less it may have no gradient without an alarm.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import struct

from lw_jax.types import Array

COSINE = "reconstruction_cosine"
"""Watched by the objectives that reconstruct the source; schedules may be gated on it."""


@struct.dataclass
class Term:
    """A sum of losses, and how many were summed (not differentiated). Both float32 scalars."""

    total: Array
    count: Array


def mean(term: Term) -> Array:
    """The mean of a term; 0 when nothing was counted."""
    return term.total / jnp.maximum(1.0, term.count)


def masked(values: Array, mask: Array) -> Term:
    """A term from values [N, A] and their mask."""
    keep = mask.astype(jnp.float32)
    return Term(jnp.sum(values * keep), jnp.sum(keep))
