"""What can stand in the message's place of the receiver's sequence: one file per method.

A module `text.py` that defines `METHOD` is the method `text`; `latent_<codec>` are made by
`at_precision`, `embedding_replay_<change>` by `replayed`. The rest of the sequence, scoring and
decoding are the same for all (`lw_jax.evaluate.predict`).
"""

from __future__ import annotations

import importlib

from lw_jax.evaluate.config import METHODS, change_of, codec_of
from lw_jax.evaluate.methods.at_precision import at_precision
from lw_jax.evaluate.methods.base import Method
from lw_jax.evaluate.methods.replayed import replayed


def method(name: str) -> Method:
    """The method of that name in `lw_jax.evaluate.config.METHODS`, or one of `latent_<codec>`
    and `embedding_replay_<change>`."""
    codec_name = codec_of(name)
    if codec_name is not None:
        return at_precision(codec_name)
    if name not in METHODS and (changed := change_of(name)) is not None:
        return replayed(changed)
    return importlib.import_module(f"{__name__}.{name}").METHOD
