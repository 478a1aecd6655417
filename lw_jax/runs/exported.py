"""A trained bridge in a directory of its own, to ship or to start another run from.

`bridge.safetensors` holds the bridge's parameters (bfloat16; no optimiser, no objectives' heads),
`bridge.json` their origin and the fingerprints of the frozen models they belong to,
`receivers.json` the measured RMS of the receivers.

    python -m lw_jax.runs.export RUN_DIR OUT_DIR
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

from lw_jax.bridge.paths import chosen_parts, flat_name, from_paths
from lw_jax.errors import UserError
from lw_jax.train.checkpoint import check_same, component_counts, old_names
from lw_jax.train.optimiser import FIXED, path_of
from lw_jax.types import PyTree

WEIGHTS, ABOUT = "bridge.safetensors", "bridge.json"
LONGEST = "longest"
"""Key of `bridge.json`: most tokens of what the bridge was trained on, by part (`source`,
`<receiver>/ask`)."""


def is_exported(directory: Path) -> bool:
    """Whether a directory holds an exported bridge."""
    return (directory / WEIGHTS).is_file()


def about_bridge(directory: Path) -> dict[str, Any]:
    """What is known about an exported bridge: `step`, `stage`, `fingerprints`, `config`."""
    found: dict[str, Any] = json.loads((directory / ABOUT).read_text(encoding="utf-8"))
    return found


def save_bridge(directory: Path, params: PyTree, about: Mapping[str, Any]) -> None:
    """Writes a bridge's parameters, and what is known about them.

    Args:
        directory: where the files go.
        params: the parameters.
        about: JSON with `step`, `stage`, `fingerprints` and `config`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    tensors = {path_of(p): _stored(path_of(p), np.asarray(x)) for p, x in leaves}
    save_file(tensors, directory / WEIGHTS)
    known = {"parameters": component_counts({"bridge": params}), **about}
    (directory / ABOUT).write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")


def _stored(path: str, value: np.ndarray) -> np.ndarray:
    """Measured statistics keep their precision: a mean may be many deviations from zero."""
    return value if re.search(FIXED, path) else value.astype(ml_dtypes.bfloat16)


def load_bridge(
    directory: Path, like: PyTree, only: Sequence[str] = ()
) -> tuple[PyTree, dict[str, Any]]:
    """The parameters of an exported bridge, and what is known about them.

    Args:
        directory: the directory.
        like: parameters whose layout they get.
        only: components to load; empty: all, and there may be no others.

    Raises:
        UserError: it holds another bridge than the config's.
    """
    about = about_bridge(directory)
    trained = about["parameters"]
    old = old_names(trained)
    if only:
        like = from_paths(chosen_parts(like, only))
    here = component_counts({"bridge": like})
    if old:
        here = {f"bridge/{flat_name(k.partition('/')[2])}": n for k, n in here.items()}
    check_same(here, {k: n for k, n in trained.items() if k in here} if only else trained)
    tensors = load_file(directory / WEIGHTS)

    def place(path: tuple[Any, ...], leaf: Any) -> Any:
        found = tensors.get(flat_name(path_of(path)) if old else path_of(path))
        if found is None or found.shape != leaf.shape:
            raise UserError(
                f"{directory}: no parameter {path_of(path)!r} of shape {leaf.shape}; "
                "it holds another bridge than this config's"
            )
        return jax.device_put(found.astype(leaf.dtype), leaf.sharding)

    return jax.tree_util.tree_map_with_path(place, like), about
