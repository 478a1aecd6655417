"""A decoding step of few rows in seven kernels a layer, for NVIDIA GPUs (Pallas, by Triton).

A new token's time is that of reading the weights once, and of starting kernels. As XLA compiles it,
a layer is eighteen kernels; here it is seven: queries, keys and values; rotation, cache and
attention; output; sum and norm; gate, up and activation; down; sum and norm. Products read plain
weights, or stored ones of 8 bits, where they lie. What is computed is what `decoder.run` computes:
norms, rotation and softmax in float32, products of the stream's dtype added up in float32; results
differ by rounding. Activations are not rounded to 8 bits, as products of float8 do.

Letters: B rows, S columns of the cache, D width, H heads, K key/value heads, h head width, I inputs
and N results of a product, P parts of its sums.
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


@dataclass(frozen=True)
class Tile:
    """How a product is cut.

    Attributes:
        outs: results of a program.
        ins: inputs that are read at a time.
        warps: of a program.
        stages: reads under way at once.
    """

    outs: int
    ins: int
    warps: int
    stages: int


WIDE, NARROW = Tile(128, 128, 8, 4), Tile(64, 128, 4, 5)
PROGRAMS = 96
"""The fewest programs that occupy a GPU; a product with fewer is cut along its inputs too."""
INTERPRETED = False
"""Whether the kernels are interpreted, as tests on a CPU do."""


def chosen(decoding: str, mesh: Mesh, arch: Arch, *, dtype: Any, quant: str | None) -> bool:
    """Whether a config asks for these kernels for a decoder.

    Args:
        decoding: `xla` or `kernels`.
        mesh: the devices that it runs on.
        arch: the decoder.
        dtype: of the weights that are computed with.
        quant: how the matrices are stored; None: in `dtype`.

    Raises:
        UserError: `kernels`, and they cannot run: they do on one NVIDIA GPU from compute capability
            8.0 on, in bfloat16, where `takes` allows.
    """
    if decoding == "xla":
        return False
    lacks = takes(arch, quant)
    if lacks is None and mesh.size > 1:
        lacks = "the model is on several devices"
    if lacks is None and capability(mesh.devices.flat[0]) < 8:
        lacks = "there is no NVIDIA GPU from compute capability 8.0 on"
    if lacks is None and jnp.dtype(dtype) != jnp.bfloat16:
        lacks = f"they compute in bfloat16, not {jnp.dtype(dtype)}"
    if lacks is not None:
        raise UserError(f"decoding: kernels is not possible: {lacks}; set it to xla")
    return True


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
        [B, D] the stream after the last layer and the final norm, and the cache.
    """
    cos, sin = (x[:, 0] for x in angles(arch, positions))
    lengths, rows = cache.lengths, h.shape[0]

    @jax.jit  # traced once, and used by all layers
    def layer(w: PyTree, then: Array, h: Array, x: Array, past: tuple[Array, Array]) -> Any:
        qkv = product(x, w["qkv"], bias=_bias(arch, w), whole=True)[0]
        qkv = qkv.reshape(rows, -1, arch.head_dim)
        mixed, past = attend(arch, qkv, cos, sin, lengths, past)
        h, x = normed(h, w["mlp_norm"], arch.norm_eps, product(mixed.reshape(rows, -1), w["o"]))
        hidden = product(x, w["gate_up"], gated=True)[0]
        return *normed(h, then, arch.norm_eps, product(hidden, w["down"])), past

    layers = params["layers"]
    norms = [w["attn_norm"] for w in layers] + [params["final_norm"]]
    _, x = normed(h, norms[0], arch.norm_eps)
    pasts = []
    for w, then, *past in zip(layers, norms[1:], cache.k, cache.v, strict=True):
        h, x, kept = layer(w, then, h, x, tuple(past))
        pasts.append(kept)
    at = put_positions(cache, lengths[:, None], positions)
    keys, values = (tuple(x) for x in zip(*pasts, strict=True))
    return x, Cache(keys, values, at, lengths + 1)


