"""Latent adapters: trained cross-attention to the latent inside the frozen receiver.

After some layers a block reads the slots and adds to the residual stream: cross-attention to Z, an
MLP, a learned gate (docs/design.md section 5; gated cross-attention of Flamingo, Alayrac et al.
2022). The receiver's own weights do not change, and without a delivery it is the clean receiver.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from annotated_types import Ge, Le
from einops import rearrange

from lw_jax.errors import UserError
from lw_jax.models.dims import ModelDims
from lw_jax.readers.base import Reader
from lw_jax.types import Array, Blocks, Delivery, Edits, Latent, PyTree
from lw_jax.utils.bounds import FEW, Heads, Layers, MlpRatioOrNone
from lw_jax.utils.checks import distinct


@dataclass(frozen=True)
class Config(Reader):
    """Blocks that read the latent inside the receiver.

    Args:
        layers: layers that a block follows, counted from 1; empty: all.
        heads: heads of the cross-attention.
        head_dim: width of a head.
        mlp_ratio: hidden width of the MLP over the receiver's width; 0 for none.
        gate: factor on what a block adds, at the start; what it adds starts at zero.
    """

    layers: Annotated[tuple[Layers, ...], FEW] = ()
    heads: Heads = 8
    head_dim: Annotated[int, Ge(1), Le(1024)] = 32
    mlp_ratio: MlpRatioOrNone = 4
    gate: Annotated[float, Ge(-100), Le(100)] = 0.5

    acts_after: ClassVar[bool] = True

    def __post_init__(self) -> None:
        distinct(self, "layers")
        if self.gate == 0:
            raise UserError("gate: at 0 a block never learns, as what it adds starts at 0 as well")

    def build(self, dims: ModelDims) -> LatentAdapters:
        """The reader of one receiver."""
        return LatentAdapters(self, dims)


class LatentAdapters(nn.Module):
    """Latent -> blocks after some layers of one receiver."""

    config: Config
    dims: ModelDims

    @nn.compact
    def __call__(self, latent: Latent, train: bool = False) -> Delivery:
        c, d = self.config, self.dims
        layers = tuple(sorted(set(c.layers))) or tuple(range(1, d.layers + 1))
        if not 1 <= layers[0] <= layers[-1] <= d.layers:
            raise UserError(
                f"bridge.reader.latent_adapters.layers: {list(layers)} are not all among the "
                f"receiver's layers 1 to {d.layers}"
            )
        z = nn.RMSNorm(name="in_norm")(latent.slots)
        width, inner = z.shape[-1], c.heads * c.head_dim
        params = {
            "query": self._matrix("query", len(layers), d.width, inner),
            "key": self._matrix("key", len(layers), width, inner),
            "value": self._matrix("value", len(layers), width, inner),
            "out": self._matrix("out", len(layers), inner, d.width, zero=True),
            "gate": self.param("gate", nn.initializers.constant(c.gate), (len(layers),)),
        }
        if c.mlp_ratio:
            hidden = c.mlp_ratio * d.width
            params["up"] = self._matrix("up", len(layers), d.width, hidden)
            params["down"] = self._matrix("down", len(layers), hidden, d.width, zero=True)
        given = {"slots": z, "mask": latent.mask}
        after = tuple(i - 1 for i in layers)
        keys = latent.mask.sum(axis=1, dtype=jnp.int32)
        blocks = Blocks(params, _Block(c.heads), after, given, keys, c.heads)
        return Delivery(edits=Edits(blocks=blocks))

    def _matrix(self, name: str, n: int, fan_in: int, out: int, zero: bool = False) -> Array:
        init = nn.initializers.zeros if zero else nn.initializers.normal(fan_in**-0.5)
        found: Array = self.param(f"{name}_kernel", init, (n, fan_in, out))
        return found


def _normed(x: Array) -> tuple[Array, Array]:
    rms = jnp.sqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6)
    return x / rms, rms


@dataclass(frozen=True)
class _Block:
    """One block on h [B, T, D]; blocks with equal options compare equal, so they share programs.

    What it adds is scaled by the RMS of the stream, which grows from layer to layer.
    """

    heads: int

    def __call__(self, w: PyTree, h: Array, given: PyTree) -> Array:
        stream = h.astype(jnp.float32)
        x, rms = _normed(stream)

        def split(y: Array) -> Array:
            return rearrange(y, "b t (h e) -> b t h e", h=self.heads)

        z = given["slots"]
        q, k, v = split(x @ w["query"]), split(z @ w["key"]), split(z @ w["value"])
        scores = jnp.einsum("bthe,bmhe->bhtm", q, k) * q.shape[-1] ** -0.5
        seen = jnp.where(given["mask"][:, None, None, :], scores, -1e9)
        mixed = jnp.einsum("bhtm,bmhe->bthe", nn.softmax(seen, axis=-1), v)
        added = rearrange(mixed, "b t h e -> b t (h e)") @ w["out"]
        if "up" in w:
            inner, _ = _normed(x + added)
            added = added + nn.gelu(inner @ w["up"]) @ w["down"]
        return stream + w["gate"] * jax.lax.stop_gradient(rms) * added
