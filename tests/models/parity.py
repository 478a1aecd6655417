"""Our decoder on the golden checkpoints: errors against transformers, and mutations that must show.

python tests/models/parity.py       prints the table of errors per family and mutation
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh
from safetensors.numpy import load_file

from lw_jax.models import head
from lw_jax.models.apart import is_apart, layer_of
from lw_jax.models.arch import Arch, Rope
from lw_jax.models.attention import Mask, attention
from lw_jax.models.cache import Cache, new_cache
from lw_jax.models.checkpoint import open_checkpoint
from lw_jax.models.decoder import embed_tokens, run
from lw_jax.models.layer import heads, output, rms_norm
from lw_jax.models.load import load_params
from lw_jax.models.rope import angles, rotate

GOLDEN = Path(__file__).parent / "golden"
FAMILIES = sorted(path.name for path in GOLDEN.iterdir() if (path / "golden.safetensors").exists())
LENGTHS = np.array([24, 17], np.int32)
PROMPT = 18
TOLERANCE = 1e-4
MUST_MOVE = 100 * TOLERANCE
OF_ALL = ("wrong theta", "GQA order", "wrong eps")
"""Mutations that there are of every family, each a program of its own."""


@dataclass(frozen=True)
class Case:
    """One family's checkpoint as loaded here, and what transformers computed."""

    arch: Arch
    params: Any
    golden: dict[str, np.ndarray]


def one_device() -> Mesh:
    devices = jax.devices()[:1]
    return jax.make_mesh((1, 1), ("data", "model"), (AxisType.Auto,) * 2, devices=devices)


def load(name: str) -> Case:
    found = open_checkpoint(GOLDEN / name)
    params = load_params(found, one_device(), dtype=jnp.float32)
    return Case(found.arch, params, load_file(GOLDEN / name / "golden.safetensors"))


@partial(jax.jit, static_argnums=0)
def compute(arch: Arch, params: Any, ids: jax.Array, lengths: jax.Array) -> dict[str, jax.Array]:
    """The same quantities as make_golden.py's `reference`, but for `cached`."""
    with jax.default_matmul_precision("highest"):
        tokens = ids.shape[1]
        positions = jnp.broadcast_to(jnp.arange(tokens)[None], ids.shape)
        h = embed_tokens(params, ids)
        w = layer_of(params, 0)
        cos, sin = angles(arch, positions)
        normed = rms_norm(h, w["attn_norm"], arch.norm_eps)
        q, k, v = heads(arch, w, normed, cos, sin, None, None)
        back = jnp.arange(tokens)[:, None] - jnp.arange(tokens)[None]
        seen = (back >= 0) & (back < (arch.window or tokens))
        mask = Mask(jnp.broadcast_to(seen[None, None], (ids.shape[0], 1, tokens, tokens)))
        first = output(w, attention(q, rotate(k, cos, sin), v, mask), None, None)
        taps = tuple(range(1, arch.layers + 1))
        done = run(arch, params, h, positions=positions, lengths=lengths, taps=taps)
        scores = head.logits(arch, params, done.h.reshape(-1, arch.width))
        return {
            "embeddings": h,
            "attention": first,
            "layers": done.taps,
            "logits": scores.reshape(*ids.shape, -1),
        }


@partial(jax.jit, static_argnums=0)
def piece(
    arch: Arch, params: Any, ids: jax.Array, positions: jax.Array, cache: Cache
) -> tuple[jax.Array, Cache]:
    """Logits [B, V] after the next tokens [B, T], and the cache with them."""
    with jax.default_matmul_precision("highest"):
        h, new = embed_tokens(params, ids), jnp.full(ids.shape[0], ids.shape[1])
        done = run(arch, params, h, positions=positions, lengths=new, cache=cache)
        assert done.cache is not None
        return head.logits(arch, params, done.h[:, -1]), done.cache


def compute_cached(arch: Arch, params: Any, ids: np.ndarray) -> np.ndarray:
    """Logits [B, T - PROMPT + 1, V] of tokens decoded one by one over the cache."""
    rows, tokens = ids.shape
    positions = np.broadcast_to(np.arange(tokens)[None], ids.shape)
    cache = new_cache(arch, arch.layers, rows, tokens, jnp.float32, apart=is_apart(params))
    found = []
    for start, stop in [(0, PROMPT), *((i, i + 1) for i in range(PROMPT, tokens))]:
        at = slice(start, stop)
        logits, cache = piece(arch, params, ids[:, at], positions[:, at], cache)
        found.append(np.asarray(logits))
    return np.stack(found, axis=1)


