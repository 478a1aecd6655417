"""Greedy and sampled decoding inside one compiled loop, from packed prompt embeddings.

Prompt and new tokens go through `decoder.run` like a scoring pass, so that "every answer token is
the argmax under teacher forcing" and "greedy decoding gives the answer" are the same statement.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from lw_jax.models import head, kernels
from lw_jax.models.apart import is_apart
from lw_jax.models.arch import Arch
from lw_jax.models.cache import Cache
from lw_jax.models.decoder import LayerInputs, embed_tokens, run
from lw_jax.types import Array, Edits, PyTree

ROOM = 64
"""A cache of layers apart has room for a multiple of so many tokens: products of other sizes are
padded with a copy, every token."""


@dataclass(frozen=True)
class DecodeOptions:
    """How to decode; hashable, a static argument (docs/design.md section 8, decode controls).

    Attributes:
        max_new: the most new tokens.
        eos_ids: tokens that end an answer, banned for the first max(min_new, eos_ban_steps) tokens.
        stop_ids: tokens whose text holds a stop: they end an answer as well, and are banned for the
            first min_new tokens.
        min_new: the fewest new tokens.
        eos_ban_steps: number of steps in which EOS is banned.
        temperature: 0 is greedy.
        top_p: probability that the candidate tokens hold together; 1: all tokens.
        first_token_temperature: temperature of the first new token; None: as for the others.
        first_token_top_p: top_p of the first new token; None: as for the others.
        first_token_stop: tokens that may not come first.
        gain: for each step the factor on the message's values, see `LayerInputs.gain`; the last
            one holds for all later steps. Empty: 1.
    """

    max_new: int
    eos_ids: tuple[int, ...] = ()
    stop_ids: tuple[int, ...] = ()
    min_new: int = 0
    eos_ban_steps: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    first_token_temperature: float | None = None
    first_token_top_p: float | None = None
    first_token_stop: tuple[int, ...] = ()
    gain: tuple[float, ...] = ()


@struct.dataclass
class Generation:
    """What was written.

    Attributes:
        ids: [B, max_new] int32 tokens of each row, then the one that ended it (EOS, or a token that
            holds a stop) if there was one, then zeros.
        lengths: [B], number of new tokens of a row, without the one that ended it.
        ended: [B] bool, whether such a token ended the row; if not, it ran into max_new.
        stopped: [B] bool, whether that token holds a stop, and is no EOS.
        logprobs: [B, max_new] float32, log-probability of each token (the last one included) under
            the plain model; zeros after the end.
    """

    ids: Array
    lengths: Array
    ended: Array
    stopped: Array
    logprobs: Array

    @property
    def total_logprob(self) -> Array:
        """[B] log-probability of the whole answer."""
        return jnp.sum(self.logprobs, axis=1)


@struct.dataclass
class Writing:
    """State of the decoding loop.

    Attributes:
        step: number of tokens that were written.
        cache: keys and values of prompt and new tokens.
        out: what was written so far.
        rng: random key.
    """

    step: Array
    cache: Cache
    out: Generation
    rng: Array


def generate(
    arch: Arch,
    params: PyTree,
    h: Array,
    *,
    positions: Array,
    lengths: Array,
    options: DecodeOptions,
    delivery: LayerInputs | None = None,
    rng: Array | None = None,
    impl: str = "xla",
    fused: bool = False,
    until: Array | None = None,
) -> Generation:
    """Decodes `options.max_new` tokens after each row's prompt; call it under `jax.jit`.

    A new token takes the next free column of its row, at the next whole position after the row's
    last one.

    Args:
        arch: the decoder.
        params: its weights.
        h: [B, T, D] prompt embeddings, rows packed at the left.
        positions: [B, T] positions of the prompt.
        lengths: [B], at least 1, tokens of each prompt.
        options: how to decode.
        delivery: what enters the layers, as for `run`; prefix, LoRA and blocks act on the new
            tokens too, key and value deltas only on the soft tokens of the prompt.
        rng: random key; needed if a temperature is not 0.
        impl: attention implementation, see `attention.check`.
        fused: whether new tokens go through `kernels` where these fit.
        until: [] int, from 1 to `options.max_new`, after how many tokens to end; None: after all.
    """
    prompt = h.shape[1]
    given = delivery if delivery is not None else LayerInputs()
    room = prompt + options.max_new - 1
    if is_apart(params):
        room += -room % ROOM
    last = (lengths - 1)[:, None]
    ends_at = jnp.take_along_axis(positions, last, axis=1)
    first_gain = _gain(options, jnp.zeros((), jnp.int32))
    if first_gain is not None:
        # Only the prompt's last query predicts a new token.
        at_end = jnp.arange(prompt)[None] == last
        given = replace(given, gain=jnp.where(at_end, first_gain, 1.0))
    done = run(
        arch,
        params,
        h,
        positions=positions,
        lengths=lengths,
        delivery=given,
        keep=room,
        impl=impl,
    )
    assert done.cache is not None
    h_last = jnp.take_along_axis(done.h, last[..., None], axis=1)[:, 0]
    state = begun(arch, params, h_last, done.cache, options, rng)
    ends = options.max_new if until is None else until
    return go_on(arch, params, state, ends_at, given, options, ends, fused=fused).out


def begun(
    arch: Arch,
    params: PyTree,
    h: Array,
    cache: Cache,
    options: DecodeOptions,
    rng: Array | None = None,
) -> Writing:
    """The first new token of each row.

    Args:
        arch: the decoder.
        params: its weights.
        h: [B, D] stream after the last layer at the last token of each prompt.
        cache: with the prompts, and room for all new tokens but the last.
        options: how to decode.
        rng: random key; needed if a temperature is not 0.
    """
    batch = h.shape[0]
    blank = Generation(
        ids=jnp.zeros((batch, options.max_new), jnp.int32),
        lengths=jnp.zeros((batch,), jnp.int32),
        ended=jnp.zeros((batch,), bool),
        stopped=jnp.zeros((batch,), bool),
        logprobs=jnp.zeros((batch, options.max_new), jnp.float32),
    )
    key = jax.random.key(0) if rng is None else rng
    state = Writing(jnp.zeros((), jnp.int32), cache, blank, key)
    return _choose(arch, params, h, state, options, first=True)


def go_on(
    arch: Arch,
    params: PyTree,
    state: Writing,
    ends_at: Array,
    given: LayerInputs,
    options: DecodeOptions,
    until: int | Array,
    *,
    fused: bool = False,
) -> Writing:
    """Writes on until so many tokens are written, or all rows have ended.

    Args:
        arch: the decoder.
        params: its weights.
        state: with the first token.
        ends_at: [B, 1] position of each prompt's last token.
        given: what entered the layers with the prompt.
        options: how to decode.
        until: number of tokens, at most `options.max_new`.
        fused: whether new tokens go through `kernels` where these fit.
    """
    decoding = replace(given, edits=Edits(lora=given.edits.lora, blocks=given.edits.blocks))
    batch = state.out.lengths.shape[0]
    fused = fused and not options.gain and kernels.fits(params, batch, decoding)

    def more(state: Writing) -> Array:
        return (state.step < until) & ~jnp.all(state.out.ended)

    def advance(state: Writing) -> Writing:
        token = lax.dynamic_slice_in_dim(state.out.ids, state.step - 1, 1, axis=1)
        if fused:
            h = embed_tokens(params, token[:, 0]).astype(state.cache.k[0].dtype)
            positions = ends_at + state.step.astype(ends_at.dtype)
            h, cache = kernels.step(arch, params, h, positions, state.cache)
            state = replace(state, cache=cache)
            return _choose(arch, params, h, state, options, first=False, fused=True)
        gain = _gain(options, state.step)
        inputs = decoding
        if gain is not None:
            inputs = replace(decoding, gain=jnp.broadcast_to(gain, (batch, 1)))
        done = run(
            arch,
            params,
            embed_tokens(params, token).astype(jax.tree.leaves(state.cache.k)[0].dtype),
            positions=ends_at + state.step.astype(ends_at.dtype),
            lengths=jnp.ones((batch,), jnp.int32),
            delivery=inputs,
            cache=state.cache,
        )
        assert done.cache is not None
        state = replace(state, cache=done.cache)
        return _choose(arch, params, done.h[:, 0], state, options, first=False)

    return lax.while_loop(more, advance, state)


def _gain(options: DecodeOptions, step: Array) -> Array | None:
    if not options.gain:
        return None
    return jnp.asarray(options.gain, jnp.float32)[jnp.minimum(step, len(options.gain) - 1)]


def _choose(
    arch: Arch,
    params: PyTree,
    h: Array,
    state: Writing,
    options: DecodeOptions,
    first: bool,
    fused: bool = False,
) -> Writing:
    """Picks one token for each row from the states h [B, D] and writes it at the current step."""
    plain = (kernels if fused else head).logits(arch, params, h)
    z = plain
    if options.eos_ids:
        barred = state.step < max(options.min_new, options.eos_ban_steps)
        z = jnp.where(barred, _without(z, options.eos_ids), z)
    if options.stop_ids and options.min_new:
        z = jnp.where(state.step < options.min_new, _without(z, options.stop_ids), z)
    if first and options.first_token_stop:
        z = _without(z, options.first_token_stop)
    here = options
    if first and options.first_token_temperature is not None:
        here = replace(here, temperature=options.first_token_temperature)
    if first and options.first_token_top_p is not None:
        here = replace(here, top_p=options.first_token_top_p)
    token = _pick(z, here, jax.random.fold_in(state.rng, state.step))
    out, live = state.out, ~state.out.ended
    logprob = jnp.take_along_axis(jax.nn.log_softmax(plain), token[:, None], axis=1)[:, 0]
    is_eos = _is_one_of(token, options.eos_ids) & live
    is_stop = _is_one_of(token, options.stop_ids) & live & ~is_eos
    out = Generation(
        ids=_write(out.ids, jnp.where(live, token, 0), state.step),
        lengths=out.lengths + (live & ~is_eos & ~is_stop),
        ended=out.ended | is_eos | is_stop,
        stopped=out.stopped | is_stop,
        logprobs=_write(out.logprobs, jnp.where(live, logprob, 0.0), state.step),
    )
    return replace(state, step=state.step + 1, out=out)


def _pick(z: Array, options: DecodeOptions, rng: Array) -> Array:
    """[B] int32 tokens from logits z [B, V]: the argmax, or a draw from the nucleus."""
    if options.temperature == 0:
        return jnp.argmax(z, axis=-1).astype(jnp.int32)
    z = z / options.temperature
    if options.top_p < 1:
        ordered = jnp.sort(z, axis=-1, descending=True)
        mass = jnp.cumsum(jax.nn.softmax(ordered, axis=-1), axis=-1)
        # Tokens are kept until their mass reaches top_p; the first is always kept.
        kept = jnp.sum(mass - jax.nn.softmax(ordered, axis=-1) < options.top_p, axis=-1) - 1
        least = jnp.take_along_axis(ordered, kept[:, None], axis=-1)
        z = jnp.where(z < least, -jnp.inf, z)
    return jax.random.categorical(rng, z, axis=-1).astype(jnp.int32)


def _is_one_of(token: Array, ids: tuple[int, ...]) -> Array:
    return jnp.isin(token, jnp.asarray(ids, jnp.int32))


def _without(z: Array, ids: tuple[int, ...]) -> Array:
    return z.at[:, jnp.asarray(ids, jnp.int32)].set(-jnp.inf)


def _write(rows: Array, column: Array, step: Array) -> Any:
    return lax.dynamic_update_slice_in_dim(rows, column[:, None], step, axis=1)
