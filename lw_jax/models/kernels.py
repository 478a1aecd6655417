"""A decoding step of few rows in five kernels a layer, for NVIDIA GPUs (Pallas, by Triton).

A new token's time is that of reading the weights once, and of starting kernels. As XLA compiles it,
a layer is eighteen kernels; here it is five: norm, query, key and value; rotation, cache and
attention; output and residual; norm, gate, up and activation; down and residual. Each product reads
plain weights, or stored ones of 8 bits, where they lie. What it computes is what `decoder.run`
does: norms, rotation and softmax in float32, products of the stream's dtype added up in float32;
results differ by rounding. Activations are not rounded to 8 bits, as products of float8 do.

Letters: B rows, S columns of the cache, D width, H heads, K key/value heads, h head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jax.sharding import Mesh

from lw_jax.errors import UserError
from lw_jax.models.apart import is_apart
from lw_jax.models.arch import Arch
from lw_jax.models.attention import capability
from lw_jax.models.cache import Cache, put_positions
from lw_jax.models.decoder import LayerInputs
from lw_jax.models.quant import QuantArray
from lw_jax.models.rope import angles
from lw_jax.types import Array, PyTree

ROWS = 16
"""Rows of a product: tensor cores take that many at least, and few rows cost no more than one."""
KEYS = 64
"""Keys that are read at a time."""
LOWEST = -1e30
HOPPER = 9


@dataclass(frozen=True)
class Tile:
    """How a product is cut.

    Attributes:
        outs: results of a program.
        ins: inputs that are read at a time.
        warps: of a program.
        stages: reads under way at once.
    """

    outs: int = 32
    ins: int = 256
    warps: int = 4
    stages: int = 4


TILE = Tile()
TILES: dict[tuple[int, int], Tile] = {}
"""Tiles of products by their inputs and results, where others than `TILE` are known to be faster.
"""
INTERPRETED = False
"""Whether the kernels are interpreted, as tests on a CPU do."""


def chosen(decoding: str, mesh: Mesh, arch: Arch, *, dtype: Any, quant: str | None) -> bool:
    """Whether a config's choice means these kernels for a decoder.

    They run on one NVIDIA GPU from compute capability 8.0 on, in bfloat16, where `takes` allows;
    `auto` takes them on 9.x alone, where they were measured.

    Args:
        decoding: `auto`, `kernels` or `xla`.
        mesh: the devices that it runs on.
        arch: the decoder.
        dtype: of the weights that are computed with.
        quant: how the matrices are stored; None: in `dtype`.

    Raises:
        UserError: `kernels`, and they cannot run.
    """
    if decoding == "xla":
        return False
    lacks = takes(arch, quant)
    if lacks is None and mesh.size > 1:
        lacks = "the model is on several devices"
    has = capability(mesh.devices.flat[0])
    if lacks is None and has < 8:
        lacks = "there is no NVIDIA GPU from compute capability 8.0 on"
    if lacks is None and jnp.dtype(dtype) != jnp.bfloat16:
        lacks = f"they compute in bfloat16, not {jnp.dtype(dtype)}"
    if decoding == "kernels" and lacks is not None:
        raise UserError(f"decoding: kernels is not possible: {lacks}; set it to auto or xla")
    return lacks is None and (decoding == "kernels" or has == HOPPER)


def takes(arch: Arch, quant: str | None) -> str | None:
    """Why these kernels cannot decode with a model; None: they can."""
    if quant == "nf4":
        return "they do not read weights of 4 bits"
    if arch.window is not None:
        return "the model has a sliding window"
    if arch.qk_norm:
        return "the model has norms of queries and keys"
    if arch.head_dim not in (32, 64, 128) or arch.heads // arch.kv_heads > ROWS:
        return f"{arch.heads // arch.kv_heads} heads of width {arch.head_dim} do not fit them"
    sizes = (arch.width, arch.mlp_width, arch.vocab_size)
    if any(size % 16 for size in sizes):
        return f"sizes {sizes} are not all multiples of 16"
    return None


def fits(params: PyTree, rows: int, given: LayerInputs) -> bool:
    """Whether a decoding step of so many rows can go through these kernels.

    Args:
        params: the decoder's parameters.
        rows: B.
        given: what enters the layers besides the stream: soft tokens are no matter, but a prefix,
            LoRA, blocks and factors on the message's values are.
    """
    plain = given.kv is None and given.edits.lora is None and given.edits.blocks is None
    joined = is_apart(params) and bool(params["layers"]) and "qkv" in params["layers"][0]
    return plain and given.gain is None and joined and rows <= ROWS


def step(
    arch: Arch, params: PyTree, h: Array, positions: Array, cache: Cache
) -> tuple[Array, Cache]:
    """Runs all layers on one new token of each row.

    Args:
        arch: the decoder.
        params: its parameters, layers apart.
        h: [B, D] embeddings.
        positions: [B, 1] the tokens' positions.
        cache: what stands before them, an array a layer; they are added.

    Returns:
        [B, D] the stream after the last layer, and the cache.
    """
    cos, sin = (x[:, 0] for x in angles(arch, positions))
    lengths = cache.lengths

    @jax.jit  # traced once, and used by all layers
    def layer(w: PyTree, h: Array, past: tuple[Array, Array]) -> Any:
        qkv = product(
            h, w["qkv"], norm=w["attn_norm"], eps=arch.norm_eps, bias=_bias(arch, w)
        ).reshape(h.shape[0], -1, arch.head_dim)
        mixed, past = attend(arch, qkv, cos, sin, lengths, past)
        h = product(mixed.reshape(h.shape[0], -1), w["o"], residual=h)
        hidden = product(h, w["gate_up"], norm=w["mlp_norm"], eps=arch.norm_eps, gated=True)
        return product(hidden, w["down"], residual=h), past

    pasts = []
    for w, *past in zip(params["layers"], cache.k, cache.v, strict=True):
        h, kept = layer(w, h, tuple(past))
        pasts.append(kept)
    at = put_positions(cache, lengths[:, None], positions)
    keys, values = (tuple(x) for x in zip(*pasts, strict=True))
    return h, Cache(keys, values, at, lengths + 1)


def _bias(arch: Arch, w: PyTree) -> Array | None:
    if not arch.qkv_bias:
        return None
    return jnp.concatenate([w[f"{name}_bias"] for name in ("q", "k", "v")])


def logits(arch: Arch, params: PyTree, h: Array) -> Array:
    """[B, V] float32 next-token logits of h [B, D], as `head.logits`."""
    return product(
        h,
        params["embed"] if arch.tied else params["head"],
        outs_first=arch.tied,
        norm=params["final_norm"],
        eps=arch.norm_eps,
        out=jnp.float32,
    )


def product(
    x: Array,
    w: Array | QuantArray,
    *,
    outs_first: bool = False,
    norm: Array | None = None,
    eps: float = 0.0,
    bias: Array | None = None,
    gated: bool = False,
    residual: Array | None = None,
    out: Any = None,
    tile: Tile | None = None,
) -> Array:
    """x times w, of at most `ROWS` rows, with what comes before and after it.

    Args:
        x: [B, I] inputs.
        w: [*ins, *outs] weights; a stored one of kind int8 or float8.
        outs_first: whether a plain weight is [*outs, *ins].
        norm: [I] weight of an RMS norm of x; None: no norm.
        eps: of the norm.
        bias: [N], added to the results; None: nothing.
        gated: the first half of the results is a gate: silu of it times the other half is given.
        residual: [B, N], added; None: nothing.
        out: dtype of the results; None: that of x.
        tile: how the product is cut, as far as the sizes allow; None: of `TILES`, or `TILE`.

    Returns:
        [B, N], or [B, N/2] if gated.
    """
    codes, scale = (w.codes, w.scale) if isinstance(w, QuantArray) else (w, None)
    rows, ins = x.shape
    outs_first = w.kind == "float8" if isinstance(w, QuantArray) else outs_first
    total = codes.size // ins
    codes = codes.reshape((total, ins) if outs_first else (ins, total))
    results = total // 2 if gated else total
    tile = tile or TILES.get((ins, results), TILE)
    size_out, size_in = _divisor(results, tile.outs), _divisor(ins, tile.ins)
    count = results // size_out

    def of_weights(half: int) -> pl.BlockSpec:
        if outs_first:
            return pl.BlockSpec((size_out, ins), lambda i: (i + half * count, 0))
        return pl.BlockSpec((ins, size_out), lambda i: (0, i + half * count))

    def of_results(half: int) -> pl.BlockSpec:
        return pl.BlockSpec((size_out,), lambda i: (i + half * count,))

    halves = (0, 1) if gated else (0,)
    given: list[tuple[Array, pl.BlockSpec]] = [
        (x, pl.BlockSpec((ROWS, ins), lambda i: (0, 0))),
        *((codes, of_weights(half)) for half in halves),
    ]
    if norm is not None:
        given.append((norm, pl.BlockSpec((ins,), lambda i: (0,))))
    if scale is not None:
        flat = scale.reshape(total)
        given += [(flat, of_results(half)) for half in halves]
    if bias is not None:
        given += [(bias.reshape(total), of_results(half)) for half in halves]
    if residual is not None:
        given.append((residual, pl.BlockSpec((ROWS, size_out), lambda i: (0, i))))
    kernel = partial(
        _product,
        rows=rows,
        ins=ins,
        step=size_in,
        outs_first=outs_first,
        eps=eps,
        halves=len(halves),
        has=(norm is not None, scale is not None, bias is not None, residual is not None),
    )
    made: Array = pl.pallas_call(
        kernel,
        grid=(count,),
        in_specs=[spec for _, spec in given],
        out_specs=pl.BlockSpec((ROWS, size_out), lambda i: (0, i)),
        out_shape=jax.ShapeDtypeStruct((rows, results), out or x.dtype),
        compiler_params=triton.CompilerParams(num_warps=tile.warps, num_stages=tile.stages),
        interpret=INTERPRETED,
        name="product",
    )(*(value for value, _ in given))
    return made


def _divisor(size: int, wanted: int) -> int:
    """The largest power of two up to `wanted` that divides a size."""
    return min(wanted, size & -size)


def _product(
    x_ref: Any,
    *refs: Any,
    rows: int,
    ins: int,
    step: int,
    outs_first: bool,
    eps: float,
    halves: int,
    has: tuple[bool, bool, bool, bool],
) -> None:
    (*rest, o_ref) = refs
    weights, rest = rest[:halves], rest[halves:]
    norm_ref = rest.pop(0) if has[0] else None
    scales = [rest.pop(0) for _ in range(halves)] if has[1] else []
    biases = [rest.pop(0) for _ in range(halves)] if has[2] else []
    residual_ref = rest.pop(0) if has[3] else None
    size_out = o_ref.shape[1]
    real = (jnp.arange(ROWS) < rows)[:, None]
    dtype = x_ref.dtype

    def body(i: Any, carry: Any) -> Any:
        sums, squares = carry
        at = pl.ds(i * step, step)
        x = triton.load(x_ref.at[:, at], mask=real, other=0.0)
        if norm_ref is not None:
            wide = x.astype(jnp.float32)
            squares += jnp.sum(wide * wide, axis=1)
            x = (wide * norm_ref[at].astype(jnp.float32)[None]).astype(dtype)
        found = []
        for w_ref, total in zip(weights, sums, strict=True):
            w = (w_ref[:, at] if outs_first else w_ref[at, :]).astype(dtype)
            found.append(total + triton.dot(x, w, trans_b=outs_first))
        return tuple(found), squares

    zeros = tuple(jnp.zeros((ROWS, size_out), jnp.float32) for _ in weights)
    sums, squares = lax.fori_loop(0, ins // step, body, (zeros, jnp.zeros((ROWS,), jnp.float32)))
    ys = list(sums)
    if norm_ref is not None:
        factor = lax.rsqrt(squares / ins + eps)[:, None]
        ys = [y * factor for y in ys]
    ys = [y * s[...][None] for y, s in zip(ys, scales, strict=True)] if scales else ys
    if biases:
        ys = [y + b[...].astype(jnp.float32)[None] for y, b in zip(ys, biases, strict=True)]
    y = ys[0] * lax.logistic(ys[0]) * ys[1] if halves == 2 else ys[0]
    if residual_ref is not None:
        before = triton.load(residual_ref.at[:, :], mask=real, other=0.0).astype(jnp.float32)
        y = y.astype(dtype).astype(jnp.float32) + before
    triton.store(o_ref.at[:, :], y.astype(o_ref.dtype), mask=real)


def attend(
    arch: Arch,
    qkv: Array,
    cos: Array,
    sin: Array,
    lengths: Array,
    past: tuple[Array, Array],
) -> tuple[Array, tuple[Array, Array]]:
    """One new token of each row: its key and value are written, and it attends to all before it.

    Args:
        arch: the decoder.
        qkv: [B, H + 2 K, h] queries, keys and values, not rotated.
        cos: [B, h/2] cosines of the rows' angles.
        sin: [B, h/2] their sines.
        lengths: [B], columns that are filled; the new one goes behind them, and is dropped where
            there is no room.
        past: keys and values [B, S, K, h]; written in place.

    Returns:
        [B, H, h] mixed values, and the keys and values.
    """
    rows, room, heads, width = past[0].shape
    splits = max(1, min(8, -(-room // 2048), -(-256 // (rows * heads))))
    chunk = -(-room // splits)
    chunk += -chunk % KEYS
    kernel = partial(
        _attend, group=arch.heads // heads, heads=arch.heads, kv_heads=heads, chunk=chunk
    )
    cache = pl.BlockSpec((None, room, None, width), lambda b, k, s: (b, 0, k, 0))
    shape = jax.ShapeDtypeStruct
    group = arch.heads // heads
    per_query = (rows, splits, heads, group)
    one = pl.BlockSpec((None, None, None, ROWS), lambda b, k, s: (b, s, k, 0))
    mixed, largest, total, keys, values = pl.pallas_call(
        kernel,
        grid=(rows, heads, splits),
        in_specs=[
            pl.BlockSpec((None, *qkv.shape[1:]), lambda b, k, s: (b, 0, 0)),
            pl.BlockSpec((None, width // 2), lambda b, k, s: (b, 0)),
            pl.BlockSpec((None, width // 2), lambda b, k, s: (b, 0)),
            pl.BlockSpec((None,), lambda b, k, s: (b,)),
            cache,
            cache,
        ],
        out_specs=[
            pl.BlockSpec((None, None, None, ROWS, width), lambda b, k, s: (b, s, k, 0, 0)),
            one,
            one,
            cache,
            cache,
        ],
        out_shape=[
            shape((*per_query, width), qkv.dtype if splits == 1 else jnp.float32),
            shape(per_query, jnp.float32),
            shape(per_query, jnp.float32),
            shape(past[0].shape, past[0].dtype),
            shape(past[1].shape, past[1].dtype),
        ],
        input_output_aliases={4: 3, 5: 4},
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
        interpret=INTERPRETED,
        name="attend",
    )(qkv, cos, sin, lengths, *past)
    if splits == 1:
        return mixed.reshape(rows, arch.heads, width), (keys, values)
    share = total * jnp.exp(largest - jnp.max(largest, axis=1, keepdims=True))
    share /= jnp.sum(share, axis=1, keepdims=True)
    mixed = jnp.sum(mixed * share[..., None], axis=1).astype(qkv.dtype)
    return mixed.reshape(rows, arch.heads, width), (keys, values)


def _attend(
    qkv_ref: Any,
    cos_ref: Any,
    sin_ref: Any,
    length_ref: Any,
    k_ref: Any,
    v_ref: Any,
    o_ref: Any,
    m_ref: Any,
    l_ref: Any,
    k_out: Any,
    v_out: Any,
    *,
    group: int,
    heads: int,
    kv_heads: int,
    chunk: int,
) -> None:
    head, split = pl.program_id(1), pl.program_id(2)
    room, width = k_ref.shape
    half = width // 2
    dtype = qkv_ref.dtype
    length = length_ref[()]
    low, high = pl.ds(0, half), pl.ds(half, half)
    cos, sin = cos_ref[...], sin_ref[...]

    def rotated(first: Array, second: Array, cos: Array, sin: Array) -> tuple[Array, Array]:
        a, b = first.astype(jnp.float32), second.astype(jnp.float32)
        return (a * cos - b * sin).astype(dtype), (b * cos + a * sin).astype(dtype)

    member = jnp.arange(ROWS)
    mine = member < group
    queries = jnp.minimum(head * group + member, heads - 1)
    columns = jnp.arange(half)

    def query(start: int) -> Array:
        at = qkv_ref.at[queries[:, None], (start + columns)[None]]
        return triton.load(at, mask=mine[:, None] & (columns >= 0)[None], other=0.0)

    q = rotated(query(0), query(half), cos[None], sin[None])
    own = heads + head
    key = rotated(qkv_ref[own, low], qkv_ref[own, high], cos, sin)
    value = qkv_ref[own + kv_heads, :]
    scale = 1.0 / width**0.5

    def body(i: Any, carry: Any) -> Any:
        mixed, largest, total = carry
        at = split * chunk + i * KEYS + jnp.arange(KEYS)
        seen = at < length
        at = jnp.minimum(at, room - 1)

        def of(ref: Any, start: int, size: int) -> Array:
            places = start + jnp.arange(size)
            mask = seen[:, None] & (places >= 0)[None]
            return triton.load(ref.at[at[:, None], places[None]], mask=mask, other=0.0)

        z = triton.dot(q[0], of(k_ref, 0, half), trans_b=True)
        z += triton.dot(q[1], of(k_ref, half, half), trans_b=True)
        z = jnp.where(seen[None], z * scale, LOWEST)
        now = jnp.maximum(largest, jnp.max(z, axis=1))
        shrunk = jnp.exp(largest - now)
        weights = jnp.exp(z - now[:, None])
        mixed = mixed * shrunk[:, None] + triton.dot(weights.astype(dtype), of(v_ref, 0, width))
        return mixed, now, total * shrunk + jnp.sum(weights, axis=1)

    begin = (
        jnp.zeros((ROWS, width), jnp.float32),
        jnp.full((ROWS,), LOWEST, jnp.float32),
        jnp.zeros((ROWS,), jnp.float32),
    )
    there = jnp.clip(jnp.minimum(length, room) - split * chunk, 0, chunk)
    mixed, largest, total = lax.fori_loop(0, pl.cdiv(there, KEYS), body, begin)
    # The new token itself, seen by the first split.
    z = _rowwise(q[0], key[0]) + _rowwise(q[1], key[1])
    z = jnp.where(split == 0, z * scale, LOWEST)
    now = jnp.maximum(largest, z)
    shrunk, weight = jnp.exp(largest - now), jnp.where(split == 0, jnp.exp(z - now), 0.0)
    rounded = weight.astype(dtype).astype(jnp.float32)
    mixed = mixed * shrunk[:, None] + rounded[:, None] * value.astype(jnp.float32)[None]
    total = total * shrunk + weight
    mixed = mixed / jnp.maximum(total, 1e-30)[:, None]
    triton.store(o_ref.at[:, :], mixed.astype(o_ref.dtype), mask=mine[:, None])
    triton.store(m_ref.at[:], now, mask=mine)
    triton.store(l_ref.at[:], total, mask=mine)
    free = (split == 0) & (length < room)
    place = jnp.minimum(length, room - 1)
    triton.store(k_out.at[place, low], key[0], mask=jnp.broadcast_to(free, (half,)))
    triton.store(k_out.at[place, high], key[1], mask=jnp.broadcast_to(free, (half,)))
    triton.store(v_out.at[place, :], value, mask=jnp.broadcast_to(free, (width,)))


def _rowwise(x: Array, y: Array) -> Array:
    """Products of the rows of x with y, added up in float32."""
    return jnp.sum(x.astype(jnp.float32) * y.astype(jnp.float32)[None], axis=1)