def errors(case: Case) -> dict[str, float]:
    """Largest absolute differences at real tokens."""
    found = dict(compute(case.arch, case.params, case.golden["ids"], LENGTHS))
    found["cached"] = compute_cached(case.arch, case.params, case.golden["ids"])
    return {name: difference(name, np.asarray(x), case.golden[name]) for name, x in found.items()}


@partial(jax.jit, static_argnums=0)
def logits_of(arch: Arch, params: Any, ids: jax.Array, lengths: jax.Array) -> jax.Array:
    """[B, T, V] logits alone."""
    with jax.default_matmul_precision("highest"):
        positions = jnp.broadcast_to(jnp.arange(ids.shape[1])[None], ids.shape)
        h = embed_tokens(params, ids)
        h = run(arch, params, h, positions=positions, lengths=lengths).h
        return head.logits(arch, params, h.reshape(-1, arch.width)).reshape(*ids.shape, -1)


def moved(case: Case, arch: Arch, params: Any) -> float:
    """How far a mutation moves the logits."""
    found = logits_of(arch, params, case.golden["ids"], LENGTHS)
    return difference("logits", np.asarray(found), case.golden["logits"])


def difference(name: str, ours: np.ndarray, theirs: np.ndarray) -> float:
    if name == "cached":
        return float(np.abs(ours - theirs).max())
    real = np.arange(theirs.shape[-2])[None] < LENGTHS[:, None]
    return float(np.abs(ours - theirs)[..., real, :].max())


def mutations(case: Case) -> Iterator[tuple[str, Arch, Any]]:
    """Faults of conversion, each as an arch and parameters that have it."""
    arch, params = case.arch, case.params
    if arch.rope.scaling is not None:
        yield "scaling off", replace(arch, rope=Rope(arch.rope.theta)), params
    other = 10000.0 if arch.rope.theta != 10000.0 else 500000.0
    yield "wrong theta", replace(arch, rope=replace(arch.rope, theta=other)), params
    if arch.heads != arch.kv_heads:
        yield "GQA order", replace(arch, kv_heads=arch.heads), _tiled(arch, params)
    if arch.qkv_bias:
        yield "bias dropped", replace(arch, qkv_bias=False), params
    if arch.qk_norm:
        yield "q/k norm off", replace(arch, qk_norm=False), params
    if arch.window is not None:
        yield "window off", replace(arch, window=None), params
        yield "window + 1", replace(arch, window=arch.window + 1), params
    yield "wrong eps", replace(arch, norm_eps=1e-5), params
    yield "norms and biases unread", arch, _unread(params)


def _tiled(arch: Arch, params: Any) -> Any:
    """Query head n reads key/value head n % K, not n // (H / K)."""

    def tile(x: jax.Array) -> jax.Array:
        return jnp.concatenate([x] * (arch.heads // arch.kv_heads), axis=-2)

    layers = params["layers"]
    names = [name for name in ("k", "v", "k_bias", "v_bias") if name in layers]
    return {**params, "layers": {**layers, **{name: tile(layers[name]) for name in names}}}


def _unread(params: Any) -> Any:
    def plain(name: str, x: jax.Array) -> jax.Array:
        return jnp.ones_like(x) if "norm" in name else jnp.zeros_like(x) if "bias" in name else x

    layers = {name: plain(name, x) for name, x in params["layers"].items()}
    return {**params, "layers": layers}


def table(show: Callable[[str], None] = print) -> None:
    for name in FAMILIES:
        case = load(name)
        found = errors(case)
        show(f"{name:11s} " + "  ".join(f"{key} {value:.1e}" for key, value in found.items()))
        for fault, arch, params in mutations(case):
            by = moved(case, arch, params)
            show(
                f"{'':11s} {fault:24s} logits move by {by:6.3f} = {by / TOLERANCE:6.0f} x tolerance"
            )


if __name__ == "__main__":
    jax.config.update("jax_numpy_rank_promotion", "raise")
    table()
