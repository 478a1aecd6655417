"""One slot for each source token: this wire reduces the width of tokens, not their number.

The per-token baseline of docs/design.md section 4 uses it. It takes one receiver column for each
source token, so it is compared by bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp

from lw_jax.compressors.base import Compressor, only
from lw_jax.compressors.least_squares import LeastSquares
from lw_jax.errors import UserError
from lw_jax.models.dims import BridgeDims
from lw_jax.types import SHARED, Latent, Views


@dataclass(frozen=True)
class Config(Compressor):
    """One slot for each source token, which sees no other token.

    Args:
        linear: a learned linear map of each token to the latent's width; false: its features as
            they are, which must then be as wide as the latent.
        fit: a `calibrate` stage fits the map, in closed form, to a receiver's input embeddings of
            the same characters; null: it starts at random.
    """

    linear: bool = True
    fit: LeastSquares | None = None

    def __post_init__(self) -> None:
        if self.fit is not None and not self.linear:
            raise UserError("fit: without a linear map there is nothing to fit; set linear to true")

    def build(self, dims: BridgeDims) -> Tokens:
        """The compressor.

        Raises:
            UserError: it is to be fitted to embeddings of another width than the latent's.
        """
        if self.fit is not None and dims.receivers:
            target = self.fit.target_of(list(dims.receivers))
            width = dims.receivers[target].width
            if width != dims.latent_dim:
                raise UserError(
                    f"bridge.latent_dim: {dims.latent_dim}, and bridge.compressor.tokens.fit fits "
                    f"slots to the embeddings of {target}, of width {width}; set it to {width}"
                )
        return Tokens(self, dims)


class Tokens(nn.Module):
    """Views -> Latent [B, T, d]; a text's slots come first, in the order of its tokens."""

    config: Config
    dims: BridgeDims

    @nn.compact
    def __call__(self, views: Views, train: bool = False) -> Latent:
        view = only(views)
        x, width = view.x, self.dims.latent_dim
        if self.config.linear:
            x = nn.Dense(width, name="leave")(x)
        elif x.shape[-1] != width:
            raise UserError(
                f"bridge.compressor.tokens.linear: false hands on features of width {x.shape[-1]} "
                f"as slots of width {width}; set bridge.latent_dim to {x.shape[-1]}, or linear "
                "to true"
            )
        # Tokens of the head (masked) come first, but the real slots of a message have to.
        order = jnp.argsort(~view.mask, axis=1, stable=True)
        mask = jnp.take_along_axis(view.mask, order, axis=1)
        slots = jnp.take_along_axis(x, order[..., None], axis=1) * mask[..., None]
        span = mask.sum(axis=1).astype(jnp.float32)
        return Latent(slots, mask, span, (SHARED,) * mask.shape[1])
