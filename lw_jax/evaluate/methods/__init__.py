"""What can stand in the message's place of the receiver's sequence: one file per method.

A module `text.py` that defines `METHOD` is the method `text`. The rest of the sequence, scoring and
decoding are the same for all (`lw_jax.evaluate.predict`).
"""

from __future__ import annotations

import importlib

from lw_jax.evaluate.methods.base import Method


def method(name: str) -> Method:
    """The method of that name in `lw_jax.config.evaluation.METHODS`."""
    return importlib.import_module(f"{__name__}.{name}").METHOD
