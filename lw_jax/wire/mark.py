"""The mark of a bridge: 8 bytes of a digest, in every packet that the bridge sends.

It is the beginning of the SHA-256 of the bridge's parameters, of the config that they are read
with and of the fingerprints of the frozen models, so that a packet of any other bridge is refused.
Two of a million bridges have the same one by chance once in 37 million times. It says which bridge
a packet is for, not who made it: for that there is a key (`lw_jax.wire.packet`).

SHA-256 reads about 1.5 GB/s with a processor's own instructions for it, 0.3 without; a loaded
bridge computes its mark once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from lw_jax.types import PyTree
from lw_jax.wire.packet import MARK_BYTES


def mark_of(params: PyTree, about: Mapping[str, Any]) -> bytes:
    """The mark of a bridge.

    Args:
        params: its parameters.
        about: JSON tree of all else that a packet's meaning depends on. Keys that are off (null,
            false, an empty list or map) do not count, so that an option which a later version adds
            and leaves off changes no mark.
    """
    digest = hashlib.sha256(b"lw_jax mark of a bridge\n")
    digest.update(json.dumps(_on(about), sort_keys=True).encode())
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    for path in sorted(leaves):
        value = np.ascontiguousarray(jax.device_get(leaves[path]))
        digest.update(f"\n{path} {value.dtype.str} {value.shape}\n".encode())
        digest.update(value.tobytes())
    return digest.digest()[:MARK_BYTES]


def _on(value: Any) -> Any:
    """A JSON tree without the keys that are off."""
    if isinstance(value, Mapping):
        held = {str(k): _on(v) for k, v in value.items()}
        return {k: v for k, v in held.items() if not (v is None or v is False or v in ([], {}))}
    if isinstance(value, list | tuple):
        return [_on(v) for v in value]
    return value
