"""StatisticalNormalizer: whitens the sender's states, then gives them a receiver's statistics.

Works per channel, with means and deviations that a `calibrate` stage has measured (docs/design.md
section 4; in the earlier systems the sender's norm was 13.6, the receiver's 0.029). The statistics
are among the bridge's parameters, under `statistics`, so every checkpoint and export contains them;
no optimiser changes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lw_jax.types import Array, PyTree
from lw_jax.utils.bounds import Checked, Name

SMALLEST = 1e-6
"""Smallest deviation to divide by: a channel that is constant stays at zero."""


@dataclass(frozen=True)
class Normaliser(Checked):
    """Whitening and colouring by measured statistics.

    Args:
        target: the receiver whose embeddings give the statistics of the result; null: the first.
        trainable: learn a gain and a bias between the two, in the target's deviations.
    """

    target: Name | None = None
    trainable: bool = False

    def target_of(self, receivers: list[str]) -> str:
        """The receiver whose embeddings give the statistics of the result."""
        return self.target if self.target is not None else receivers[0]


class StatisticalNormaliser(nn.Module):
    """States [n, B, T, D] -> states whose channels have a receiver's embedding statistics."""

    config: Normaliser

    @nn.compact
    def __call__(self, states: Array) -> Array:
        shape = (states.shape[0], states.shape[-1])
        measured = self.param("statistics", _unfilled, shape)
        measured = {k: x[:, None, None] for k, x in jax.lax.stop_gradient(measured).items()}
        x = (states - measured["source_mean"]) / jnp.maximum(measured["source_std"], SMALLEST)
        if self.config.trainable:
            gain = self.param("gain", nn.initializers.ones, shape)
            bias = self.param("bias", nn.initializers.zeros, shape)
            x = x * gain[:, None, None] + bias[:, None, None]
        return x * measured["target_std"] + measured["target_mean"]


def _unfilled(rng: Array, shape: tuple[int, int]) -> dict[str, Array]:
    """NaN, so that statistics that were never measured cannot go unnoticed."""
    names = ("source_mean", "source_std", "target_mean", "target_std")
    return {name: jnp.full(shape, jnp.nan, jnp.float32) for name in names}


def normaliser_of(source: Any) -> Normaliser | None:
    """The normaliser in a source's options; None: it has none."""
    found = [value for value in vars(source).values() if isinstance(value, Normaliser)]
    return found[0] if found else None


def fill(params: PyTree, statistics: Mapping[str, np.ndarray], target: str) -> PyTree:
    """A source's parameters with measured statistics in the normaliser.

    Args:
        params: the source's parameters.
        statistics: `source/mean`, `source/std` [n, D], and those of every receiver [1, its width].
        target: the receiver; if its width is not D, one mean and deviation over all its channels.
    """
    own = params["normaliser"]
    shape = own["statistics"]["source_mean"].shape
    mean, std = (np.asarray(statistics[f"{target}/{k}"], np.float64)[0] for k in ("mean", "std"))
    if mean.shape[0] != shape[1]:
        whole = mean.mean()
        mean, std = whole, np.sqrt(np.mean(np.square(std) + np.square(mean - whole)))
    found = {
        "source_mean": statistics["source/mean"],
        "source_std": statistics["source/std"],
        "target_mean": mean,
        "target_std": std,
    }
    filled = {k: jnp.asarray(np.broadcast_to(x, shape), jnp.float32) for k, x in found.items()}
    return {**params, "normaliser": {**own, "statistics": filled}}
