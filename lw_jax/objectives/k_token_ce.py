"""Cross-entropy of the first K answer tokens, with a weight of its own beside the answer's.

docs/design.md sections 6 and 11: weight 0.5, K from 2 to 8. It is `answer_ce` with `first: K`,
which would have to stand in place of the whole answer; only K tokens go through the output head for
it.
"""

from __future__ import annotations

from dataclasses import dataclass

from lw_jax.objectives.base import Term, masked
from lw_jax.objectives.context import Context
from lw_jax.objectives.targets import answer_scores
from lw_jax.utils.checks import at_least
from lw_jax.utils.schedule import Schedule


@dataclass(frozen=True)
class Config:
    """Cross-entropy of the first K answer tokens.

    Args:
        weight: of this objective in the loss.
        schedule: factor of the weight over the steps.
        tokens: K, how many of the answer's tokens count (EOS where it is among them).
    """

    weight: float = 0.5
    schedule: Schedule = Schedule()
    tokens: int = 4

    def __post_init__(self) -> None:
        at_least(self, 1, "tokens")


def terms(config: Config, context: Context, receiver: str) -> dict[str, Term]:
    """Nats per token among the first K."""
    scored, _, mask = answer_scores(context, receiver, config.tokens)
    return {"k_token_ce": masked(scored.nll, mask)}
