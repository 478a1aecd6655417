"""The pretraining step of a small decoder: next-token cross-entropy, answers weighted more."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from lw_jax.models.arch import Arch
from lw_jax.models.decoder import embed_tokens, run
from lw_jax.models.head import TokenScores, chunked_cross_entropy
from lw_jax.pretrain.batches import ANSWER, REST, WRITTEN
from lw_jax.train.loop import StepFn
from lw_jax.train.state import TrainState, apply_gradients, keep_finite
from lw_jax.types import Array, PyTree

_KINDS = (REST, ANSWER, WRITTEN)


def score_tokens(arch: Arch, params: PyTree, batch: Any, dtype: Any) -> tuple[TokenScores, Array]:
    """Scores [B, T] of the tokens after the first, and a mask [B, T] of those that are real.

    Args:
        arch: the decoder.
        params: its weights.
        batch: `ids` [B, T+1], `lengths` [B] (see `lw_jax.pretrain.batches.pad`).
        dtype: dtype of the residual stream.
    """
    ids, lengths = batch["ids"], batch["lengths"]
    h = embed_tokens(params, ids[:, :-1]).astype(dtype)
    index = jnp.arange(h.shape[1])[None, :]
    positions = jnp.broadcast_to(index, h.shape[:2])
    out = run(arch, params, h, positions=positions, lengths=lengths - 1)
    scores = chunked_cross_entropy(arch, params, out.h, ids[:, 1:])
    return scores, index < (lengths - 1)[:, None]


def make_step(
    arch: Arch,
    optimiser: optax.GradientTransformation,
    rest_weight: float,
    written_weight: float,
    dtype: Any,
) -> StepFn:
    """The compiled step: (state, batch) -> (state, metrics); the state is donated.

    Args:
        arch: the decoder.
        optimiser: the optimiser.
        rest_weight: weight of a token of a text.
        written_weight: weight of a token of a copy or solution; a token of an answer has 1.
        dtype: dtype of the compute.
    """

    def loss_fn(params: PyTree, batch: Any) -> tuple[Array, dict[str, Array]]:
        scores, real = score_tokens(arch, params, batch, dtype)
        kinds = batch["kinds"][:, 1:]
        rest, answer, written = ((real & (kinds == k)).astype(jnp.float32) for k in _KINDS)
        weight = answer + rest_weight * rest + written_weight * written
        loss = jnp.sum(weight * scores.nll) / jnp.sum(weight)
        right = scores.correct(batch["ids"][:, 1:])
        metrics = {
            "loss": loss,
            "nll/answer": _mean(scores.nll, answer),
            "nll/rest": _mean(scores.nll, rest),
            "accuracy/answer": _mean(right, answer),
            "accuracy/written": _mean(right, written),
        }
        return loss, metrics

    def step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Array]]:
        (_, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params, batch)
        metrics["grad_norm"] = optax.tree.norm(grads)
        return keep_finite(state, apply_gradients(state, grads, optimiser), metrics)

    return jax.jit(step, donate_argnums=0)


def _mean(x: Array, weight: Array) -> Array:
    return jnp.sum(x * weight) / jnp.maximum(1.0, jnp.sum(weight))
