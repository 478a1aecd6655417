"""Cross-entropy of the first K answer tokens, with a weight of its own beside the answer's.

docs/design.md sections 6 and 11: weight 0.5, K from 2 to 8. It is `answer_ce` with `first: K`,
which would have to stand in place of the whole answer; only K tokens go through the output head for
it.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp

from lw_jax.errors import UserError
from lw_jax.objectives.base import Objective, Term, Terms, masked
from lw_jax.objectives.common.context import Context
from lw_jax.objectives.common.targets import answer_scores
from lw_jax.types import Array
from lw_jax.utils.bounds import Step, Tokens, Weight


@dataclass(frozen=True)
class Config(Objective):
    """Cross-entropy of the first K answer tokens.

    Args:
        tokens: K, how many of the answer's tokens count (EOS where it is among them).
        tokens_end: K after a ramp, which begins at `tokens`; null: K stays.
        ramp: steps of the ramp; K is rounded to whole tokens.
    """

    weight: Weight = 0.5
    tokens: Tokens = 4
    tokens_end: Tokens | None = None
    ramp: Step = 0

    def __post_init__(self) -> None:
        if (self.tokens_end is None) != (self.ramp == 0):
            raise UserError("ramp: give it and tokens_end, or neither")

    @property
    def most(self) -> int:
        """The largest K."""
        return max(self.tokens, self.tokens_end or 0)

    def count(self, step: Array | None) -> Array:
        """K at a step, float32 scalar; None: after the ramp."""
        if self.tokens_end is None:
            return jnp.float32(self.tokens)
        if step is None:
            return jnp.float32(self.tokens_end)
        done = jnp.minimum(1.0, jnp.asarray(step, jnp.float32) / self.ramp)
        return jnp.round(self.tokens + (self.tokens_end - self.tokens) * done)

    def terms(self, ctx: Context, receiver: str) -> Terms:
        """Nats per token among the first K."""
        scored, _, mask = answer_scores(ctx, receiver, self.most)
        count = self.count(ctx.step)
        if self.tokens_end is not None:
            mask = mask & (jnp.arange(mask.shape[1])[None] < count)
        return Terms(masked(scored.nll, mask), watched={"k_tokens": Term(count, jnp.float32(1.0))})