def _bias(arch: Arch, w: PyTree) -> Array | None:
    if not arch.qkv_bias:
        return None
    return jnp.concatenate([w[f"{name}_bias"] for name in ("q", "k", "v")])


def logits(arch: Arch, params: PyTree, x: Array) -> Array:
    """[B, V] float32 next-token logits of what `step` gives."""
    table = params["embed"] if arch.tied else params["head"]
    return product(x, table, outs_first=arch.tied, whole=True, out=jnp.float32)[0]


def normed(h: Array, norm: Array, eps: float, sums: Array | None = None) -> tuple[Array, Array]:
    """The stream with a product added to it, and its RMS norm.

    Args:
        h: [B, D] stream.
        norm: [D] weight of the norm.
        eps: of the norm.
        sums: [P, B, D] float32 parts of the product; None: nothing is added.
    """
    rows, width = h.shape
    room = pl.next_power_of_2(width)
    row = pl.BlockSpec((None, room), lambda b: (b, 0))
    given = [(h, row), (norm, pl.BlockSpec((room,), lambda b: (0,)))]
    if sums is not None:
        given.append((sums, pl.BlockSpec((sums.shape[0], None, room), lambda b: (0, b, 0))))
    shape = jax.ShapeDtypeStruct(h.shape, h.dtype)
    made: tuple[Array, Array] = pl.pallas_call(
        partial(_normed, eps=eps, width=width, parts=0 if sums is None else sums.shape[0]),
        grid=(rows,),
        in_specs=[spec for _, spec in given],
        out_specs=[row, row],
        out_shape=[shape, shape],
        compiler_params=triton.CompilerParams(num_warps=8, num_stages=1),
        interpret=INTERPRETED,
        name="normed",
    )(*(value for value, _ in given))
    return made[0], made[1]


def _normed(h_ref: Any, norm_ref: Any, *refs: Any, eps: float, width: int, parts: int) -> None:
    *rest, h_out, x_out = refs
    dtype = h_ref.dtype
    real = jnp.arange(h_ref.shape[0]) < width

    def read(ref: Any) -> Array:
        return triton.load(ref.at[:], mask=real, other=0.0).astype(jnp.float32)

    h = read(h_ref)
    if parts:
        total = jnp.sum(triton.load(rest[0].at[:, :], mask=real[None], other=0.0), axis=0)
        h = (h + total.astype(dtype).astype(jnp.float32)).astype(dtype).astype(jnp.float32)
    unit = h * lax.rsqrt(jnp.sum(h * h) / width + eps)
    triton.store(h_out.at[:], h.astype(dtype), mask=real)
    triton.store(x_out.at[:], (unit * read(norm_ref)).astype(dtype), mask=real)


