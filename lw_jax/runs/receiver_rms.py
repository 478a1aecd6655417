"""RMS of a run's receivers, measured once.

Every stage uses the same numbers, and a finished run can be used where its rows are missing.

    <run_dir>/receivers.json
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from lw_jax.errors import UserError
from lw_jax.models.arch_keys import shown
from lw_jax.models.checkpoint import read_json
from lw_jax.models.dims import ModelDims
from lw_jax.models.fingerprint import FORMAT, comparable
from lw_jax.utils.files import write_text

FILE = "receivers.json"
_COUNTS = ("width", "layers", "kv_heads", "head_dim")
_NAMES = frozenset(f.name for f in fields(ModelDims)) | {"format", "fingerprint"}


def save(run_dir: Path, receivers: Mapping[str, ModelDims], prints: Mapping[str, str]) -> None:
    """Writes the measured sizes with the receivers' fingerprints, unless the run has them."""
    if not (run_dir / FILE).exists():
        write(run_dir, receivers, prints)


def write(run_dir: Path, receivers: Mapping[str, ModelDims], prints: Mapping[str, str]) -> None:
    """Writes the measured sizes with the receivers' fingerprints.

    Args:
        run_dir: directory of the run, or of an exported bridge.
        receivers: what was measured, by receiver.
        prints: the receivers' fingerprints.
    """
    plain = {
        n: {"format": FORMAT, "fingerprint": prints[n], **asdict(d)} for n, d in receivers.items()
    }
    write_text(run_dir / FILE, json.dumps(plain, indent=2) + "\n")


def known(run_dir: Path) -> bool:
    """Whether a run has measured its receivers."""
    return (run_dir / FILE).is_file()


def load(
    run_dir: Path, prints: Mapping[str, str], weights: Mapping[str, str]
) -> dict[str, ModelDims] | None:
    """What the run has measured of the receivers with these fingerprints; None: nothing.

    Args:
        run_dir: directory of the run.
        prints: fingerprints of the receivers.
        weights: fingerprints of their weights alone, which older files hold.

    Raises:
        UserError: the file is damaged.
    """
    path = run_dir / FILE
    if not path.is_file():
        return None
    found = {}
    for name, plain in read_json(path).items():
        dims, known = _dims(plain, f"{path}: {shown(name)}")
        if known != comparable(plain, prints, weights, run_dir).get(name):
            return None
        found[name] = dims
    return found if found.keys() == prints.keys() else None


def _dims(plain: Any, where: str) -> tuple[ModelDims, str]:
    """One receiver's sizes and its fingerprint.

    Raises:
        UserError: an entry is missing or is something else.
    """
    advice = "; the file is damaged: restore it, or measure again in another run_dir"
    if not isinstance(plain, dict):
        raise UserError(f"{where}: must be a JSON object, found {shown(plain)}{advice}")
    if unknown := sorted(plain.keys() - _NAMES):
        raise UserError(f"{where}: {shown(unknown[0])} is unknown{advice}")
    for key in ("fingerprint", *_COUNTS, "embed_rms", "key_rms", "value_rms"):
        if key not in plain:
            raise UserError(f"{where}: {key} is missing{advice}")
    counts = {key: plain[key] for key in _COUNTS}
    if plain.get("heads") is not None:
        counts["heads"] = plain["heads"]
    for key, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"{where}: {key} is {shown(value)}, no positive whole number{advice}")
    for key in ("key_rms", "value_rms"):
        if not isinstance(plain[key], list) or len(plain[key]) not in (0, plain["layers"]):
            raise UserError(f"{where}: {key} has not one number a layer{advice}")
    for value in (plain["embed_rms"], *plain["key_rms"], *plain["value_rms"]):
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or value < 0:
            raise UserError(f"{where}: an RMS is {shown(value)}, no finite number{advice}")
    dims = ModelDims(
        **counts,
        embed_rms=plain["embed_rms"],
        key_rms=tuple(plain["key_rms"]),
        value_rms=tuple(plain["value_rms"]),
    )
    return dims, str(plain["fingerprint"])
