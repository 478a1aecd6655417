"""`latent_<codec>`: the latent sent at another precision than the bridge was trained for."""

from __future__ import annotations

from functools import cache

from lw_jax.evaluate.methods.base import Family, Method, latent_bytes, reads_latent
from lw_jax.wire.codecs import CODECS, codec


@cache
def at_codec(name: str) -> Method:
    """The method that reads packets in one of `lw_jax.wire.codecs.CODECS`.

    Raises:
        UserError: there is no such codec.
    """
    codec(name)
    return Method(reads_latent, latent_bytes, order=21, latent="own", codec=name, default=False)


FAMILY = Family("latent_", at_codec, ends=", ".join(CODECS))