def product(
    x: Array,
    w: Array | QuantArray,
    *,
    outs_first: bool = False,
    bias: Array | None = None,
    gated: bool = False,
    whole: bool = False,
    out: Any = None,
    tile: Tile | None = None,
) -> Array:
    """x times w, of at most `ROWS` rows.

    Args:
        x: [B, I] inputs.
        w: [*ins, *outs] weights; a stored one of kind int8 or float8.
        outs_first: whether a plain weight is [*outs, *ins].
        bias: [N], added to the results; None: nothing.
        gated: the first half of the results is a gate: silu of it times the other half is given.
        whole: whether the sums are wanted whole, as they are with a bias or gated.
        out: dtype of whole results; None: that of x.
        tile: how the product is cut, as far as the sizes allow; None: as is known to be fast.

    Returns:
        [1, B, N], or [1, B, N/2] if gated; else [P, B, N] float32, parts of the sums.
    """
    codes, scale = (w.codes, w.scale) if isinstance(w, QuantArray) else (w, None)
    rows, ins = x.shape
    outs_first = w.kind == "float8" if isinstance(w, QuantArray) else outs_first
    whole = whole or gated or bias is not None
    total = codes.size // ins
    codes = codes.reshape((total, ins) if outs_first else (ins, total))
    results = total // 2 if gated else total
    tile = tile or (WIDE if results >= PROGRAMS * WIDE.outs else NARROW)
    size_out, count = _cut(results, tile.outs)
    parts = 1 if whole else _parts(ins, count)
    chunk = ins // parts
    step, _ = _cut(chunk, tile.ins)

    def of_weights(half: int) -> pl.BlockSpec:
        if outs_first:
            return pl.BlockSpec((size_out, chunk), lambda i, p: (i + half * count, p))
        return pl.BlockSpec((chunk, size_out), lambda i, p: (p, i + half * count))

    def of_results(half: int) -> pl.BlockSpec:
        return pl.BlockSpec((size_out,), lambda i, p: (i + half * count,))

    halves = (0, 1) if gated else (0,)
    given: list[tuple[Array, pl.BlockSpec]] = [
        (x, pl.BlockSpec((ROWS, chunk), lambda i, p: (0, p))),
        *((codes, of_weights(half)) for half in halves),
    ]
    if scale is not None:
        given += [(scale.reshape(total), of_results(half)) for half in halves]
    if bias is not None:
        given += [(bias.reshape(total), of_results(half)) for half in halves]
    kernel = partial(
        _product,
        rows=rows,
        steps=chunk // step,
        outs_first=outs_first,
        halves=len(halves),
        has=(scale is not None, bias is not None),
    )
    dtype = (out or x.dtype) if whole else jnp.float32
    made: Array = pl.pallas_call(
        kernel,
        grid=(count, parts),
        in_specs=[spec for _, spec in given],
        out_specs=pl.BlockSpec((None, ROWS, size_out), lambda i, p: (p, 0, i)),
        out_shape=jax.ShapeDtypeStruct((parts, rows, results), dtype),
        compiler_params=triton.CompilerParams(num_warps=tile.warps, num_stages=tile.stages),
        interpret=INTERPRETED,
        name="product",
    )(*(value for value, _ in given))
    return made


def _cut(size: int, wanted: int) -> tuple[int, int]:
    """The largest power of two up to `wanted` that divides a size, and how often."""
    piece = min(wanted, size & -size)
    return piece, size // piece


def _parts(ins: int, programs: int) -> int:
    """Into how many parts inputs are cut, so that there are enough programs."""
    parts = 1
    while parts * programs < PROGRAMS and ins % (2 * parts * 64) == 0:
        parts *= 2
    return parts


def _product(
    x_ref: Any,
    *refs: Any,
    rows: int,
    steps: int,
    outs_first: bool,
    halves: int,
    has: tuple[bool, bool],
) -> None:
    (*rest, o_ref) = refs
    weights, rest = rest[:halves], rest[halves:]
    scales = [rest.pop(0) for _ in range(halves)] if has[0] else []
    biases = [rest.pop(0) for _ in range(halves)] if has[1] else []
    step, size_out = x_ref.shape[1] // steps, o_ref.shape[1]
    real = (jnp.arange(ROWS) < rows)[:, None]
    dtype = x_ref.dtype

    def body(i: Any, sums: tuple[Array, ...]) -> tuple[Array, ...]:
        at = pl.ds(i * step, step)
        x = triton.load(x_ref.at[:, at], mask=real, other=0.0)
        found = []
        for w_ref, total in zip(weights, sums, strict=True):
            w = (w_ref[:, at] if outs_first else w_ref[at, :]).astype(dtype)
            found.append(total + triton.dot(x, w, trans_b=outs_first))
        return tuple(found)

    zeros = tuple(jnp.zeros((ROWS, size_out), jnp.float32) for _ in weights)
    ys = list(lax.fori_loop(0, steps, body, zeros))
    ys = [y * s[...][None] for y, s in zip(ys, scales, strict=True)] if scales else ys
    if biases:
        ys = [y + b[...].astype(jnp.float32)[None] for y, b in zip(ys, biases, strict=True)]
    y = ys[0] * lax.logistic(ys[0]) * ys[1] if halves == 2 else ys[0]
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
