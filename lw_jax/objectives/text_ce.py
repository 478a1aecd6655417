"""Cross-entropy of the answer when the receiver, with its trained LoRA, reads the text itself.

The earlier systems' "text teacher" of the warm-up: it keeps adapters that serve the latent from
spoiling what the receiver makes of text (docs/design.md sections 6 and 11). The clean receiver that
methods are compared with is another one: it never has adapters.
"""

from __future__ import annotations

from dataclasses import dataclass

from lw_jax.models.head import chunked_cross_entropy
from lw_jax.objectives.base import Objective, Terms, masked
from lw_jax.objectives.common.context import Context, Pass


@dataclass(frozen=True)
class Config(Objective):
    """Cross-entropy of the answer, read from the text.

    Args:
        schedule: factor of the weight over the steps; `on: text` in a stage with text batches.
    """

    def terms(self, ctx: Context, receiver: str) -> Terms:
        """Nats per answer token, EOS included."""
        reading = ctx.reading(receiver, Pass("text", adapted=True))
        model = ctx.frozen.receivers[receiver]
        scored = chunked_cross_entropy(model.arch, model.params, reading.hidden, reading.labels)
        return Terms(masked(scored.nll, reading.mask & ctx.valid[:, None]))
