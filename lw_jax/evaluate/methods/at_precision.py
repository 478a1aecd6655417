"""`latent_<codec>`: the latent sent at another precision than the bridge was trained for."""

from __future__ import annotations

from functools import cache

from lw_jax.evaluate.methods.base import Method, latent_bytes
from lw_jax.evaluate.methods.latent import message


@cache
def at_precision(codec_name: str) -> Method:
    """The method `latent`, read from packets in one of `lw_jax.wire.codecs.CODECS`."""
    return Method(message, latent_bytes, latent="own", codec=codec_name)
