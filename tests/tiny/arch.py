"""The sizes of tiny decoders: the one place where tests make an `Arch`."""

from __future__ import annotations

from typing import Any

from lw_jax.models.arch import Arch, Rope


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
