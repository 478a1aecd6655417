"""What a `calibrate` stage has measured, in a bridge's parameters."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np

from lw_jax.bridge.bridge import Bridge, fresh
from lw_jax.bridge.config import closed_form, fits, fitted_reader, normaliser, pca
from lw_jax.compressors.least_squares import fill as fill_least_squares
from lw_jax.readers.fitted_prefix import fill as fill_prefix
from lw_jax.sources.normaliser import fill as fill_normaliser
from lw_jax.sources.pca import fill as fill_pca
from lw_jax.types import PyTree


def needs_statistics(bridge: Bridge) -> bool:
    """Whether a bridge has parts that a `calibrate` stage measures or fits."""
    config = bridge.config
    measured = normaliser(config) is not None or pca(config) is not None
    return measured or bool(fits(config))


def filled(bridge: Bridge, params: PyTree, statistics: Mapping[str, np.ndarray]) -> PyTree:
    """Fresh parameters with what was measured and fitted.

    Args:
        bridge: the bridge.
        params: its parameters.
        statistics: the stage's file (`lw_jax.runs.statistics`).

    Raises:
        KeyError: one is missing.
        ValueError: one is of another shape.
    """
    config, before = bridge.config, params
    coloured = normaliser(config)
    if coloured is not None:
        target = coloured[1].target_of(list(bridge.dims.receivers))
        params = {**params, "source": fill_normaliser(params["source"], statistics, target)}
    if pca(config) is not None:
        params = {**params, "source": fill_pca(params["source"], statistics)}
    if closed_form(config) is not None:
        params = {**params, "compressor": fill_least_squares(params["compressor"], statistics)}
    if (read := fitted_reader(config)) is not None:
        readers = {
            name: {**own, read[0]: fill_prefix(own[read[0]], statistics, reader_key(name))}
            for name, own in params["readers"].items()
        }
        params = {**params, "readers": readers}
    wanted, found = (jax.tree_util.tree_leaves_with_path(tree) for tree in (before, params))
    for (path, like), (_, leaf) in zip(wanted, found, strict=True):
        if like.shape != leaf.shape:
            where = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(f"{where} would be {list(leaf.shape)}, not {list(like.shape)}")
    return params


def reader_key(receiver: str) -> str:
    """Of a reader's fit in the file of a `calibrate` stage."""
    return f"readers/{receiver}/fit"


def alone(bridge: Bridge, statistics: Mapping[str, np.ndarray]) -> PyTree:
    """A bridge that has nothing to be trained (`lw_jax.bridge.config.to_be_trained`): its fresh
    parameters do not depend on the random key.
    """
    return filled(bridge, fresh(bridge, jax.random.key(0)), statistics)
