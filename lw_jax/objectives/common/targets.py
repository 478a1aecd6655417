"""What objectives compare: what a receiver is given, the source's states, texts as it reads them.

An objective's head reads what the receiver is given. `pre_scale` is there because the earlier
systems read the slots before the reader's scaling, which a head can satisfy without moving what the
receiver sees (fault 14 of docs/faults.md).
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp

from lw_jax.errors import UserError
from lw_jax.models.decoder import Run, embed_tokens, run
from lw_jax.models.dims import BridgeDims
from lw_jax.models.frozen import FrozenDecoder
from lw_jax.models.head import TokenScores, chunked_cross_entropy
from lw_jax.objectives.common.context import Context, Pass
from lw_jax.receiver.answer import asked, message_of, segments
from lw_jax.receiver.pack import Segment, gather_states
from lw_jax.receiver.read import Laid, head_segment, lay_out, message_segment, text_message
from lw_jax.types import Array, Delivery

HeadInput = Literal["delivered", "pre_scale"]


def answer_scores(
    ctx: Context, receiver: str, first: int | None = None
) -> tuple[TokenScores, Array, Array]:
    """Scores of the answer's tokens read from the latent, their labels and the mask of those that
    count, all [N, A]; of the `first` tokens alone if a number is given."""
    reading, model = ctx.reading(receiver, Pass("latent")), ctx.frozen.receivers[receiver]
    hidden, labels, mask = (x[:, :first] for x in (reading.hidden, reading.labels, reading.mask))
    if first is None:
        scored, _ = ctx.answers(receiver)
    else:
        scored = chunked_cross_entropy(model.arch, model.params, hidden, labels)
    return scored, labels, mask & ctx.valid[:, None]


def first_token(ctx: Context, receiver: str, asked: Pass) -> tuple[TokenScores, Array]:
    """Scores [N, 1] of the first answer token that is no space after one pass, and the mask [N, 1]
    of those that count. It is the token that the metrics look at as well."""
    reading, model = ctx.reading(receiver, asked), ctx.frozen.receivers[receiver]
    start = ctx.batch[f"{receiver}/answer/start"][:, None]
    hidden = jnp.take_along_axis(reading.hidden, start[..., None], axis=1)
    labels, mask = (jnp.take_along_axis(x, start, axis=1) for x in (reading.labels, reading.mask))
    scored = chunked_cross_entropy(model.arch, model.params, hidden, labels)
    return scored, mask & ctx.valid[:, None]


def given_slots(
    ctx: Context, receiver: str, head_input: HeadInput = "delivered"
) -> tuple[Array, Array]:
    """Soft tokens (or, before scaling, the latent slots) [B, P, width] and their mask [B, P].

    Raises:
        UserError: the receiver is given no soft tokens.
    """
    if head_input == "pre_scale":
        return ctx.latent.slots, ctx.latent.mask
    delivery = ctx.deliveries[receiver]
    if delivery.embeds is None:
        raise UserError(
            f"reads soft tokens, and receiver {receiver!r} is given none; "
            "set a reader that delivers some"
        )
    mask = delivery.mask
    return delivery.embeds, jnp.ones(delivery.embeds.shape[:2], bool) if mask is None else mask


def given_width(dims: BridgeDims, receiver: str, head_input: HeadInput = "delivered") -> int:
    """Width of `given_slots`."""
    return dims.latent_dim if head_input == "pre_scale" else dims.receivers[receiver].width


def counted(ctx: Context, mask: Array) -> Array:
    """[B] bool: contexts that count and have something in mask [B, T]."""
    return ctx.valid_contexts & jnp.any(mask, axis=1)


def source_width(dims: BridgeDims) -> int:
    """Width of `source_states`.

    Raises:
        UserError: the source is not a frozen model's states.
    """
    if not dims.taps:
        raise UserError(
            "the source has no states to compare with; "
            "set a source that reads the sender, or leave it out"
        )
    return dims.source_width


def source_states(ctx: Context, normed: bool) -> tuple[Array, Array]:
    """The source's states [B, T, D] float32, averaged over its taps, and their mask [B, T].

    normed: every state RMS-normed first, so that no tap drowns the others.
    """
    states = jax.lax.stop_gradient(ctx.taps.states).astype(jnp.float32)
    if normed:
        states = states / jnp.sqrt(jnp.mean(jnp.square(states), axis=-1, keepdims=True) + 1e-6)
    return jnp.mean(states, axis=0), ctx.taps.mask


def text_states(ctx: Context, receiver: str, layer: int) -> tuple[Array, Array]:
    """The context's text as the receiver reads it: [B, T, D] after `layer` layers, mask [B, T].

    Layer 0: its embeddings. No gradient.
    """
    ids = ctx.batch[f"{receiver}/context/ids"]
    lengths = ctx.batch[f"{receiver}/context/lengths"]
    mask = jnp.arange(ids.shape[1])[None] < lengths[:, None]
    if layer == 0:
        states = embed_tokens(ctx.frozen.receivers[receiver].params, ids)
    else:
        states = _states_after(ctx, receiver, text_message(ids, lengths), None, layer)
    return jax.lax.stop_gradient(states), mask


def slot_states(ctx: Context, receiver: str, layer: int) -> tuple[Array, Array]:
    """The receiver's states [B, P, D] at the soft tokens after `layer` layers, mask [B, P]."""
    embeds, mask = given_slots(ctx, receiver)
    if layer == 0:
        return embeds, mask
    delivery = ctx.deliveries[receiver]
    message = message_segment(delivery, embeds.shape[0], embeds.shape[2])
    return _states_after(ctx, receiver, message, delivery, layer), mask


