"""The output head: logits, and losses chunked over positions, so that no [B, T, V] array exists.

A scan takes a slice of the positions at a time and its body is checkpointed: backward, the logits
of a slice are computed again. Everything after the matrix product is float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import struct
from jax import lax

from lw_jax.models.arch import Arch
from lw_jax.models.layer import rms_norm
from lw_jax.models.quant import einsum
from lw_jax.models.split import embedding_table, gathered
from lw_jax.types import Array, PyTree

LOGITS_AT_ONCE = 2**25
"""Logits that one slice may hold (134 MB in float32), unless the caller gives a chunk size."""


@struct.dataclass
class TokenScores:
    """Scores of the labels, and facts about the distributions; all arrays are shaped like labels.

    Attributes:
        nll: -log p(label), nats.
        argmax: int32, the most probable token.
        rank: int32, how many tokens are more probable than the label (0: none).
        entropy: entropy of the distribution, nats.
        margin: largest logit minus the second largest.
        uniform: mean over the vocabulary of -log p, for label smoothing.
    """

    nll: Array
    argmax: Array
    rank: Array
    entropy: Array
    margin: Array
    uniform: Array

    def correct(self, labels: Array) -> Array:
        """Whether greedy decoding would have chosen the label."""
        return self.argmax == labels


def logits(arch: Arch, params: PyTree, h: Array) -> Array:
    """[N, V] float32 next-token logits of h [N, D], the stream after the last layer."""
    x = rms_norm(h, params["final_norm"], arch.norm_eps)
    if arch.tied:
        return einsum("nd,vd->nv", x, embedding_table(params), jnp.float32)
    return einsum("nd,dv->nv", x, gathered(params["head"]), jnp.float32)


def chunked_cross_entropy(
    arch: Arch,
    params: PyTree,
    h: Array,
    labels: Array,
    chunk: int | None = None,
    mask: Array | None = None,
) -> TokenScores:
    """Scores labels [...] under h [..., D], a slice of the positions at a time.

    Nothing is reduced: weights and masks are left to the caller. Results that are not used cost
    nothing under jit.

    Args:
        arch: the decoder.
        params: its weights.
        h: [..., D] stream after the last layer.
        labels: [...] int tokens.
        chunk: positions in a slice; None: as `LOGITS_AT_ONCE` allows.
        mask: [...] bool, positions that are looked at; others may be left out, and are 0 then.
    """

    def score(h: Array, labels: Array) -> TokenScores:
        return _scores(logits(arch, params, h), labels)

    return _by_chunks(arch, score, chunk, labels.shape, h, labels, mask=mask)


def chunked_kl(
    arch: Arch,
    params: PyTree,
    h_student: Array,
    h_teacher: Array,
    tau: float = 1.0,
    chunk: int | None = None,
) -> Array:
    """KL(teacher || student) [...] in nats at a temperature (Hinton 2015).

    No gradient reaches the teacher. The factor tau^2 that keeps gradients comparable between
    temperatures is left to the caller.

    Args:
        arch: the decoder.
        params: its weights.
        h_student: [..., D] states of the student.
        h_teacher: [..., D] states of the teacher.
        tau: temperature.
        chunk: positions in a slice; None: as `LOGITS_AT_ONCE` allows.
    """

    def divergence(student: Array, teacher: Array) -> Array:
        return _divergence(logits(arch, params, student), logits(arch, params, teacher), tau)

    teacher = lax.stop_gradient(h_teacher)
    return _by_chunks(arch, divergence, chunk, h_student.shape[:-1], h_student, teacher)


def chunked_scores_and_kl(
    arch: Arch,
    params: PyTree,
    h_student: Array,
    h_teacher: Array,
    labels: Array,
    tau: float = 1.0,
    chunk: int | None = None,
    mask: Array | None = None,
) -> tuple[TokenScores, Array]:
    """`chunked_cross_entropy` and `chunked_kl` of the same states in one pass of the head: the
    student's logits are made once, and their gradients added up before they go back through it.

    Args:
        arch: the decoder.
        params: its weights.
        h_student: [..., D] states of the student.
        h_teacher: [..., D] states of the teacher.
        labels: [...] int tokens.
        tau: temperature of the KL alone.
        chunk: positions in a slice; None: as `LOGITS_AT_ONCE` allows.
        mask: [...] bool, positions that are looked at; others may be left out, and are 0 then.
    """

    def both(student: Array, teacher: Array, labels: Array) -> tuple[TokenScores, Array]:
        z = logits(arch, params, student)
        return _scores(z, labels), _divergence(z, logits(arch, params, teacher), tau)

    teacher = lax.stop_gradient(h_teacher)
    found: tuple[TokenScores, Array] = _by_chunks(
        arch, both, chunk, labels.shape, h_student, teacher, labels, mask=mask
    )
    return found


def _scores(z: Array, labels: Array) -> TokenScores:
    """Scores of labels [N] under logits z [N, V]."""
    total = jax.nn.logsumexp(z, axis=-1)
    of_label = jnp.take_along_axis(z, labels[:, None], axis=-1)
    best = jnp.argmax(z, axis=-1)
    others = jnp.where(jnp.arange(z.shape[-1])[None] == best[:, None], -jnp.inf, z)
    return TokenScores(
        nll=total - of_label[:, 0],
        argmax=best.astype(jnp.int32),
        rank=jnp.sum(z > of_label, axis=-1, dtype=jnp.int32),
        entropy=total - jnp.sum(jax.nn.softmax(z, axis=-1) * z, axis=-1),
        margin=jnp.max(z, axis=-1) - jnp.max(others, axis=-1),
        uniform=total - jnp.mean(z, axis=-1),
    )


def _divergence(z: Array, z_teacher: Array, tau: float) -> Array:
    """KL(teacher || student) [N] of logits [N, V]; no gradient reaches the teacher's."""
    log_q = jax.nn.log_softmax(z / tau, axis=-1)
    log_p = lax.stop_gradient(jax.nn.log_softmax(z_teacher / tau, axis=-1))
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def _by_chunks(
    arch: Arch,
    score: Callable[..., Any],
    chunk: int | None,
    shape: tuple[int, ...],
    *inputs: Array,
    mask: Array | None = None,
) -> Any:
    """score(slice of each input) over all positions, joined again in `shape`.

    With a mask, and more than one slice, positions in it come first; slices without any are left
    out, and all positions of these are 0.
    """
    total = math.prod(shape)
    chunk = chunk or max(1, LOGITS_AT_ONCE // arch.vocab_size)
    slices = max(1, -(-total // chunk))
    chunk = -(-total // slices)
    if mask is not None and slices > 1:
        return _in_mask(score, chunk, slices, shape, mask, *inputs)

    def split(x: Array) -> Array:
        flat = x.reshape(total, *x.shape[len(shape) :])
        padded = jnp.pad(flat, [(0, slices * chunk - total)] + [(0, 0)] * (flat.ndim - 1))
        # Every slice takes positions from all rows, so rows that are split over a mesh stay split.
        return rearrange(padded, "(c s) ... -> s c ...", s=slices)

    body = jax.checkpoint(lambda *xs: score(*xs), prevent_cse=False)
    _, found = lax.scan(lambda carry, xs: (carry, body(*xs)), None, tuple(map(split, inputs)))
    return jax.tree.map(lambda y: rearrange(y, "s c -> (c s)")[:total].reshape(shape), found)


def _in_mask(
    score: Callable[..., Any],
    chunk: int,
    slices: int,
    shape: tuple[int, ...],
    mask: Array,
    *inputs: Array,
) -> Any:
    """`_by_chunks` of positions in a mask, of more than one slice."""
    total = math.prod(shape)
    order = jnp.argsort(~mask.reshape(total), stable=True)
    count = jnp.sum(mask)

    def split(x: Array) -> Array:
        flat = jnp.take(x.reshape(total, *x.shape[len(shape) :]), order, axis=0)
        padded = jnp.pad(flat, [(0, slices * chunk - total)] + [(0, 0)] * (flat.ndim - 1))
        return rearrange(padded, "(s c) ... -> s c ...", s=slices)

    parts = tuple(map(split, inputs))
    shapes = jax.eval_shape(score, *(part[0] for part in parts))
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def body(index: Array, *xs: Array) -> Any:
        return lax.cond(index * chunk < count, lambda: score(*xs), lambda: nothing)

    checkpointed = jax.checkpoint(body, prevent_cse=False)
    places = jnp.arange(slices)
    _, found = lax.scan(lambda carry, xs: (carry, checkpointed(*xs)), None, (places, *parts))
    back = jnp.zeros_like(order).at[order].set(jnp.arange(total))
    return jax.tree.map(lambda y: rearrange(y, "s c -> (s c)")[:total][back].reshape(shape), found)
