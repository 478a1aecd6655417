"""`deranged`: the latent of another text in place of its own; all else is as in `latent`."""

from __future__ import annotations

from lw_jax.evaluate.methods.base import Method, latent_bytes, reads_latent

METHOD = Method(reads_latent, latent_bytes, order=120, latent="other", control=True)
