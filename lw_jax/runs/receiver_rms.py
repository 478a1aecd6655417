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

from lw_jax.models.arch_keys import shown
from lw_jax.models.dims import ModelDims
from lw_jax.models.fingerprint import FORMAT, comparable
from lw_jax.utils.files import AGAIN, damaged, read_json, write_text

FILE = "receivers.json"
_ADVICE = f"{AGAIN}: it is measured anew"
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


def copy(source: Path, target: Path) -> None:
    """Gives one directory what another has measured, if it has.

    Raises:
        UserError: the file there is damaged.
    """
    path = source / FILE
    if path.is_file():
        found = read_json(path, dict, "put back a whole copy of it")
        target.mkdir(parents=True, exist_ok=True)
        write_text(target / FILE, json.dumps(found, indent=2) + "\n")


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
    for name, plain in read_json(path, dict, _ADVICE).items():
        dims, known = _dims(path, shown(name), plain)
        if known != comparable(plain, prints, weights, run_dir).get(name):
            return None
        found[name] = dims
    return found if found.keys() == prints.keys() else None


def _dims(path: Path, name: str, plain: Any) -> tuple[ModelDims, str]:
    """One receiver's sizes and its fingerprint.

    Raises:
        UserError: an entry is missing or is something else.
    """

    def wrong(what: str) -> Exception:
        return damaged(path, f"{name}: {what}", _ADVICE)

    if not isinstance(plain, dict):
        raise wrong(f"must be a JSON object, found {shown(plain)}")
    if unknown := sorted(plain.keys() - _NAMES):
        raise wrong(f"{shown(unknown[0])} is unknown")
    for key in ("fingerprint", *_COUNTS, "embed_rms", "key_rms", "value_rms"):
        if key not in plain:
            raise wrong(f"{key} is missing")
    counts = {key: plain[key] for key in _COUNTS}
    if plain.get("heads") is not None:
        counts["heads"] = plain["heads"]
    for key, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise wrong(f"{key} is {shown(value)}, no positive whole number")
    for key in ("key_rms", "value_rms"):
        if not isinstance(plain[key], list) or len(plain[key]) not in (0, plain["layers"]):
            raise wrong(f"{key} has not one number a layer")
    for value in (plain["embed_rms"], *plain["key_rms"], *plain["value_rms"]):
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or value < 0:
            raise wrong(f"an RMS is {shown(value)}, no finite number")
    dims = ModelDims(
        **counts,
        embed_rms=plain["embed_rms"],
        key_rms=tuple(plain["key_rms"]),
        value_rms=tuple(plain["value_rms"]),
    )
    return dims, str(plain["fingerprint"])
