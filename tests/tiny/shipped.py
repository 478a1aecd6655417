"""The bridge that ships, loaded once for all tests of a process, from another directory."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import pytest

from lw_jax import Bridge

ROOT = Path(__file__).parents[2]
FACTS = ROOT / "zoo/bridges/facts"


@cache
def facts() -> Bridge:
    """`zoo/bridges/facts`, both ends."""
    with tempfile.TemporaryDirectory() as elsewhere, pytest.MonkeyPatch.context() as patch:
        patch.chdir(elsewhere)
        return Bridge.load(FACTS)
