"""`deranged`: the latent of another `context_id`; only what the wire says differs from `latent`."""

from __future__ import annotations

from lw_jax.evaluate.methods import latent
from lw_jax.evaluate.methods.base import Method, latent_bytes

METHOD = Method(latent.message, latent_bytes, latent="other")
