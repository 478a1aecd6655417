"""A bottleneck alone: its parameters, what it makes of slots, what it notes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from lw_jax.bottlenecks import codes
from lw_jax.bottlenecks.base import Bottleneck
from lw_jax.models.dims import BridgeDims
from lw_jax.types import Latent


def latent(slots: Any, mask: Any = None) -> Latent:
    """Slots [B, M, d] as a latent; all real unless a mask is given."""
    slots = slots if isinstance(slots, jax.Array) else np.asarray(slots, np.float32)
    return Latent(slots, np.ones(slots.shape[:2], bool) if mask is None else mask)


def draw(*shape: int, seed: int = 0, std: float = 1.0) -> np.ndarray:
    """Normal slots."""
    return np.random.default_rng(seed).normal(0, std, shape).astype(np.float32)


class Part:
    """A bottleneck by its config, on slots of width d."""

    def __init__(self, config: Bottleneck, width: int, seed: int = 0) -> None:
        self.config = config
        self.linen = config.build(BridgeDims(1, 1, width))
        start = latent(np.zeros((1, 1, width)))
        self.params = jax.jit(self.linen.init)(jax.random.key(seed), start).get("params", {})

    def __call__(self, given: Latent, params: Any = None) -> tuple[Latent, dict[str, Any]]:
        """The latent that leaves, and the notes."""
        out, sown = _run(self.linen, self.params if params is None else params, given)
        return out, sown.get("intermediates", {})

    def slots_of(self, given: Latent) -> Latent:
        """The latent of codes."""
        return _slots_of(self.linen, self.params, given)


@dataclass(frozen=True)
class Given:
    """In the place of a `Bridge`: the latent, and what the bottleneck sowed while making it."""

    latent: Latent | None
    sown: Any

    def apply(self, *_: Any, **__: Any) -> Any:
        return self.latent, {"bottleneck": self.sown}


# Run op by op, each of these would compile a dozen programs.


@partial(jax.jit, static_argnums=0)
def _run(linen: Any, params: Any, given: Latent) -> Any:
    return linen.apply({"params": params}, given, True, mutable=["intermediates"])


@partial(jax.jit, static_argnums=0)
def _slots_of(linen: Any, params: Any, given: Latent) -> Latent:
    return linen.apply({"params": params}, given, method="slots_of")


@jax.jit
def usage(intermediates: Any) -> dict[str, jax.Array]:
    """`lw_jax.bottlenecks.codes.usage` of a bottleneck's notes."""
    return codes.usage({"bottleneck": intermediates})
