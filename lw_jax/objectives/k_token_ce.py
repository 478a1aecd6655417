"""Cross-entropy of the first K answer tokens, with a weight of its own beside the answer's.

docs/design.md sections 6 and 11: weight 0.5, K from 2 to 8. It is `answer_ce` with `first: K`,
which would have to stand in place of the whole answer; only K tokens go through the output head for
it.
"""

from __future__ import annotations

from dataclasses import dataclass

from lw_jax.objectives.base import Objective, Terms, masked
from lw_jax.objectives.common.context import Context
from lw_jax.objectives.common.targets import answer_scores
from lw_jax.utils.bounds import Tokens, Weight


@dataclass(frozen=True)
class Config(Objective):
    """Cross-entropy of the first K answer tokens.

    Args:
        tokens: K, how many of the answer's tokens count (EOS where it is among them).
    """

    weight: Weight = 0.5
    tokens: Tokens = 4

    def terms(self, ctx: Context, receiver: str) -> Terms:
        """Nats per token among the first K."""
        scored, _, mask = answer_scores(ctx, receiver, self.tokens)
        return Terms(masked(scored.nll, mask))
