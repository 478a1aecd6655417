"""Real data sets that the project does not ship, for tests that can use them.

LW_JAX_DATA names a directory with `gsm8k_train.jsonl`, `gsm8k_dev.jsonl` (659 rows of the test set)
and `squad_xquad_en_dev.json` (24 articles of XQuAD's English part).
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def real_file(name: str) -> Path:
    """The file of that name; the test is skipped where there is none."""
    home = os.environ.get("LW_JAX_DATA")
    if home is None:
        pytest.skip("LW_JAX_DATA names no directory of real data")
    path = Path(home) / name
    if not path.is_file():
        pytest.skip(f"no {name} in {home}")
    return path
