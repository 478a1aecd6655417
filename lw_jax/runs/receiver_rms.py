"""RMS of a run's receivers, measured once.

Every stage uses the same numbers, and a finished run can be used where its rows are missing.

    <run_dir>/receivers.json
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lw_jax.models.dims import ModelDims
from lw_jax.utils.files import AGAIN, damaged, read_json, write_text

FILE = "receivers.json"
_ADVICE = f"{AGAIN}: it is measured anew"


def save(run_dir: Path, receivers: Mapping[str, ModelDims], prints: Mapping[str, str]) -> None:
    """Writes the measured sizes with the receivers' fingerprints, unless the run has them."""
    if not (run_dir / FILE).exists():
        plain = {n: {"fingerprint": prints[n], **asdict(d)} for n, d in receivers.items()}
        write_text(run_dir / FILE, json.dumps(plain, indent=2) + "\n")


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


def load(run_dir: Path, prints: Mapping[str, str]) -> dict[str, ModelDims] | None:
    """What the run has measured of the receivers with these fingerprints; None: nothing.

    Raises:
        UserError: the file is damaged.
    """
    path = run_dir / FILE
    if not path.is_file():
        return None
    found = {}
    for name, plain in read_json(path, dict, _ADVICE).items():
        if not isinstance(plain, dict) or not isinstance(plain.get("fingerprint"), str):
            raise damaged(path, f"{name} has no fingerprint", _ADVICE)
        if plain.pop("fingerprint") != prints.get(name):
            return None
        found[name] = _dims(path, name, plain)
    return found if found.keys() == prints.keys() else None


def _dims(path: Path, name: str, plain: Mapping[str, Any]) -> ModelDims:
    """A receiver's sizes from plain values.

    Raises:
        UserError: they are none.
    """
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in plain.items()}
    numbers = [x for v in values.values() for x in (v if isinstance(v, tuple) else (v,))]
    given = [x for x in numbers if x is not None]
    if not all(isinstance(x, int | float) and math.isfinite(x) and x >= 0 for x in given):
        raise damaged(path, f"{name}: a size is no number", _ADVICE)
    try:
        dims = ModelDims(**values)
        lengths = {len(dims.key_rms), len(dims.value_rms)}
    except TypeError as error:
        raise damaged(path, f"{name}: {error}", _ADVICE) from None
    if not lengths <= {0, dims.layers}:
        raise damaged(path, f"{name}: it has not one RMS for each layer", _ADVICE)
    return dims
