"""Teacher-forced cross-entropy of the answer tokens, EOS included, read from the latent."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp

from lw_jax.errors import UserError
from lw_jax.objectives.base import Objective, Term, Terms, masked
from lw_jax.objectives.common.context import Context
from lw_jax.objectives.common.targets import answer_scores
from lw_jax.types import Array
from lw_jax.utils.bounds import Share, Tokens, TokensOrNone, Weight


@dataclass(frozen=True)
class Config(Objective):
    """Cross-entropy of the answer.

    Args:
        first: answer tokens that count (K-token cross-entropy); null for all.
        first_tokens: answer tokens that count `first_weight` times, the mean being over weights.
        first_weight: of those tokens, against 1 for the others.
        label_smoothing: share of the target spread evenly over the vocabulary.
    """

    first: Tokens | None = None
    first_tokens: TokensOrNone = 0
    first_weight: Weight = 1.0
    label_smoothing: Share = 0.0

    def __post_init__(self) -> None:
        if self.first is not None and self.first <= self.first_tokens and not self.first_weight:
            raise UserError(
                f"first_weight: at 0 none of the first {self.first} tokens counts; nothing is "
                "trained"
            )

    def token_weights(self, mask: Array) -> Array:
        """Weights [N, A] float32 of the answer tokens in mask [N, A]."""
        index = jnp.arange(mask.shape[1])[None]
        weights = jnp.where(index < self.first_tokens, self.first_weight, 1.0)
        if self.first is not None:
            weights = jnp.where(index < self.first, weights, 0.0)
        return mask * weights

    def terms(self, ctx: Context, receiver: str) -> Terms:
        """Nats per answer token. Where the first tokens count more or less than the others,
        `nll_plain`, of all tokens alike, and `nll_first`, of the first ones alone, are watched.
        """
        scored, labels, mask = answer_scores(ctx, receiver)
        right = scored.correct(labels) | ~mask
        whole = jnp.all(right, axis=1).astype(jnp.float32)
        nll = scored.nll
        if self.label_smoothing:
            nll += self.label_smoothing * (scored.uniform - scored.nll)
        weights = self.token_weights(mask)
        loss = Term(jnp.sum(nll * weights), jnp.sum(weights))
        watched = {"accuracy": masked(whole, ctx.valid)}
        if self.first_tokens and self.first_weight != 1:
            first = mask & (jnp.arange(mask.shape[1])[None] < self.first_tokens)
            watched |= {
                "nll_plain": masked(scored.nll, mask),
                "nll_first": masked(scored.nll, first),
            }
        return Terms(loss, watched=watched)
