"""The latents that different views of one text give lie together (docs/design.md section 4).

A receiver can then read the latent of any model's view (`compressor.interlingua`). It cannot be met
by giving every text the same latent for nothing: `view_cosine_deranged`, between the views of
different texts, is logged beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import jax.numpy as jnp

from lw_jax.compressors.interlingua import OWN_VIEWS
from lw_jax.errors import UserError
from lw_jax.objectives.base import Objective, Term, Terms, masked
from lw_jax.objectives.common.context import Context
from lw_jax.objectives.common.measures import Distance, cosine, distance


@dataclass(frozen=True)
class Config(Objective):
    """Distance between the slots of every two views of a text, slot by slot.

    Args:
        distance: `cosine` (1 - cosine); `mse`; or `relative_mse` (over the mean square of the later
            one).
    """

    distance: Distance = "cosine"

    def terms(self, ctx: Context, receiver: str) -> Terms:
        """The distance per slot and pair of views; the same for every receiver.

        Raises:
            UserError: the compressor makes no latent for each of several views.
        """
        made = ctx.intermediates.get("compressor", {}).get(OWN_VIEWS)
        if made is None or made.shape[1] < 2:
            raise UserError(
                "it compares the latents of several views; use bridge.compressor.interlingua with "
                "two or more views"
            )
        counts = jnp.broadcast_to(ctx.valid_contexts[:, None], made[:, 0, :, 0].shape)
        zero = jnp.float32(0.0)
        total, alike, other = Term(zero, zero), Term(zero, zero), Term(zero, zero)
        for a, b in combinations(range(made.shape[1]), 2):
            x, y = made[:, a], made[:, b]
            total = _sum(total, masked(distance(self.distance, x, y), counts))
            alike = _sum(alike, masked(cosine(x, y), counts))
            both = counts & jnp.roll(counts, 1, axis=0)
            other = _sum(other, masked(cosine(x, jnp.roll(y, 1, axis=0)), both))
        return Terms(total, watched={"view_cosine": alike, "view_cosine_deranged": other})


def _sum(a: Term, b: Term) -> Term:
    return Term(a.total + b.total, a.count + b.count)
