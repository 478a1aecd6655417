"""What can stand in the message's place of the receiver's sequence: one file per method.

A module `text.py` that defines `METHOD` is the method `text`; `latent_<codec>` are made by
`at_precision`. The rest of the sequence, scoring and decoding are the same for all
(`lw_jax.evaluate.predict`).
"""

from __future__ import annotations

import importlib

from lw_jax.config.evaluation import codec_of
from lw_jax.evaluate.methods.at_precision import at_precision
from lw_jax.evaluate.methods.base import Method


def method(name: str) -> Method:
    """The method of that name in `lw_jax.config.evaluation.METHODS`, or `latent_<codec>`."""
    codec_name = codec_of(name)
    if codec_name is not None:
        return at_precision(codec_name)
    return importlib.import_module(f"{__name__}.{name}").METHOD
