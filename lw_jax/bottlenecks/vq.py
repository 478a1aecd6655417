"""Vector quantisation: each slot becomes its nearest code of a learned codebook.

After van den Oord et al. 2017 (arXiv:1711.00937), with unit-norm codes for the cosine distance (Yu
et al. 2021, arXiv:2110.04627), and dead codes replaced by inputs (Dhariwal et al. 2020,
arXiv:2005.00341). The codebook learns only from the objective `vq`: straight-through gradients do
not reach it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from annotated_types import Ge, Le
from einops import rearrange

from lw_jax.bottlenecks.base import Bottleneck
from lw_jax.bottlenecks.codes import counts_of, masked_codes
from lw_jax.layers.intermediates import Intermediates, sow
from lw_jax.layers.straight_through import straight_through
from lw_jax.models.dims import BridgeDims
from lw_jax.types import Array, Latent, PyTree
from lw_jax.utils.bounds import Steps

LATELY = 100
"""Steps without use after which a code does not count as alive, if codes are not revived."""


@dataclass(frozen=True)
class Config(Bottleneck):
    """Vector quantisation.

    Args:
        codes: codes in the codebook.
        distance: `l2`; or `cosine`: slots and codes have unit RMS when they are compared and sent.
        input_norm: LayerNorm on the slots, with gain and bias, before they are compared.
        start: of a code: `normal`, entries of deviation 1, as a slot at unit RMS has; `unit`, of
            length 1, which lies far inside such slots.
        revive: steps without use after which a code is replaced by a slot of the batch; null:
            never.
    """

    codes: Annotated[int, Ge(2), Le(2**20)] = 4096
    distance: Literal["l2", "cosine"] = "l2"
    input_norm: bool = False
    start: Literal["normal", "unit"] = "normal"
    revive: Steps | None = 100

    trains_itself: ClassVar[bool] = True

    def build(self, dims: BridgeDims) -> Vq:
        """The bottleneck."""
        return Vq(self, dims.latent_dim)

    def after_step(self, params: PyTree, intermediates: Intermediates, rng: Array) -> PyTree:
        """Counts the steps in which a code was not used, and replaces dead codes by real slots.

        Each slot of the batch replaces at most one code; if there are fewer slots than dead codes,
        the others wait.
        """
        used = jnp.sum(intermediates["counts"], axis=(0, 1)) > 0
        idle = jnp.where(used, 0.0, params["idle"] + 1.0)
        if self.revive is None:
            return {**params, "idle": idle}
        inputs = rearrange(intermediates["inputs"], "b m d -> (b m) d")
        real = intermediates["codes"].reshape(-1) >= 0
        order = jnp.argsort(jnp.where(real, jax.random.uniform(rng, real.shape), 2.0))
        dead = idle >= self.revive
        turn = jnp.cumsum(dead) - 1
        revived = dead & (turn < jnp.sum(real))
        fresh = inputs[order[jnp.clip(turn, 0, real.shape[0] - 1)]]
        book = jnp.where(revived[:, None], fresh.astype(jnp.float32), params["codebook"])
        return {**params, "codebook": book, "idle": jnp.where(revived, 0.0, idle)}

    @property
    def codec(self) -> str:
        """Codes cross the wire, not slots."""
        return "codes"

    @property
    def levels(self) -> tuple[int, ...]:  # type: ignore[override]
        """Number of values of each code in a slot."""
        return (self.codes,)


class Vq(nn.Module):
    """Latent -> Latent; a masked slot is zero.

    Sows (`lw_jax.layers.intermediates`):
        codes: [B, M, 1], see `lw_jax.bottlenecks.codes`.
        counts: [B, 1, K], see `lw_jax.bottlenecks.codes`.
        inputs: [B, M, d] slots as they are compared, with gradient.
        chosen: [B, M, d] nearest codes, with gradient.
        distances: [B, M, K] mean squares of the differences, with gradient.
        alive: share of the codes that were used in the last `revive` steps.
    """

    config: Config
    width: int

    def setup(self) -> None:
        shape = (self.config.codes, self.width)
        init = nn.initializers.normal(1.0) if self.config.start == "normal" else _unit_length
        self.codebook = self.param("codebook", init, shape)
        if self.config.input_norm:
            self.input_norm = nn.LayerNorm()
        # Steps since a code was used; no gradient reaches it, `after_step` changes it.
        self.idle = self.param("idle", nn.initializers.zeros, shape[:1])

    def __call__(self, latent: Latent, train: bool = False) -> Latent:
        slots = self.input_norm(latent.slots) if self.config.input_norm else latent.slots
        x, book = self._comparable(slots), self._comparable(self.codebook)
        distances = _distances(x, book)
        nearest = jnp.argmin(distances, axis=-1)
        chosen = jnp.take(book, nearest, axis=0)
        codes = masked_codes(nearest[..., None], latent.mask)
        sow(self, "codes", codes)
        sow(self, "counts", counts_of(codes, (self.config.codes,)))
        sow(self, "inputs", x)
        sow(self, "chosen", chosen)
        sow(self, "distances", distances)
        sow(self, "alive", jnp.mean(self.idle < (self.config.revive or LATELY)))
        return self._masked(latent, straight_through(x, chosen))

    def slots_of(self, latent: Latent) -> Latent:
        """The latent whose codes [B, M, 1] int32 are in place of its slots."""
        book = self._comparable(self.codebook)
        return self._masked(latent, jnp.take(book, latent.slots[..., 0], axis=0))

    def _comparable(self, x: Array) -> Array:
        if self.config.distance == "l2":
            return x
        return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-12)

    def _masked(self, latent: Latent, slots: Array) -> Latent:
        slots = jnp.where(latent.mask[..., None], slots, 0.0)
        return latent.replace(slots=slots)  # type: ignore[attr-defined]


def _unit_length(rng: Array, shape: tuple[int, int]) -> Array:
    """Random directions [K, d]."""
    x = jax.random.normal(rng, shape)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def _distances(x: Array, book: Array) -> Array:
    """Mean squares [B, M, K] of the differences of x [B, M, d] and codes [K, d].

    For vectors at unit RMS this is 2 - 2 cosine.
    """
    both = jnp.einsum("bmd,kd->bmk", x, book, precision=jax.lax.Precision.HIGHEST)
    squares = jnp.mean(jnp.square(book), axis=-1)[None, None, :]
    return jnp.mean(jnp.square(x), axis=-1, keepdims=True) - 2.0 * both / x.shape[-1] + squares
