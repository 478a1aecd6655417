"""The frozen decoder: embeddings in, residual stream out.

Layers are apart (`lw_jax.models.apart`), one after another in the program, each weight used where
it lies; or stacked, in one scan over layer *indices* whose checkpointed body picks that layer's
weights. The scan compiles a layer once, and copies each layer's weights before it uses them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from lw_jax.errors import UserError
from lw_jax.models import attention as attend
from lw_jax.models import cache as kept
from lw_jax.models.apart import is_apart
from lw_jax.models.arch import Arch
from lw_jax.models.cache import Cache
from lw_jax.models.layer import PRODUCTS, heads, mlp, output, rms_norm, stacked_slot
from lw_jax.models.params import depth
from lw_jax.models.quant import take_layer
from lw_jax.models.rope import angles, rotate
from lw_jax.models.split import embedding_table, gathered, is_split
from lw_jax.types import KV, Array, Blocks, Edits, Lora, PyTree

Remat = Literal["full", "dots", "none"]
"""What the backward pass computes again: all of a layer but its input; what is no matrix product
(norms, rotations, attention, activations); or nothing, of layers apart (a scan would keep each
layer's weights). Weights that lie in pieces count: of `none` they stay whole until then."""
NONE_NEEDS_APART = (
    "remat none needs the frozen models' layers apart: set unroll: always for each of them, or "
    "remat to dots"
)


@struct.dataclass
class LayerInputs:
    """What enters the layers besides the stream. "Packed index" counts a row's tokens from 0.

    Attributes:
        kv: prefix columns, with *absolute* positions.
        message_start: [B] int, the packed index at which the message begins; only queries from
            there on see the prefix. None: all queries see it.
        edits: LoRA, blocks, key and value deltas.
        slot_index: [B, P] int, the packed indices of the message's soft tokens, -1 where a row has
            none; k_delta and v_delta are added there, before RoPE.
        gain: [B, T], for each query a factor on the values of the message (prefix columns and soft
            tokens).
        allowed: [B, T, T] bool, which of the T tokens each of them sees; None: itself and those
            before it. Not with a cache.
    """

    kv: KV | None = None
    message_start: Array | None = None
    edits: Edits = Edits()
    slot_index: Array | None = None
    gain: Array | None = None
    allowed: Array | None = None


@struct.dataclass
class Run:
    """What `run` gives.

    Attributes:
        h: [B, T, D] stream after the last layer that was run.
        taps: [n, B, T, D] streams after the layers asked for, in that order; with `tap_at`
            [n, B, S, D], of those tokens alone. None: no taps were asked for.
        cache: the cache with the T tokens added, or a new one with them; None: neither was asked
            for.
    """

    h: Array
    taps: Array | None
    cache: Cache | None


ROUND = 8
"""cudnn trains on even lengths only; they are rounded once for all layers."""


def embed_tokens(params: PyTree, ids: Array) -> Array:
    """[B, T, D] input embeddings of ids [B, T], in the table's dtype; NaN for an id outside it."""
    return embedding_table(params).at[ids].get(mode="fill", fill_value=jnp.nan)


def run(
    arch: Arch,
    params: PyTree,
    h: Array,
    *,
    positions: Array,
    lengths: Array,
    start: int = 0,
    stop: int | None = None,
    taps: tuple[int, ...] = (),
    tap_at: Array | None = None,
    delivery: LayerInputs | None = None,
    cache: Cache | None = None,
    keep: int | None = None,
    impl: str = "xla",
    remat: Remat = "full",
) -> Run:
    """Runs layers `start` to `stop` on the residual stream.

    Attention is causal by packed index, and a sliding window looks back by position. Everything
    beyond `lengths` is padding: no real token sees it, and its outputs mean nothing. The
    final norm belongs to the head (`lw_jax.models.head`).

    Args:
        arch: the decoder.
        params: the tree of `params.abstract`, its layers stacked or apart, at least up to `stop`.
            Weights are used in the dtype of h, so float32 parameters train with bf16 compute if h
            is bf16.
        h: [B, T, D], the stream after `start` layers (0: embeddings), rows packed at the left.
        positions: [B, T] absolute positions, whole or fractional.
        lengths: [B] int, how many of the T tokens of each row are real.
        start: layers that were run before.
        stop: number of layers after which to stop; weights beyond are never touched. None: all.
        taps: numbers of layers, between start and stop, after which the stream is also returned.
            A tap comes after the block, if any, of the layer before it.
        tap_at: [B, S] packed indices of the tokens that are tapped; None: all T.
        delivery: what enters the layers in addition; None: nothing.
        cache: with one, the T tokens follow those in the cache (each row at its own next columns),
            see them, and are added; for decoding, not for gradients.
        keep: tokens that a new cache has room for, T or more, which then begins with these T;
            None: no new cache. It takes no `cache`.
        impl: attention implementation, see `attention.check`.
        remat: what the backward pass computes again; the more, the less memory it needs.

    Raises:
        UserError: a tap or `stop` beyond the layers that are stacked.
    """
    assert keep is None or cache is None
    tokens = h.shape[1]
    more = -tokens % ROUND if impl == "cudnn" and cache is None and keep is None else 0
    if more:
        given = delivery if delivery is not None else LayerInputs()
        if given.gain is not None:
            given = replace(given, gain=_longer(given.gain, more))
        if given.allowed is not None:
            # Tokens that are added see all others: a softmax over nothing has no gradient.
            rows = jnp.pad(given.allowed, ((0, 0), (0, more), (0, 0)), constant_values=True)
            given = replace(given, allowed=jnp.pad(rows, ((0, 0), (0, 0), (0, more))))
        done = run(
            arch,
            params,
            _longer(h, more),
            positions=_longer(positions, more),
            lengths=lengths,
            start=start,
            stop=stop,
            taps=taps,
            tap_at=tap_at,
            delivery=given,
            impl=impl,
            remat=remat,
        )
        whole = done.taps if done.taps is None or tap_at is not None else done.taps[:, :, :tokens]
        return Run(done.h[:, :tokens], whole, None)
    stop = depth(params) if stop is None else stop
    if not 0 <= start <= stop <= depth(params):
        raise UserError(f"cannot run layers {start} to {stop}: {depth(params)} are loaded")
    if any(not start <= tap <= stop for tap in taps):
        raise UserError(f"taps {list(taps)} are not all between layers {start} and {stop}")
    given = delivery if delivery is not None else LayerInputs()
    ctx = _shared(arch, positions, lengths, given, cache)
    each = _each_apart if is_apart(params) else _each_stacked
    h, tapped, past, own = each(
        partial(_layer, arch, impl=impl),
        params["layers"],
        h,
        ctx,
        given=given,
        past=None if cache is None else (cache.k, cache.v),
        span=(start, stop),
        taps=taps,
        tap_at=tap_at,
        keep=keep is not None,
        remat=remat,
    )
    if keep is not None:
        cache = kept.begun(own[0], own[1], positions, lengths, keep)
    elif cache is not None:
        filled = cache.lengths + lengths.astype(jnp.int32)
        cache = Cache(past[0], past[1], ctx.key_positions, filled)
    return Run(h, tapped, cache)


def _each_stacked(
    layer: Callable[..., Any],
    stack: PyTree,
    h: Array,
    ctx: _Shared,
    *,
    given: LayerInputs,
    past: Any,
    span: tuple[int, int],
    taps: tuple[int, ...],
    tap_at: Array | None,
    keep: bool,
    remat: Remat,
) -> tuple[Array, Array | None, Any, Any]:
    """The layers of a stack in one scan: stream, taps, cache, and the layers' keys and values."""
    start, stop = span
    if remat == "none":
        raise UserError(NONE_NEEDS_APART)
    size = stack["attn_norm"].shape[0] if stack else 0
    lora, blocks = given.edits.lora, given.edits.blocks
    # Row `len(taps)` takes the writes of layers that are not tapped.
    rows = jnp.asarray([taps.index(i) if i in taps else len(taps) for i in range(stop + 1)])
    width = h.shape[1] if tap_at is None else tap_at.shape[1]
    shape = (len(taps) + 1, h.shape[0], width, h.shape[2])
    tapped = jnp.zeros(shape, h.dtype) if taps else None

    def one_layer(h: Array, past: Any, x: dict[str, Any]) -> tuple[Array, Any, Any]:
        own = _Own(
            prefix_k=x.get("prefix_k"),
            prefix_v=x.get("prefix_v"),
            prefix_seen=x.get("prefix_seen"),
            k_delta=x.get("k_delta"),
            v_delta=x.get("v_delta"),
            lora=lora,
            lora_at=None if lora is None else stacked_slot(lora.layers, size, x["layer"]),
            blocks=blocks,
            blocks_at=None if blocks is None else stacked_slot(blocks.layers, size, x["layer"]),
            index=x["layer"],
        )
        w = gathered(take_layer(stack, x["layer"]))
        done: tuple[Array, Any, Any] = layer(w, h, past, own, ctx)
        return done

    checkpointed = jax.checkpoint(one_layer, prevent_cse=False, policy=_policy(remat))

    def body(carry: Any, x: dict[str, Any]) -> tuple[Any, Any]:
        h, past, tapped = carry
        h, past, own = checkpointed(h, past, x)
        # Outside the checkpoint: a write is linear, so no copy of the taps is kept per layer.
        tapped = _put_tap(tapped, h, tap_at, rows[x["layer"] + 1])
        return (h, past, tapped), own if keep else None

    tapped = _put_tap(tapped, h, tap_at, rows[start])
    xs: dict[str, Any] = {"layer": jnp.arange(start, stop, dtype=jnp.int32)}
    xs |= {name: x[start:stop] for name, x in _by_layer(given).items()}
    (h, past, tapped), own = lax.scan(body, (h, past, tapped), xs)
    return h, None if tapped is None else tapped[: len(taps)], past, own


def _each_apart(
    layer: Callable[..., Any],
    layers: tuple[PyTree, ...],
    h: Array,
    ctx: _Shared,
    *,
    given: LayerInputs,
    past: Any,
    span: tuple[int, int],
    taps: tuple[int, ...],
    tap_at: Array | None,
    keep: bool,
    remat: Remat,
) -> tuple[Array, Array | None, Any, Any]:
    """The same of layers apart, one after another, each used where it lies."""
    # Weights in pieces: computed again, each pass puts them together for itself. Where nothing is,
    # they stay whole until the backward pass, so that all passes may share them.
    anew = is_split(layers) and remat != "none"

    def whole(w: PyTree, h: Array, past: Any, own: _Own, ctx: _Shared, since: Array | None) -> Any:
        return layer(gathered(w, since), h, past, own, ctx)

    once: Callable[..., Any] = jax.jit(whole)  # traced once, and used by all layers that are alike
    earlier = h  # a layer's weights are put together while the one before it is computed
    if remat != "none":
        # The stream alone must be computed again; a barrier before the weights has no use, unless
        # they are put together anew.
        barred = (False, True, False, False, False, True)
        once = jax.checkpoint(once, prevent_cse=barred, policy=_policy(remat))
    streams: dict[int, Array] = {}

    def tap(i: int) -> None:
        if i in taps:
            streams[i] = h if tap_at is None else jnp.take_along_axis(h, tap_at[..., None], axis=1)

    pasts, owns, stacks = [], [], _by_layer(given)
    tap(span[0])
    for i in range(*span):
        lora, blocks = given.edits.lora, given.edits.blocks
        own = _Own(
            **{name: x[i] for name, x in stacks.items()},
            lora=None if lora is None or i not in lora.layers else _only(lora, i),
            blocks=None if blocks is None or i not in blocks.layers else _only(blocks, i),
        )
        before = None if past is None else (past[0][i], past[1][i])
        w = layers[i] if anew else gathered(layers[i])
        since = earlier if anew else None
        earlier, (h, after, kv) = h, once(w, h, before, own, ctx, since)
        tap(i + 1)
        pasts.append(after)
        owns.append(kv)
    tapped = jnp.stack([streams[i] for i in taps]) if taps else None
    pairs = pasts if past is not None else owns
    columns = tuple(k for k, _ in pairs), tuple(v for _, v in pairs)
    if past is not None:  # layers that were not run keep what they had
        rest = tuple(x[: span[0]] for x in past), tuple(x[span[1] :] for x in past)
        columns = tuple(rest[0][j] + columns[j] + rest[1][j] for j in (0, 1))
    return h, tapped, columns if past is not None else None, columns if keep else None


def _policy(remat: Remat) -> Any:
    """What a checkpointed layer keeps besides its input."""
    return None if remat == "full" else jax.checkpoint_policies.save_only_these_names(*PRODUCTS)


def _by_layer(given: LayerInputs) -> dict[str, Array]:
    """What has an entry a layer: arrays [L, ...]."""
    stacks = {
        "prefix_k": None if given.kv is None else given.kv.k,
        "prefix_v": None if given.kv is None else given.kv.v,
        "k_delta": given.edits.k_delta,
        "v_delta": given.edits.v_delta,
    }
    found = {name: x for name, x in stacks.items() if x is not None}
    if given.kv is not None and given.kv.layers:
        found["prefix_seen"] = jnp.asarray(
            [i in given.kv.layers for i in range(given.kv.k.shape[0])]
        )
    return found


def _only(edit: Any, layer: int) -> Any:
    """A LoRA or blocks of one layer alone."""
    at = edit.layers.index(layer)
    if isinstance(edit, Lora):
        a, b = ({name: x[at : at + 1] for name, x in m.items()} for m in (edit.a, edit.b))
        return replace(edit, a=a, b=b, layers=(0,))
    return replace(edit, params=jax.tree.map(lambda x: x[at], edit.params), layers=(0,))


def _longer(x: Array, more: int) -> Array:
    """x [B, T, ...] with so many zeros at the end of the rows."""
    return jnp.pad(x, [(0, 0), (0, more)] + [(0, 0)] * (x.ndim - 2))


@struct.dataclass
class _Shared:
    """What all layers of a run share: rotations, masks, columns.

    Attributes:
        cos: [B, T, h/2] cosines of the tokens' angles.
        sin: [B, T, h/2] sines of the tokens' angles.
        prefix_cos: the same of the prefix columns; None: no prefix.
        prefix_sin: the same of the prefix columns; None: no prefix.
        mask: which keys a query sees.
        columns: columns of the cache for the new tokens; None: no cache.
        key_positions: positions of the keys.
        slots: indices of the soft tokens within the T tokens of this run; None: none.
        message: which columns belong to the message; None: no gain.
        gain: factor on the message's values, for each query; None: no gain.
    """

    cos: Array
    sin: Array
    prefix_cos: Array | None
    prefix_sin: Array | None
    mask: attend.Mask
    columns: Array | None
    key_positions: Array
    slots: Array | None
    message: Array | None
    gain: Array | None


def _shared(
    arch: Arch, positions: Array, lengths: Array, given: LayerInputs, cache: Cache | None
) -> _Shared:
    tokens = positions.shape[1]
    base = jnp.zeros_like(lengths) if cache is None else cache.lengths
    query = base[:, None] + jnp.arange(tokens)[None]
    columns, key_positions = None, positions
    if cache is not None:
        columns = kept.columns(cache, lengths, tokens)
        key_positions = kept.put_positions(cache, columns, positions)
    room = key_positions.shape[1]
    key = jnp.arange(room)[None, None]
    # Causal by packed index: padding lies to the right, so no real token sees it.
    allowed = key <= query[:, :, None] if given.allowed is None else given.allowed
    if arch.window is not None:
        allowed &= _in_window(positions, key_positions, arch.window)
    prefix_cos, prefix_sin = None, None
    if given.kv is not None:
        prefix_cos, prefix_sin = angles(arch, given.kv.positions)
        seen = jnp.broadcast_to(given.kv.mask[:, None], (*query.shape, given.kv.mask.shape[1]))
        if given.message_start is not None:
            seen &= (query >= given.message_start[:, None])[:, :, None]
        if arch.window is not None:
            seen &= _in_window(positions, given.kv.positions, arch.window)
        allowed = jnp.concatenate([seen, allowed], axis=-1)
    causal = given.allowed is None and arch.window is None
    plain = cache is None and given.kv is None and causal
    cos, sin = angles(arch, positions)
    return _Shared(
        cos=cos,
        sin=sin,
        prefix_cos=prefix_cos,
        prefix_sin=prefix_sin,
        mask=attend.Mask(allowed[:, None], lengths if plain else None),
        columns=columns,
        key_positions=key_positions,
        slots=_local_slots(given.slot_index, base, tokens),
        message=None if given.gain is None else _message(given, positions.shape[0], room),
        gain=given.gain,
    )


def _in_window(query: Array, key: Array, window: int) -> Array:
    """[B, T, S] bool: the key's position is less than `window` behind the query's."""
    return query[:, :, None] - key[:, None] < window


def _local_slots(slot_index: Array | None, base: Array, tokens: int) -> Array | None:
    """Indices of the soft tokens within this run's T tokens; T, which a scatter drops, outside."""
    if slot_index is None:
        return None
    local = slot_index - base[:, None]
    return jnp.where((slot_index >= 0) & (local >= 0) & (local < tokens), local, tokens)


def _message(given: LayerInputs, batch: int, room: int) -> Array:
    """[B, C + S] bool: the columns that belong to the message."""
    own = jnp.zeros((batch, room), bool)
    if given.slot_index is not None:
        at = jnp.where(given.slot_index < 0, room, given.slot_index)
        own = own.at[jnp.arange(batch)[:, None], at].set(True, mode="drop")
    return own if given.kv is None else jnp.concatenate([given.kv.mask, own], axis=1)


def _put_tap(tapped: Array | None, h: Array, at: Array | None, row: Array) -> Array | None:
    if tapped is None:
        return None
    seen = h if at is None else jnp.take_along_axis(h, at[..., None], axis=1)
    return lax.dynamic_update_index_in_dim(tapped, seen, row, 0)


@struct.dataclass
class _Own:
    """What enters one layer.

    Attributes:
        prefix_k: [B, C, K, h] keys of the prefix; None: none.
        prefix_v: their values.
        prefix_seen: [] bool, whether this layer sees them; None: it does.
        k_delta: [B, P, K, h], added to the soft tokens' keys; None: nothing.
        v_delta: [B, P, K, h], added to their values.
        lora: of this layer alone, or of all.
        lora_at: this layer's place in it, -1: none; None: it is of this layer alone.
        blocks: of this layer alone, their parameters not stacked, or of all.
        blocks_at: this layer's place in them, -1: none; None: they are of this layer alone.
        index: of the layer, where the cache is a stack.
    """

    prefix_k: Array | None = None
    prefix_v: Array | None = None
    prefix_seen: Array | None = None
    k_delta: Array | None = None
    v_delta: Array | None = None
    lora: Lora | None = None
    lora_at: Array | None = None
    blocks: Blocks | None = None
    blocks_at: Array | None = None
    index: Array | None = None


def _layer(
    arch: Arch,
    w: PyTree,
    h: Array,
    past: tuple[Array, Array] | None,
    own: _Own,
    ctx: _Shared,
    *,
    impl: str,
) -> tuple[Array, tuple[Array, Array] | None, tuple[Array, Array]]:
    """One layer with its edits: the stream after it, the cache with its keys and values, and these
    by themselves."""
    lora = own.lora
    slot: Array | int | None = 0 if own.lora_at is None else own.lora_at
    q, k, v = heads(
        arch, w, rms_norm(h, w["attn_norm"], arch.norm_eps), ctx.cos, ctx.sin, lora, slot
    )
    k = rotate(_add_at(k, ctx.slots, own.k_delta), ctx.cos, ctx.sin)
    v = _add_at(v, ctx.slots, own.v_delta)
    new = (k, v)
    if past is not None:
        assert ctx.columns is not None
        past = (
            kept.put(past[0], own.index, ctx.columns, k),
            kept.put(past[1], own.index, ctx.columns, v),
        )
        k, v = past if own.index is None else take_layer(past, own.index)
    if own.prefix_k is not None and own.prefix_v is not None:
        assert ctx.prefix_cos is not None
        assert ctx.prefix_sin is not None
        prefix = rotate(own.prefix_k.astype(k.dtype), ctx.prefix_cos, ctx.prefix_sin)
        k = jnp.concatenate([prefix, k], axis=1)
        v = jnp.concatenate([own.prefix_v.astype(v.dtype), v], axis=1)
    mask = ctx.mask
    if own.prefix_seen is not None and own.prefix_k is not None:
        own_columns = jnp.arange(mask.allowed.shape[-1]) >= own.prefix_k.shape[1]
        seen = own.prefix_seen | own_columns
        mask = attend.Mask(mask.allowed & seen[None, None, None])
    mixed = attend.attention(q, k, v, mask, impl)
    if ctx.gain is not None and ctx.message is not None:
        # The factor is per query, so it cannot be put on v once: the message's share is added.
        share = attend.attention(q, k, v * ctx.message[..., None, None], mask, impl)
        mixed += (ctx.gain.astype(mixed.dtype) - 1)[..., None, None] * share
    h = h + output(w, mixed, lora, slot)
    h = h + mlp(w, rms_norm(h, w["mlp_norm"], arch.norm_eps))
    blocks, at = own.blocks, own.blocks_at
    if blocks is not None and at is None:
        h = blocks.apply(blocks.params, h, blocks.given).astype(h.dtype)
    elif blocks is not None and at is not None:
        h = lax.cond(
            at >= 0,
            lambda h: blocks.apply(take_layer(blocks.params, at), h, blocks.given).astype(h.dtype),
            lambda h: h,
            h,
        )
    return h, past, new


def _add_at(x: Array, index: Array | None, delta: Array | None) -> Array:
    """Adds delta [B, P, K, h] to x [B, T, K, h] at tokens index [B, P]; index T is dropped."""
    if index is None or delta is None:
        return x
    return x.at[jnp.arange(x.shape[0])[:, None], index].add(delta.astype(x.dtype), mode="drop")
