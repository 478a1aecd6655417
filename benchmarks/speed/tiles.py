"""The products of a decoded token, each cut in several ways (`lw_jax.models.kernels.Tile`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.speed import turns
from benchmarks.speed.measure import compiled, times
from benchmarks.speed.sizes import Sizes
from lw_jax.models import kernels
from lw_jax.models.encoder_arch import arch_from_hf
from lw_jax.models.quant import QuantArray, einsum, quantise
from lw_jax.types import Array

Row = dict[str, Any]
TIMES = 20
CUTS = [
    kernels.Tile(*cut)
    for cut in (
        (32, 256, 4, 4),
        (32, 128, 4, 6),
        (32, 512, 4, 3),
        (64, 128, 4, 5),
        (64, 256, 4, 3),
        (64, 256, 8, 4),
        (128, 128, 8, 4),
        (16, 512, 4, 4),
        (16, 256, 2, 5),
        (64, 64, 2, 6),
        (128, 64, 4, 6),
        (64, 256, 4, 1),
        (128, 128, 8, 1),
        (128, 256, 8, 4),
        (128, 256, 4, 4),
        (64, 512, 4, 3),
    )
]
"""Ways to cut the products that are tried."""


def tiles(s: Sizes, how: dict[str, str]) -> dict[str, Row]:
    """Each product of a token: its time by XLA, as each of `CUTS`, and the fastest of these; with
    `quant`, of weights in 8 bits."""
    found: dict[str, Row] = {}
    turns.alone()
    kernels.INTERPRETED = jax.default_backend() == "cpu"  # only shows that they run
    arch: Any = arch_from_hf(s.receiver, None, where="receiver")
    wide, heads = arch.width, (arch.heads + 2 * arch.kv_heads) * arch.head_dim
    shapes = {
        "qkv": ((wide, heads), 5),
        "o": ((arch.heads * arch.head_dim, wide), 6),
        "gate_up": ((wide, 2, arch.mlp_width), 2),
        "down": ((arch.mlp_width, wide), 3),
        "head": ((wide, arch.vocab_size), 2),
    }
    kinds = CUTS if s.times > 3 else CUTS[:1]
    for name, (shape, copies) in shapes.items():
        dtype = jnp.dtype(s.dtype)
        # More than a cache of the processor holds.
        made = [drawn(jax.random.key(i), shape, dtype) for i in range(copies)]
        weights = [stored(w, how.get("quant")) for w in made]
        x = drawn(jax.random.key(9), (1, shape[0]), dtype)
        of = jax.jit(_chain, static_argnums=(0, 3))
        whole = name in ("qkv", "head")
        calls = {cut: (of, (cut, weights, x, whole), {}) for cut in (None, *kinds)}
        programs, _ = compiled(calls)
        size = sum(x.nbytes for x in jax.tree.leaves(weights)) / 1e9 / copies
        took = {}
        for cut, program in programs.items():
            call: Callable[[], Any] = partial(program, weights, x)
            each = times(call, jax.block_until_ready, 1, 5)["ms"] / TIMES / copies
            label = "xla" if cut is None else "_".join(str(n) for n in astuple(cut))
            found[f"{name}_{label}"] = {
                "ms": round(each, 5),
                "gb_per_s": round(size / each * 1e3, 1),
            }
            took[cut] = each
        best = min(kinds, key=lambda cut: took[cut])
        found[f"{name}_fastest"] = {"ms": round(took[best], 5), "tile": list(astuple(best))}
    return found


@partial(jax.jit, static_argnums=1, donate_argnums=0)
def stored(w: Array, kind: str | None) -> Array | QuantArray:
    """A weight as it is kept: itself, or in 8 bits."""
    return w if kind is None else quantise(w, 1, kind)


def _chain(
    cut: kernels.Tile | None, weights: list[Array | QuantArray], x: Array, whole: bool
) -> Array:
    """The products with all weights, `TIMES` times, each of which waits for a small kernel that
    waits for the one before."""

    def once(_: Any, x: Array) -> Array:
        for w in weights:
            gated = (w.codes if isinstance(w, QuantArray) else w).ndim == 3
            if cut is None:
                y = einsum("bi,icf->bcf" if gated else "bi,io->bo", x, w)
            else:
                y = kernels.product(x, w, gated=gated, whole=whole, tile=cut)
            y = lax.optimization_barrier(y)  # all of it
            x = x + 0 * y.reshape(-1)[:1].astype(x.dtype)[None]
        return x

    done: Array = lax.fori_loop(0, TIMES, once, x)
    return done


@partial(jax.jit, static_argnums=(1, 2))
def drawn(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """Numbers 0.02 wide; of codes, 64 wide."""
    codes = jnp.dtype(dtype).itemsize == 1
    wide = 64 if codes else 0.02
    draw = jax.random.normal(key, shape, jnp.bfloat16 if codes else dtype)
    return (draw * jnp.asarray(wide, draw.dtype)).astype(dtype)
