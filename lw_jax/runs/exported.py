"""A trained bridge in a directory of its own, to ship or to start another run from.

`bridge.safetensors` holds the bridge's parameters (bfloat16; no optimiser, no objectives' heads),
`bridge.json` their origin, the fingerprints of the frozen models they belong to and the SHA-256 of
every file, its own among them; `receivers.json` the measured RMS of the receivers.

    python -m lw_jax.runs.export RUN_DIR OUT_DIR
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from lw_jax.bridge.paths import chosen_parts, flat_name, from_paths
from lw_jax.errors import UserError, said
from lw_jax.mesh import put
from lw_jax.models.arch_keys import shown
from lw_jax.models.checkpoint import read_json
from lw_jax.models.fingerprint import FORMAT
from lw_jax.runs.receiver_rms import FILE as RECEIVERS
from lw_jax.train.checkpoint import check_same, component_counts, old_names
from lw_jax.train.optimiser import FIXED, path_of
from lw_jax.types import PyTree
from lw_jax.utils.files import readable, write_text

WEIGHTS, ABOUT = "bridge.safetensors", "bridge.json"
LONGEST = "longest"
"""Key of `bridge.json`: most tokens of what the bridge was trained on, by part (`source`,
`<receiver>/ask`)."""

_FIRST_FORMAT = frozenset("parameters step stage fingerprints config".split())
"""Keys of a `bridge.json` of format 1, which had no digests."""
_TYPES: dict[str, tuple[type, str]] = {
    "parameters": (dict, "an object of counts"),
    "step": (int, "a whole number"),
    "fingerprints": (dict, "an object of names"),
    "weights": (dict, "an object of names"),
    "models": (dict, "an object of names"),
    "stage": (str, "a name"),
    "config": (dict, "an object"),
    "files": (dict, "an object of digests"),
}
_OWN = re.compile(rb'"sha256": "([0-9a-f]{64})"')
_NO_DIGEST = "0" * 64
_ADVICE = "; copy or export the bridge again"


def is_exported(directory: Path) -> bool:
    """Whether a directory holds an exported bridge."""
    return (directory / WEIGHTS).is_file() or (directory / ABOUT).is_file()


def about_bridge(directory: Path) -> dict[str, Any]:
    """What is known about an exported bridge: `step`, `stage`, `fingerprints`, `config`.

    Raises:
        UserError: `bridge.json` is missing, damaged or of a later format.
    """
    path = directory / ABOUT
    if not path.is_file():
        raise UserError(f"{path}: missing; an exported bridge has it{_ADVICE}")
    found = read_json(path)
    kind = found.get("format", 1)
    if kind == 1 and (unknown := sorted(found.keys() - _FIRST_FORMAT)):
        raise UserError(f"{path}: {shown(unknown[0])} is unknown: it is damaged{_ADVICE}")
    if kind not in (1, FORMAT) or isinstance(kind, bool) or ("format" in found and kind == 1):
        raise UserError(
            f"{path}: format is {shown(kind)}; this version reads {FORMAT}, and 1 without the key"
        )
    if kind == FORMAT:
        _check_own(path)
    for key in ("parameters", "step", "fingerprints", *(["files"] if kind == FORMAT else [])):
        if key not in found:
            raise UserError(f"{path}: {key} is missing{_ADVICE}")
    for key, (type_, what) in _TYPES.items():
        value = found.get(key)
        if key in found and (not isinstance(value, type_) or isinstance(value, bool)):
            raise UserError(f"{path}: {key} must be {what}, found {shown(value)}{_ADVICE}")
    for key, type_ in (("parameters", int), ("fingerprints", str), ("weights", str)):
        for name, value in found.get(key, {}).items():
            if not isinstance(value, type_):
                raise UserError(f"{path}: {key}: {shown(name)} is {shown(value)}{_ADVICE}")
    for name, value in found.get("models", {}).items():
        whole = isinstance(value, dict) and value.keys() == {"shape", "tokenizer", "stored"}
        if not whole or not all(isinstance(part, str) for part in value.values()):
            raise UserError(f"{path}: models: {shown(name)} is {shown(value)}{_ADVICE}")
    if kind == FORMAT and (directory / RECEIVERS).is_file():
        check_file(directory, RECEIVERS, found)
    return found


def trained_config(directory: Path) -> dict[str, Any]:
    """The config that an exported bridge was trained with, as plain values.

    Raises:
        UserError: see `about_bridge`; or it has none.
    """
    about = about_bridge(directory)
    if "config" not in about:
        raise UserError(f"{directory / ABOUT}: config is missing{_ADVICE}")
    config: dict[str, Any] = about["config"]
    return config


def save_bridge(directory: Path, params: PyTree, about: Mapping[str, Any]) -> None:
    """Writes a bridge's parameters, and what is known about them.

    A `receivers.json` that the directory holds by then is covered by the digests too.

    Args:
        directory: where the files go.
        params: the parameters.
        about: JSON with `step`, `stage`, `fingerprints`, `weights` and `config`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    tensors = {path_of(p): _stored(path_of(p), np.asarray(x)) for p, x in leaves}
    part = directory / f"{WEIGHTS}.part"
    with readable(part):
        save_file(tensors, part)
    os.replace(part, directory / WEIGHTS)
    seal(directory, {"parameters": component_counts({"bridge": params}), **about})


