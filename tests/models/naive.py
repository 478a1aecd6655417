"""The decoder once more, in plain numpy float64, one row, head and query at a time: the oracle."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from lw_jax.models.arch import Arch
from lw_jax.models.decoder import LayerInputs


def stream(
    arch: Arch, params: Any, h: Any, positions: Any, lengths: Any, given: LayerInputs
) -> np.ndarray:
    """[L + 1, B, T, D]: the residual stream before and after each layer; padding stays zero."""
    h, positions = np.asarray(h, np.float64), np.asarray(positions, np.float64)
    out = np.zeros((arch.layers + 1, *h.shape))
    for b, length in enumerate(np.asarray(lengths)):
        x = h[b, :length]
        out[0, b, :length] = x
        for layer in range(arch.layers):
            w = {name: np.asarray(v, np.float64)[layer] for name, v in params["layers"].items()}
            x = _layer(arch, w, x, positions[b, :length], given, layer, b)
            out[layer + 1, b, :length] = x
    return out


def _norm(arch: Arch, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + arch.norm_eps) * weight


def _rotate(arch: Arch, x: np.ndarray, position: float) -> np.ndarray:
    half = arch.head_dim // 2
    turn = np.exp(1j * position * arch.rope.theta ** (-np.arange(half) / half))
    z = (x[:half] + 1j * x[half:]) * turn
    return np.concatenate([z.real, z.imag])


def _lora(given: LayerInputs, name: str, x: np.ndarray, layer: int, like: np.ndarray) -> np.ndarray:
    lora = given.edits.lora
    if lora is None or layer not in lora.layers or name not in lora.a:
        return np.zeros_like(like)
    a, b = (np.asarray(m[name][lora.layers.index(layer)], np.float64) for m in (lora.a, lora.b))
    return (float(lora.scale) * x.reshape(len(x), -1) @ a @ b).reshape(like.shape)


def _layer(
    arch: Arch,
    w: dict[str, np.ndarray],
    x: np.ndarray,
    positions: np.ndarray,
    given: LayerInputs,
    layer: int,
    b: int,
) -> np.ndarray:
    normed = _norm(arch, x, w["attn_norm"])
    q, k, v = (np.einsum("td,dnh->tnh", normed, w[name]) for name in "qkv")
    q, k, v = (
        y + _lora(given, name, normed, layer, y) + w.get(f"{name}_bias", 0.0)
        for name, y in zip("qkv", (q, k, v), strict=True)
    )
    if arch.qk_norm:
        q, k = _norm(arch, q, w["q_norm"]), _norm(arch, k, w["k_norm"])
    slots = set() if given.slot_index is None else set(np.asarray(given.slot_index[b])) - {-1}
    if given.edits.k_delta is not None:
        for p, at in enumerate(np.asarray(given.slot_index[b])):
            if at >= 0:
                k[at] += np.asarray(given.edits.k_delta[layer, b, p])
                v[at] += np.asarray(given.edits.v_delta[layer, b, p])
    mixed = np.zeros_like(q)
    for i in range(len(x)):
        gain = 1.0 if given.gain is None else float(given.gain[b, i])
        sees = [
            (k[j], v[j], positions[j], gain if j in slots else 1.0)
            for j in range(i + 1)
            if arch.window is None or positions[i] - positions[j] < arch.window
        ]
        start = 0 if given.message_start is None else int(given.message_start[b])
        if given.kv is not None and i >= start:
            for c in np.flatnonzero(np.asarray(given.kv.mask[b])):
                at = float(given.kv.positions[b, c])
                if arch.window is None or positions[i] - at < arch.window:
                    key, value = given.kv.k[layer, b, c], given.kv.v[layer, b, c]
                    sees.append((np.asarray(key), np.asarray(value), at, gain))
        for n in range(arch.heads):
            m = n // (arch.heads // arch.kv_heads)
            query = _rotate(arch, q[i, n], positions[i])
            scores = np.array([query @ _rotate(arch, key[m], at) for key, _, at, _ in sees])
            scores = np.exp((scores - scores.max()) / np.sqrt(arch.head_dim))
            values = np.array([factor * value[m] for _, value, _, factor in sees])
            mixed[i, n] = scores / scores.sum() @ values
    o = np.einsum("tnh,nhd->td", mixed, w["o"])
    x = x + o + _lora(given, "o", mixed, layer, o)
    normed = _norm(arch, x, w["mlp_norm"])
    gate = normed @ w["gate"]
    x = x + (gate / (1 + np.exp(-gate)) * (normed @ w["up"])) @ w["down"]
    blocks = given.edits.blocks
    if blocks is not None and layer in blocks.layers:
        own = {name: v[blocks.layers.index(layer)] for name, v in blocks.params.items()}
        after = jax.jit(blocks.apply)(own, x[None].astype(np.float32), blocks.given)
        x = np.asarray(after)[0].astype(np.float64)
    return x
