"""`deranged_near`: the latent of another context of the same article, so about the same subject.

A latent that says no more than what an article is about does as well here as `latent`. Rows whose
article has no other context among the rows are left out of its figures, and counted.
"""

from __future__ import annotations

from lw_jax.evaluate.methods.base import Method, latent_bytes, reads_latent

METHOD = Method(reads_latent, latent_bytes, order=130, latent="near", default=False)
