"""The products of a decoded token, each cut in several ways (`lw_jax.models.kernels.Tile`)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import astuple
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.speed.measure import compiled, times
from benchmarks.speed.sizes import Sizes
from lw_jax.models import kernels
from lw_jax.models.encoder_arch import arch_from_hf
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
    )
]
"""Ways to cut the products that are tried."""


def tiles(s: Sizes, how: dict[str, str]) -> dict[str, Row]:
    """Each product of a token: its time by XLA, as each of `CUTS`, and the fastest of these."""
    found: dict[str, Row] = {}
    arch: Any = arch_from_hf(s.receiver, None, where="receiver")
    wide, heads = arch.width, (arch.heads + 2 * arch.kv_heads) * arch.head_dim
    shapes = {
        "qkv": ((wide, heads), True, 5),
        "o": ((arch.heads * arch.head_dim, wide), False, 6),
        "gate_up": ((wide, 2, arch.mlp_width), True, 2),
        "down": ((arch.mlp_width, wide), False, 3),
        "head": ((wide, arch.vocab_size), True, 2),
    }
    kinds = CUTS if s.times > 3 else CUTS[:1]
    for name, (shape, normed, copies) in shapes.items():
        dtype = jnp.dtype(s.dtype)
        # More than a cache of the processor holds.
        weights = [drawn(jax.random.key(i), shape, dtype) for i in range(copies)]
        norm, x = jnp.ones(shape[:1], dtype), drawn(jax.random.key(9), (1, shape[0]), dtype)
        of = jax.jit(partial(_chain, normed), static_argnums=0)
        calls = {cut: (of, (cut, weights, x, norm), {}) for cut in (None, *kinds)}
        programs, _ = compiled(calls)
        size = sum(w.nbytes for w in weights) / 1e9 / copies
        took = {}
        for cut, program in programs.items():
            call: Callable[[], Any] = partial(program, weights, x, norm)
            each = times(call, jax.block_until_ready, 1, 5)["ms"] / TIMES / copies
            label = "xla" if cut is None else "_".join(str(n) for n in astuple(cut))
            found[f"{name}_{label}"] = {
                "ms": round(each, 5),
                "gb_per_s": round(size / each * 1e3, 1),
            }
            took[cut] = each
        best = min(kinds, key=lambda cut: took[cut])
        found[f"{name}_fastest"] = {
            "ms": round(took[best], 5),
            "sizes": [shape[0], shape[-1]],
            "tile": list(astuple(best)),
        }
    return found


def _chain(
    normed: bool, cut: kernels.Tile | None, weights: list[Array], x: Array, norm: Array
) -> Array:
    """The products with all weights, `TIMES` times, each of which waits for the one before."""

    def once(_: Any, y: Array) -> Array:
        for w in weights:
            if cut is None:
                y = y + (x @ w.reshape(x.shape[1], -1))[:, : y.shape[1]]
            else:
                y = kernels.product(
                    x,
                    w,
                    norm=norm if normed else None,
                    eps=1e-5,
                    gated=w.ndim == 3,
                    residual=y,
                    tile=cut,
                )
        return y

    begin = jnp.zeros((1, weights[0].shape[-1]), x.dtype)
    done: Array = lax.fori_loop(0, TIMES, once, begin)
    return done


def taken(how: dict[str, str]) -> None:
    """Takes the fastest tiles of a JSON file of this part, whose path is `tiles`."""
    if "tiles" in how and Path(how["tiles"]).exists():
        parts = json.loads(Path(how["tiles"]).read_text())["parts"]["tiles"]
        for row in next(iter(parts.values())).values():
            if "tile" in row:
                ins, outs = row["sizes"]
                kernels.TILES[ins, outs] = kernels.Tile(*row["tile"])


@partial(jax.jit, static_argnums=(1, 2))
def drawn(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """Numbers 0.02 wide; of codes, 64 wide."""
    codes = jnp.dtype(dtype).itemsize == 1
    wide = 64 if codes else 0.02
    draw = jax.random.normal(key, shape, jnp.bfloat16 if codes else dtype)
    return (draw * jnp.asarray(wide, draw.dtype)).astype(dtype)
