"""`latent`: what the bridge makes of the text, which it has learned to hand over."""

from __future__ import annotations

from lw_jax.evaluate.methods.base import Method, latent_bytes, reads_latent

METHOD = Method(reads_latent, latent_bytes, order=20, latent="own")
