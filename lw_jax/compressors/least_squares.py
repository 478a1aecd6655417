"""A linear map from the sender's tokens to a receiver's input embeddings, in closed form.

Ridge regression of the embeddings of the same characters on a token's features, fitted by a
`calibrate` stage over batches: no gradient is needed. Tokens of two tokenizers are matched by the
characters that they share (`lw_jax.text.align`); a source token's target is the mean embedding of
the receiver's tokens that overlap it. What is kept between batches are sums, so the fit does not
depend on the batches' order but for rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from lw_jax.errors import UserError
from lw_jax.types import Array, PyTree
from lw_jax.utils.bounds import Checked, Name, Ridge

KEY = "compressor/fit"
"""Of the sums, and of what is fitted to them, in the file of a `calibrate` stage."""


@dataclass(frozen=True)
class LeastSquares(Checked):
    """How the map is fitted.

    Args:
        receiver: the receiver whose embeddings are fitted; null: the first.
        l2: ridge penalty, in shares of the features' mean square; 0 for none.
    """

    receiver: Name | None = None
    l2: Ridge = 1e-4

    def target_of(self, receivers: list[str]) -> str:
        """The receiver whose embeddings are fitted."""
        return self.receiver if self.receiver is not None else receivers[0]


class Sums(NamedTuple):
    """What a fit needs of all tokens: K features and a one, D channels of the target.

    Attributes:
        tokens: [] how many there are.
        xx: [K + 1, K + 1] sum of products of features; the last one is 1.
        xy: [K + 1, D] sum of products of features and targets.
        yy: [] sum of the targets' squares.
    """

    tokens: Array
    xx: Array
    xy: Array
    yy: Array


def sums(x: Array, targets: Array, spans: Array, mask: Array) -> Sums:
    """The sums over one batch, float32.

    Args:
        x: [B, T, K] features of the source's tokens.
        targets: [B, S, D] what the receiver has for its tokens of the same texts: their input
            embeddings, or keys and values.
        spans: [B, T, 2] int32, the receiver's tokens that overlap a source token: the first, and
            the one after the last.
        mask: [B, T] bool, tokens that count; those without an overlap do not.
    """
    first, stop = spans[..., 0], spans[..., 1]
    at = jnp.arange(targets.shape[1])[None, None]
    within = (at >= first[..., None]) & (at < stop[..., None])
    keep = (mask & (stop > first)).astype(jnp.float32)[..., None]
    shares = within / jnp.maximum(1, stop - first)[..., None]
    high = jax.lax.Precision.HIGHEST  # by default a GPU rounds the factors to ten bits
    y = jnp.einsum("bts,bsd->btd", shares, targets.astype(jnp.float32), precision=high) * keep
    ones = jnp.ones((*x.shape[:2], 1), jnp.float32)
    x = jnp.concatenate([x.astype(jnp.float32), ones], axis=-1) * keep
    return Sums(
        jnp.sum(keep),
        jnp.einsum("btk,btl->kl", x, x, precision=high),
        jnp.einsum("btk,btd->kd", x, y, precision=high),
        jnp.sum(jnp.square(y)),
    )


def least_squares_of(compressor: Any) -> LeastSquares | None:
    """The fit in a compressor's options; None: it has none."""
    found = [value for value in vars(compressor).values() if isinstance(value, LeastSquares)]
    return found[0] if found else None


class Fit(NamedTuple):
    """A fitted map, float32.

    Attributes:
        kernel: [K, D].
        bias: [D].
        explained: share of the targets' variance that it explains, on the tokens of the fit.
    """

    kernel: NDArray[np.float32]
    bias: NDArray[np.float32]
    explained: float


def solve(config: LeastSquares, found: Sums) -> Fit:
    """The map with the least squared error plus penalty; the bias is not penalised.

    Raises:
        UserError: fewer tokens than features, and no penalty that would decide between maps.
    """
    count = float(found.tokens)
    xx, xy = np.asarray(found.xx, np.float64), np.asarray(found.xy, np.float64)
    features = xx.shape[0] - 1
    if count <= features and not config.l2:
        raise UserError(
            f"l2: {count:g} tokens do not determine a map of {features} features; measure more "
            "rows, or give a penalty"
        )
    if not count:
        raise UserError("data: no token of the source shares a character with the receiver's")
    mean_x, mean_y = xx[-1, :-1] / count, xy[-1] / count
    centred = xx[:-1, :-1] - count * np.outer(mean_x, mean_x)
    crossed = xy[:-1] - count * np.outer(mean_x, mean_y)
    penalty = config.l2 * np.trace(xx[:-1, :-1]) / features
    kernel = np.linalg.solve(centred + penalty * np.eye(features), crossed)
    bias = mean_y - mean_x @ kernel
    variance = float(found.yy) - count * float(mean_y @ mean_y)
    error = variance - 2 * np.sum(kernel * crossed) + np.sum(kernel * (centred @ kernel))
    explained = 1 - error / variance if variance > 0 else 0.0
    return Fit(kernel.astype(np.float32), bias.astype(np.float32), float(explained))


def fill(params: PyTree, statistics: Mapping[str, NDArray[Any]]) -> PyTree:
    """A compressor's parameters with a fitted map.

    Args:
        params: the compressor's parameters.
        statistics: `compressor/fit/kernel` [K, D], `compressor/fit/bias` [D].
    """
    found = {k: jnp.asarray(statistics[f"{KEY}/{k}"], jnp.float32) for k in ("kernel", "bias")}
    return {**params, "leave": found}
