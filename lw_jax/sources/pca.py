"""PCA: the sender's states in principal directions that a `calibrate` stage has fitted.

docs/design.md section 1 (token embeddings, optionally through a fitted PCA) and section 4 (PCA
baselines). The fit is among the bridge's parameters, under `statistics`, so every checkpoint and
export contains it; no optimiser changes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lw_jax.errors import UserError
from lw_jax.types import Array, PyTree
from lw_jax.utils.bounds import Checked, Width

SMALLEST = 1e-3
"""Smallest deviation to divide by, relative to the largest: float32 cannot tell smaller ones."""


@dataclass(frozen=True)
class Pca(Checked):
    """Projection on the principal directions of the states.

    Args:
        components: number of directions kept, those of the largest variance.
        whiten: every component has deviation 1; false: all are divided by the same number, so that
            their RMS is 1 and they keep their shares of the variance.
    """

    components: Width
    whiten: bool = False

    def check_width(self, source: str, width: int) -> None:
        """Checks that states of this width have enough directions.

        Args:
            source: name of the source, for the message.
            width: width of its states.

        Raises:
            UserError: they have fewer.
        """
        if self.components > width:
            raise UserError(
                f"bridge.source.{source}.pca.components: {self.components} are more than the "
                f"sender's width of {width}; use at most {width}"
            )


class Projection(nn.Module):
    """States [n, B, T, D] -> components [n, B, T, C], float32: centred, RMS 1 over real text."""

    config: Pca

    @nn.compact
    def __call__(self, states: Array) -> Array:
        shape = (states.shape[0], states.shape[-1], self.config.components)
        fitted = jax.lax.stop_gradient(self.param("statistics", _unfilled, shape))
        x = states.astype(jnp.float32) - fitted["mean"][:, None, None]
        x = jnp.einsum("nbtd,ndc->nbtc", x, fitted["directions"])
        return x / scale(self.config, fitted["deviations"])[:, None, None]


def scale(config: Pca, deviations: Array) -> Array:
    """The divisors of the components: deviations [n, C] -> [n, C], or [n, 1] for all alike."""
    if not config.whiten:
        return jnp.sqrt(jnp.mean(jnp.square(deviations), axis=-1, keepdims=True))
    return jnp.maximum(deviations, SMALLEST * jnp.max(deviations, axis=-1, keepdims=True))


def _unfilled(rng: Array, shape: tuple[int, int, int]) -> dict[str, Array]:
    """NaN, so that a PCA that was never fitted cannot go unnoticed."""
    taps, width, components = shape
    shapes = {
        "mean": (taps, width),
        "directions": (taps, width, components),
        "deviations": (taps, components),
    }
    return {name: jnp.full(s, jnp.nan, jnp.float32) for name, s in shapes.items()}


def pca_of(source: Any) -> Pca | None:
    """The PCA in a source's options; None: it has none."""
    found = [value for value in vars(source).values() if isinstance(value, Pca)]
    return found[0] if found else None


def check_alone(pca: Pca | None, normaliser: object | None) -> None:
    """Checks that a PCA and a normaliser are not combined.

    A PCA centres and scales by itself, and its components are not channels of a receiver.

    Raises:
        UserError: both are set.
    """
    if pca is not None and normaliser is not None:
        raise UserError(
            "pca: it centres and scales the states itself, and its components are no channels that "
            "a normaliser could colour; set one of the two"
        )


def principal(products: np.ndarray, count: float) -> tuple[np.ndarray, np.ndarray]:
    """Principal directions of `count` tokens, and the variance along each.

    Args:
        products: sums of products of deviations [n, D, D], float64.
        count: number of tokens.

    Returns:
        Directions [n, D, D] float64, as columns, by descending variance, with signs such that the
        largest entry is positive; variances [n, D] float64.
    """
    variances, directions = np.linalg.eigh(products / count)
    variances, directions = np.maximum(variances[:, ::-1], 0.0), directions[:, :, ::-1]
    largest = np.abs(directions).argmax(axis=1, keepdims=True)
    return directions * np.sign(np.take_along_axis(directions, largest, axis=1)), variances


def fit(config: Pca, products: np.ndarray, count: float) -> dict[str, np.ndarray]:
    """What a `calibrate` stage saves, float64.

    Args:
        config: the PCA.
        products: sums of products of deviations [n, D, D].
        count: number of tokens.

    Returns:
        `directions` [n, D, C], `variances` [n, D] of all directions, and `kept` [n], the share of
        the variance in the C directions (1 where nothing varies).
    """
    directions, variances = principal(products, count)
    total = variances.sum(axis=1)
    kept = variances[:, : config.components].sum(axis=1)
    return {
        "directions": directions[:, :, : config.components],
        "variances": variances,
        "kept": np.divide(kept, total, out=np.ones_like(total), where=total > 0),
    }


def fill(params: PyTree, statistics: Mapping[str, np.ndarray]) -> PyTree:
    """A source's parameters with a fitted PCA.

    Args:
        params: the source's parameters.
        statistics: `source/mean` [n, D], `source/directions` [n, D, C], `source/variances` [n, D].
    """
    directions = statistics["source/directions"]
    found = {
        "mean": statistics["source/mean"],
        "directions": directions,
        "deviations": np.sqrt(statistics["source/variances"][:, : directions.shape[-1]]),
    }
    filled = {k: jnp.asarray(x, jnp.float32) for k, x in found.items()}
    return {**params, "pca": {**params["pca"], "statistics": filled}}
