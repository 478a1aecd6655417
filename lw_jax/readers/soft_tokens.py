"""Soft tokens: each slot becomes an input embedding of the receiver, with the RMS of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from annotated_types import Ge, Le

from lw_jax.errors import UserError
from lw_jax.layers.intermediates import sow
from lw_jax.layers.transformer import Mlp
from lw_jax.models.dims import ModelDims
from lw_jax.readers.base import Reader
from lw_jax.readers.positions import slot_positions
from lw_jax.types import Array, Delivery, Latent
from lw_jax.utils.bounds import Dropout, MlpRatio

SCALED = ("scale", "rms", "tanh", "layer_norm_tanh")
"""The conditionings that have a learned scale."""

SATURATED = 0.97
"""|tanh| beyond which almost no gradient passes (its slope is 0.06 there)."""


@dataclass(frozen=True)
class Config(Reader):
    """Soft tokens in the receiver's input embeddings.

    Args:
        hidden: `linear`; `mlp` for a residual two-layer GELU MLP before it; `plain_mlp` for a GELU
            MLP in its place, whose output is not limited to the latent's number of directions; or
            `none` to use the slots as they are (which must then be as wide as the receiver).
        mlp_ratio: hidden width of these MLPs over the latent's width.
        mlp_layers: linear layers of `plain_mlp`, the last one to the receiver's width.
        positions: `columns` gives slots consecutive positions; `spread` spreads them over the
            length of the source.
        dropout: dropout in the MLPs.
        input_norm: RMS-norm the slots before anything else.
        conditioning: how the RMS of the output is set: `scale` multiplies by a learned scale; `rms`
            norms each token first, `tanh` bounds it first; `layer_norm` norms with gain and bias;
            `layer_norm_tanh` does so before tanh x scale; `none` changes nothing.
        init_scale: start of the learned scale; null: the RMS of the receiver's own embeddings.
        colour: a learned gain and bias for each channel at the very end.
        film: a gain and a bias for each channel, made from the latent, before the conditioning
            (FiLM, Perez et al. 2018); at the start they change nothing.
        film_from: what these are made from: the `mean` of the slots, the same for all soft tokens
            of a text, or each `slot`, for its own soft token.
    """

    hidden: Literal["none", "linear", "mlp", "plain_mlp"] = "linear"
    mlp_ratio: MlpRatio = 4
    mlp_layers: Annotated[int, Ge(1), Le(64)] = 3
    positions: Literal["columns", "spread"] = "columns"
    dropout: Dropout = 0.0
    input_norm: bool = True
    conditioning: Literal["scale", "rms", "tanh", "layer_norm", "layer_norm_tanh", "none"] = "rms"
    init_scale: Annotated[float, Ge(1e-12), Le(10_000)] | None = None
    colour: bool = False
    film: bool = False
    film_from: Literal["mean", "slot"] = "mean"

    gives_embeds: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.init_scale is None:
            return
        if self.conditioning not in SCALED:
            raise UserError(
                f"init_scale: conditioning {self.conditioning!r} has no scale; leave it out, "
                f"or set conditioning to one of {', '.join(SCALED)}"
            )

    @property
    def random_start(self) -> bool:
        """All but a linear map or an MLP starts as it has to."""
        return self.hidden != "none"

    def build(self, dims: ModelDims) -> SoftTokens:
        """The reader of one receiver."""
        return SoftTokens(self, dims)


class SoftTokens(nn.Module):
    """Latent -> soft tokens [B, M, D].

    The scale is learned (as its logarithm, so that a step is a ratio) and by default starts at the
    RMS of the receiver's own embeddings (fault 7 of docs/faults.md).

    Sows (`lw_jax.layers.intermediates`):
        scale: the scale divided by its start.
        saturation: share of entries with |tanh| beyond `SATURATED` (fault 10).
        colour: mean square of gain - 1 and bias.
    """

    config: Config
    dims: ModelDims

    @nn.compact
    def __call__(self, latent: Latent, train: bool = False) -> Delivery:
        c, width = self.config, self.dims.width
        z = nn.RMSNorm(name="in_norm")(latent.slots) if c.input_norm else latent.slots
        if c.hidden == "mlp":
            z = z + Mlp(c.mlp_ratio, dropout=c.dropout, name="mlp")(z, train)
        if c.hidden == "plain_mlp":
            hidden = c.mlp_ratio * z.shape[-1]
            for i in range(c.mlp_layers - 1):
                z = nn.gelu(nn.Dense(hidden, name=f"hidden_{i}")(z))
                z = nn.Dropout(c.dropout, deterministic=not train)(z)
        if c.hidden != "none":
            # A plain MLP may read centred components (of a PCA), to which it must add the mean.
            z = nn.Dense(width, use_bias=c.hidden == "plain_mlp", name="out")(z)
        elif z.shape[-1] != width:
            raise UserError(
                f"bridge.reader.soft_tokens.hidden: none hands slots of width {z.shape[-1]} to a "
                f"receiver of width {width}; set bridge.latent_dim to {width}, or hidden to linear"
            )
        if c.film:
            z = self._modulated(z, latent)
        embeds = self._conditioned(z, latent.mask)
        if c.colour:
            gain = self.param("colour_gain", nn.initializers.ones, (width,))
            bias = self.param("colour_bias", nn.initializers.zeros, (width,))
            embeds = embeds * gain[None, None] + bias[None, None]
            sow(self, "colour", jnp.mean(jnp.square(gain - 1.0) + jnp.square(bias)))
        positions, advance = slot_positions(c.positions, latent)
        return Delivery(embeds, latent.mask, positions, advance=advance)

    def _modulated(self, x: Array, latent: Latent) -> Array:
        """x [B, M, D] with gains and biases, made from the mean of the row's real slots, or from
        each slot."""
        if self.config.film_from == "slot":
            read = latent.slots
        else:
            count = jnp.maximum(1, jnp.sum(latent.mask, axis=1))
            read = jnp.einsum("bmd,bm->bd", latent.slots, latent.mask) / count[:, None]
            read = read[:, None]
        made = nn.Dense(2 * x.shape[-1], kernel_init=nn.initializers.zeros, name="film")(
            nn.RMSNorm(name="film_norm")(read)
        )
        gain, bias = jnp.split(made, 2, axis=-1)
        return x * (1.0 + gain) + bias

    def _conditioned(self, x: Array, mask: Array) -> Array:
        """x [B, M, D] with the RMS that the config asks for."""
        c = self.config
        if c.conditioning.startswith("layer_norm"):
            x = nn.LayerNorm(name="out_norm")(x)
        if c.conditioning not in SCALED:
            return x
        if c.conditioning == "rms":
            x = x / jnp.sqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6)
        elif c.conditioning != "scale":
            x = jnp.tanh(x)
            beyond = jnp.mean(jnp.abs(jax.lax.stop_gradient(x)) > SATURATED, axis=-1)
            sow(self, "saturation", jnp.sum(beyond * mask) / jnp.maximum(1, jnp.sum(mask)))
        start = math.log(self.dims.embed_rms if c.init_scale is None else c.init_scale)
        log_scale = self.param("log_scale", nn.initializers.constant(start), ())
        sow(self, "scale", jnp.exp(log_scale - start))
        return x * jnp.exp(log_scale)
