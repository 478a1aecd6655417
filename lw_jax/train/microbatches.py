"""Gradients of a batch that is taken in parts, each as large as memory allows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lw_jax.layers.intermediates import Intermediates
from lw_jax.train.plan import Batch, LossTerms, Watched
from lw_jax.types import Array, PyTree


class Seen(NamedTuple):
    """What a batch gives besides its loss.

    Attributes:
        terms: of the loss.
        watched: what is logged and is no part of the loss.
        intermediates: what the bridge's parts sowed, where it is asked for.
    """

    terms: LossTerms
    watched: Watched
    intermediates: Intermediates


Counts = Mapping[tuple[str, str], Array]
"""By what the terms of the loss are divided."""
LossFn = Callable[[PyTree, Batch, Array, Counts | None], tuple[Array, Seen]]
"""`(params, batch, rng, counts) -> (loss, seen)`; without counts the batch's own are taken."""
GradFn = Callable[[PyTree, Batch, Array], tuple[tuple[Array, Seen], PyTree]]
"""`(params, batch, rng) -> ((loss, seen), gradients)`."""


def microbatched(loss_fn: LossFn, parts: int) -> GradFn:
    """The gradients of a loss over a batch, part by part.

    They are those of the whole batch: every part's terms are divided by the counts of the whole.

    Args:
        loss_fn: the loss of a batch.
        parts: how many parts; 1: the batch at once.
    """
    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
    if parts == 1:
        return lambda params, batch, rng: grad_fn(params, batch, rng, None)

    def gradients(params: PyTree, batch: Batch, rng: Array) -> Any:
        split = split_batch(batch, parts), jax.random.split(rng, parts)

        def counts_of(part: tuple[Batch, Array]) -> Counts:
            # Counts depend on masks alone: the model's part of this trace is dead code.
            _, seen = loss_fn(params, *part, None)
            return {key: term.count for key, term in seen.terms.items()}

        counts = jax.tree.map(lambda x: jnp.sum(x, 0), jax.lax.map(counts_of, split))

        def sums_of(part: tuple[Batch, Array]) -> tuple[Any, Intermediates]:
            (loss, seen), grads = grad_fn(params, *part, counts)
            return (loss, seen.terms, seen.watched, grads), seen.intermediates

        def one(carry: Any, part: tuple[Batch, Array]) -> tuple[Any, Intermediates]:
            sums, intermediates = sums_of(part)
            return jax.tree.map(jnp.add, carry, sums), intermediates

        shapes, _ = jax.eval_shape(sums_of, jax.tree.map(lambda x: x[0], split))
        zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        (loss, terms, watched, grads), stacked = jax.lax.scan(one, zero, split)
        return (loss, Seen(terms, watched, jax.tree.map(_whole_batch, stacked))), grads

    return gradients


def split_batch(batch: Batch, parts: int) -> Batch:
    """[parts * n, ...] -> [parts, n, ...]: microbatches of whole contexts."""
    return {k: x.reshape(parts, x.shape[0] // parts, *x.shape[1:]) for k, x in batch.items()}


def _whole_batch(x: Array) -> Array:
    """[parts, n, ...] of the microbatches -> [parts * n, ...]; [parts] -> the mean."""
    return jnp.mean(x) if x.ndim == 1 else x.reshape(-1, *x.shape[2:])