def _states_after(
    ctx: Context, receiver: str, message: Segment, delivery: Delivery | None, layer: int
) -> Array:
    """The stream at the message after some layers, with the receiver's usual head before it."""
    model = ctx.frozen.receivers[receiver]
    head = ctx.frozen.prompt(receiver).head
    parts = [head_segment(head, message.lengths.shape[0]), message]
    laid = lay_out(model.params, parts, delivery)
    out = _run(model, laid, stop=layer)
    return gather_states(out.h, laid.packed.starts["message"], message.size)


def _run(model: FrozenDecoder, laid: Laid, **more: Any) -> Run:
    """The receiver's stream over what is laid out."""
    return run(
        model.arch,
        model.params,
        laid.packed.h,
        positions=laid.positions,
        lengths=laid.packed.lengths,
        delivery=laid.inputs,
        impl=model.attention,
        remat=model.remat,
        **more,
    )


def suffix_states(
    ctx: Context, receiver: str, message: Literal["latent", "text"], layers: int
) -> tuple[Array, Array]:
    """The receiver's states [layers, N, S, D] after each of its first layers at what follows the
    message, question, anchor and answer, and the mask [N, S] of those that count.

    The EOS that ends the answer is left out: nothing is read from its state.
    """
    model, prompt = ctx.frozen.receivers[receiver], ctx.frozen.prompt(receiver)
    delivery = ctx.deliveries[receiver] if message == "latent" else None
    given = message_of(model, prompt, ctx.batch, receiver, message, delivery, ctx.questions)
    parts = segments(prompt, given, *asked(ctx.batch, receiver))
    laid = lay_out(model.params, parts, given.delivery)
    starts, sizes = laid.packed.starts, laid.packed.sizes
    index = jnp.arange(sum(s.size for s in parts if s.role in ("ask", "answer")))[None]
    at = jnp.minimum(starts["ask"][:, None] + index, laid.positions.shape[1] - 1)
    out = _run(model, laid, stop=layers, taps=tuple(range(1, layers + 1)), tap_at=at)
    assert out.taps is not None
    mask = index < (sizes["ask"] + sizes["answer"] - 1)[:, None]
    return out.taps, mask & ctx.valid[:, None]


def others(ctx: Context, receiver: str, counts: Array) -> Array:
    """[B, B] bool: pairs of contexts that count and are not the same text; False on the diagonal.

    On a mesh the rows are those of the global batch; with microbatches, of one microbatch.
    """
    ids = ctx.batch[f"{receiver}/context/ids"]
    same = jnp.all(ids[:, None] == ids[None], axis=-1)
    return counts[:, None] & counts[None] & ~same
