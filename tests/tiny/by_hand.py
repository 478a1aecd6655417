"""Layers in numpy, from the same trees of parameters as the linen modules have."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[Any]


def drawn(module: Any, *arguments: Any, **options: Any) -> Any:
    """Parameters of a module: all drawn, also those that start at zero or one."""
    shapes = jax.eval_shape(lambda key: module.init(key, *arguments, **options), jax.random.key(0))
    rng = np.random.default_rng(7)
    return jax.tree.map(lambda x: rng.normal(0, 0.4, x.shape).astype(np.float32), shapes)["params"]


def dense(p: Any, x: Floats) -> Floats:
    return x @ p["kernel"] + p.get("bias", 0.0)


def rms_norm(p: Any, x: Floats) -> Floats:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * p["scale"]


def layer_norm(p: Any, x: Floats) -> Floats:
    """Without a gain and a bias where p is empty."""
    found = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return found * p.get("scale", 1.0) + p.get("bias", 0.0)


def sinusoid(at: Any, width: int, longest: float = 4096.0) -> Floats:
    rates = longest ** (-np.arange(width // 2) / (width // 2 - 1))
    angles = np.asarray(at)[..., None] * rates
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)


def turned(x: Floats, at: Any) -> Floats:
    """Heads x [B, T, N, h] rotated at positions [B, T]."""
    half = x.shape[-1] // 2
    angles = (np.asarray(at)[..., None] * 1000.0 ** (-np.arange(half) / half))[:, :, None]
    a, b = x[..., :half], x[..., half:]
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def attention(p: Any, x: Floats, y: Floats, mask: Any, at: Any = None, y_at: Any = None) -> Floats:
    """Of x [B, M, W] over those of y [B, T, W] in mask [B, T].

    at: positions of both; or of x alone, and y_at those of y.
    """
    q, k, v = (
        np.einsum("btw,whe->bthe", z, p[name]["kernel"])
        for z, name in ((x, "query"), (y, "key"), (y, "value"))
    )
    if at is not None:
        q, k = turned(q, at), turned(k, at if y_at is None else y_at)
    scores = np.einsum("bmhe,bthe->bhmt", q, k) / q.shape[-1] ** 0.5
    scores = np.where(np.asarray(mask)[:, None, None], scores, -1e9)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights = weights / weights.sum(-1, keepdims=True)
    return np.einsum("bhmt,bthe,hew->bmw", weights, v, p["out"]["kernel"])


def gelu(x: Floats) -> Floats:
    return x / 2 * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))


def silu(x: Floats) -> Floats:
    return x / (1 + np.exp(-x))


def mlp(p: Any, x: Floats) -> Floats:
    return dense(p["down"], gelu(dense(p["up"], x)))


def stack(
    p: Any,
    x: Floats,
    mask: Any,
    at: Any = None,
    y: Any = None,
    y_mask: Any = None,
    y_at: Any = None,
) -> Floats:
    """Blocks, their parameters stacked: cross-attention, if there is y, self-attention, MLP."""
    blocks = p["blocks"]["block"]
    for i in range(len(blocks["self_norm"]["scale"])):
        w = jax.tree.map(lambda leaf, i=i: leaf[i], blocks)
        if y is not None:
            x = x + attention(w["cross"], rms_norm(w["cross_norm"], x), y, y_mask, at, y_at)
        h = rms_norm(w["self_norm"], x)
        x = x + attention(w["self"], h, h, mask, at)
        x = x + mlp(w["mlp"], rms_norm(w["mlp_norm"], x))
    return x
