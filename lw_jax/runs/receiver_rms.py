"""RMS of a run's receivers, measured once.

Every stage uses the same numbers, and a finished run can be used where its rows are missing.

    <run_dir>/receivers.json
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lw_jax.models.dims import ModelDims
from lw_jax.utils.files import write_text

FILE = "receivers.json"


def save(run_dir: Path, receivers: Mapping[str, ModelDims], prints: Mapping[str, str]) -> None:
    """Writes the measured sizes with the receivers' fingerprints, unless the run has them."""
    if not (run_dir / FILE).exists():
        plain = {n: {"fingerprint": prints[n], **asdict(d)} for n, d in receivers.items()}
        write_text(run_dir / FILE, json.dumps(plain, indent=2) + "\n")


def load(run_dir: Path, prints: Mapping[str, str]) -> dict[str, ModelDims] | None:
    """What the run has measured of the receivers with these fingerprints; None: nothing."""
    if not (run_dir / FILE).is_file():
        return None
    found = {}
    for name, plain in json.loads((run_dir / FILE).read_text(encoding="utf-8")).items():
        if plain.pop("fingerprint") != prints.get(name):
            return None
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in plain.items()
        }
        found[name] = ModelDims(**values)
    return found if found.keys() == prints.keys() else None
