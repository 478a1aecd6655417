"""Cross-entropy of the answer when the receiver, with its trained LoRA, reads the text itself.

The earlier systems' "text teacher" of the warm-up: it keeps adapters that serve the latent from
spoiling what the receiver makes of text (docs/design.md sections 6 and 11). The clean receiver that
methods are compared with is another one: it never has adapters.
"""

from __future__ import annotations

from dataclasses import dataclass

from lw_jax.models.head import chunked_cross_entropy
from lw_jax.objectives.base import Term, masked
from lw_jax.objectives.context import Context, Pass
from lw_jax.utils.schedule import Schedule


@dataclass(frozen=True)
class Config:
    """Cross-entropy of the answer, read from the text.

    Args:
        weight: of this objective in the loss.
        schedule: factor of the weight over the steps; `on: text` in a stage with text batches.
    """

    weight: float = 1.0
    schedule: Schedule = Schedule()


def terms(config: Config, context: Context, receiver: str) -> dict[str, Term]:
    """Nats per answer token, EOS included."""
    reading = context.reading(receiver, Pass("text", adapted=True))
    model = context.frozen.receivers[receiver]
    scored = chunked_cross_entropy(model.arch, model.params, reading.hidden, reading.labels)
    return {"text_ce": masked(scored.nll, reading.mask & context.valid[:, None])}