def seal(directory: Path, about: Mapping[str, Any]) -> None:
    """Writes `bridge.json`, with the digest of every file of the bridge.

    Args:
        directory: holds the other files.
        about: JSON with `parameters`, `step`, `stage`, `fingerprints`, `weights` and `config`.
    """
    names = [name for name in (WEIGHTS, RECEIVERS) if (directory / name).is_file()]
    files = {name: _digest(directory / name) for name in names}
    known = {"format": FORMAT, **about, "files": files, "sha256": _NO_DIGEST}
    text = json.dumps(known, indent=2) + "\n"
    own = hashlib.sha256(text.encode()).hexdigest()
    write_text(directory / ABOUT, text.replace(f'"sha256": "{_NO_DIGEST}"', f'"sha256": "{own}"'))


def check_file(directory: Path, name: str, about: Mapping[str, Any]) -> None:
    """Compares a file of an exported bridge with its digest, where the bridge has one.

    Raises:
        UserError: the file is missing or another.
    """
    path, known = directory / name, about.get("files", {})
    if not path.is_file():
        raise UserError(f"{path}: missing{_ADVICE}")
    if about.get("format", 1) != FORMAT:
        return
    if known.get(name) != _digest(path):
        raise UserError(f"{path}: damaged: its SHA-256 is not that in {ABOUT}{_ADVICE}")


def _check_own(path: Path) -> None:
    """Raises UserError unless the bytes of `bridge.json` are those that were written."""
    data = path.read_bytes().replace(b"\r\n", b"\n")
    held = _OWN.findall(data)
    blank = _OWN.sub(f'"sha256": "{_NO_DIGEST}"'.encode(), data)
    if len(held) != 1 or hashlib.sha256(blank).hexdigest().encode() != held[0]:
        raise UserError(f"{path}: damaged: its SHA-256 is not that of its contents{_ADVICE}")


def _digest(path: Path) -> str:
    """SHA-256 of a file; of a JSON file, whichever line ends it has."""
    try:
        if path.suffix == ".json":
            return hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).hexdigest()
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {said(error)}") from error


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
        UserError: it is damaged, or holds another bridge than the config's.
    """
    about = about_bridge(directory)
    check_file(directory, WEIGHTS, about)
    trained = about["parameters"]
    old = old_names(trained)
    if only:
        like = from_paths(chosen_parts(like, only))
    here = component_counts({"bridge": like})
    if old:
        here = {f"bridge/{flat_name(k.partition('/')[2])}": n for k, n in here.items()}
    check_same(here, {k: n for k, n in trained.items() if k in here} if only else trained)
    try:
        tensors = load_file(directory / WEIGHTS)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{directory / WEIGHTS}: cannot be read: {said(error)}{_ADVICE}") from error

    def place(path: tuple[Any, ...], leaf: Any) -> Any:
        name = flat_name(path_of(path)) if old else path_of(path)
        found = tensors.get(name)
        if found is None or found.shape != leaf.shape:
            raise UserError(
                f"{directory}: no parameter {path_of(path)!r} of shape {leaf.shape}; "
                "it holds another bridge than this config's"
            )
        if not np.isfinite(found.astype(np.float32)).all():
            raise UserError(f"{directory / WEIGHTS}: {name} is not finite{_ADVICE}")
        return put(found.astype(leaf.dtype), leaf.sharding)

    return jax.tree_util.tree_map_with_path(place, like), about
