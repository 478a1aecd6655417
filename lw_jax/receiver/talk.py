"""A receiver that is asked again and again about messages that it has read once.

Keys and values of what it has read are kept: a question costs its own tokens and its answer's.
What is read in two steps is what `lw_jax.receiver.read.lay_out` reads in one, up to rounding.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from lw_jax.models.cache import Cache
from lw_jax.models.decoder import LayerInputs, embed_tokens, run
from lw_jax.models.frozen import FrozenDecoder
from lw_jax.models.generate import DecodeOptions, Writing, begun, go_on
from lw_jax.receiver.answer import Message, before
from lw_jax.receiver.join import advance_of
from lw_jax.receiver.read import lay_out
from lw_jax.text.layout import Prompt
from lw_jax.types import KV, Array, Edits


@struct.dataclass
class Heard:
    """What a receiver has read so far.

    Attributes:
        cache: keys and values, with room for more.
        position: [B] float32, of the next token.
        inputs: what enters the layers of all that follows: prefix columns, LoRA, blocks.
    """

    cache: Cache
    position: Array
    inputs: LayerInputs


@struct.dataclass
class Answering:
    """An answer that is being written.

    Attributes:
        writing: what is written so far.
        ends_at: [B, 1] position of the question's last token.
    """

    writing: Writing
    ends_at: Array


@partial(jax.jit, static_argnames=("prompt", "room"))
def begin(model: FrozenDecoder, prompt: Prompt, message: Message, room: int) -> Heard:
    """Reads the head and a first message.

    Args:
        model: the receiver.
        prompt: what the layout puts around the message; its text does not follow.
        message: of B rows.
        room: tokens that fit into a row.
    """
    laid = lay_out(model.params, before(prompt, message), message.delivery)
    done = run(
        model.arch,
        model.params,
        laid.packed.h,
        positions=laid.positions,
        lengths=laid.packed.lengths,
        delivery=laid.inputs,
        keep=room,
        impl=model.attention,
    )
    assert done.cache is not None
    after = laid.packed.starts["message"] + _advance(message)
    return Heard(done.cache, after.astype(jnp.float32), _kept(laid.inputs))


@jax.jit
def hear(model: FrozenDecoder, heard: Heard, message: Message) -> Heard:
    """Reads another message after all before it.

    Args:
        model: the receiver.
        heard: what it has read; there is room for the message's soft tokens.
        message: of the same B rows.
    """
    laid = lay_out(model.params, [message.segment], message.delivery)
    base = heard.position[:, None]
    own = laid.inputs
    kv = own.kv
    if kv is not None:
        kv = replace(kv, positions=kv.positions + base)
    slots = own.slot_index
    if slots is not None:
        slots = jnp.where(slots < 0, -1, slots + heard.cache.lengths[:, None])
    inputs = LayerInputs(
        kv=_both(heard.inputs.kv, kv),
        message_start=heard.inputs.message_start,
        edits=_edits(heard.inputs.edits, own.edits),
        slot_index=slots,
    )
    done = run(
        model.arch,
        model.params,
        laid.packed.h,
        positions=laid.positions + base,
        lengths=laid.packed.lengths,
        delivery=inputs,
        cache=heard.cache,
    )
    assert done.cache is not None
    return Heard(done.cache, heard.position + _advance(message), _kept(inputs))


@partial(jax.jit, static_argnames="options")
def ask(
    model: FrozenDecoder,
    heard: Heard,
    ids: Array,
    lengths: Array,
    options: DecodeOptions,
    rng: Array,
) -> Answering:
    """Reads a question, and writes the first token of the answer.

    Args:
        model: the receiver.
        heard: what it has read; there is room for the question and the answer.
        ids: [B, S] int32, the question and what stands before it.
        lengths: [B] its tokens, at least one.
        options: how to decode.
        rng: random key of sampling.
    """
    positions = heard.position[:, None] + jnp.arange(ids.shape[1], dtype=jnp.float32)[None]
    done = run(
        model.arch,
        model.params,
        embed_tokens(model.params, ids),
        positions=positions,
        lengths=lengths,
        delivery=heard.inputs,
        cache=heard.cache,
    )
    assert done.cache is not None
    last = (lengths - 1)[:, None]
    h = jnp.take_along_axis(done.h, last[..., None], axis=1)[:, 0]
    writing = begun(model.arch, model.params, h, done.cache, options, rng)
    return Answering(writing, jnp.take_along_axis(positions, last, axis=1))


@partial(jax.jit, static_argnames="options")
def write(
    model: FrozenDecoder, heard: Heard, so_far: Answering, options: DecodeOptions, until: Array
) -> Answering:
    """Writes on until so many tokens are written, or all rows have ended.

    Args:
        model: the receiver.
        heard: what it had read before the question.
        so_far: with the first token.
        options: how to decode.
        until: number of tokens.
    """
    done = go_on(
        model.arch,
        model.params,
        so_far.writing,
        so_far.ends_at,
        heard.inputs,
        options,
        until,
        fused=model.fused,
    )
    return Answering(done, so_far.ends_at)


def remembered(heard: Heard, said: Answering) -> Heard:
    """What has been read once question and answer count as well.

    The last token that was chosen has not been read: where it belongs to the answer, the next
    question begins with it.
    """
    position = said.ends_at[:, 0] + said.writing.step
    return Heard(said.writing.cache, position, heard.inputs)


def roomier(heard: Heard, room: int) -> Heard:
    """The same with room for so many tokens in a row."""
    more = room - heard.cache.positions.shape[1]
    if more <= 0:
        return heard

    held = heard.cache
    k, v, positions = _wider((held.k, held.v, held.positions), more)
    cache = Cache(k, v, positions, held.lengths)
    return Heard(cache, heard.position, heard.inputs)


@partial(jax.jit, static_argnums=1)
def _wider(held: Any, more: int) -> Any:
    """Keys, values and positions with so many more columns, one program for all of them."""

    def wide(x: Array) -> Array:
        pad = [(0, 0)] * x.ndim
        pad[1 if x.ndim < 5 else 2] = (0, more)  # of one layer, or of a stack
        return jnp.pad(x, pad)

    return jax.tree.map(wide, held)


def _advance(message: Message) -> Array:
    lengths = message.segment.lengths
    return lengths if message.delivery is None else advance_of(message.delivery, lengths)


def _kept(inputs: LayerInputs) -> LayerInputs:
    """What enters the layers of later tokens: deltas are the soft tokens' alone."""
    edits = Edits(lora=inputs.edits.lora, blocks=inputs.edits.blocks)
    return LayerInputs(kv=inputs.kv, message_start=inputs.message_start, edits=edits)


def _both(first: KV | None, second: KV | None) -> KV | None:
    if first is None or second is None:
        return first if second is None else second
    k, v = (jnp.concatenate(x, axis=2) for x in ((first.k, second.k), (first.v, second.v)))
    mask = jnp.concatenate([first.mask, second.mask], axis=1)
    positions = jnp.concatenate([first.positions, second.positions], axis=1)
    return KV(k, v, mask, positions, first.layers)


def _edits(first: Edits, second: Edits) -> Edits:
    """LoRA and blocks of both messages, and the second one's deltas."""
    blocks = second.blocks
    if first.blocks is not None and blocks is not None:
        given = jax.tree.map(
            lambda a, b: jnp.concatenate([a, b], axis=1), first.blocks.given, blocks.given
        )
        blocks = replace(blocks, given=given)
    return Edits(second.lora, blocks, second.k_delta, second.v_delta)
