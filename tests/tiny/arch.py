"""The sizes of tiny decoders: the one place where tests make an `Arch`; weights for them."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from lw_jax.models.arch import Arch, Rope
from lw_jax.models.encoder_arch import AnyArch
from lw_jax.models.params import Leaf, abstract


def decoder(
    family: str = "llama",
    vocab_size: int = 300,
    width: int = 16,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 4,
    mlp_width: int = 24,
    *,
    theta: float = 1e4,
    **more: Any,
) -> Arch:
    """A decoder of a family; `more`: further fields of `Arch`, where a test needs them."""
    return Arch(
        family=family,  # type: ignore[arg-type]
        vocab_size=vocab_size,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        mlp_width=mlp_width,
        norm_eps=1e-5,
        rope=Rope(theta),
        **more,
    )


def weights(arch: AnyArch, seed: int) -> Any:
    """What `lw_jax.models.params.init` gives, float32, of numpy's draws: nothing is compiled."""
    rng = np.random.default_rng(seed)

    def drawn(leaf: Leaf) -> np.ndarray:
        if isinstance(leaf.init, str):
            return np.full(leaf.shape, float(leaf.init == "ones"), np.float32)
        return rng.standard_normal(leaf.shape, np.float32) * np.float32(leaf.init)

    return jax.tree.map(drawn, abstract(arch))
