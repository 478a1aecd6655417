"""How surprising a text's tokens are to the sender: what `token_budget_surprisal` cuts by.

The sender reads the text as its own words after BOS and primer, and is needed whole for it, with
its head. Its tokens are other ones than a receiver's: nats go over by characters, each token's
spread evenly over those that it stands for.
"""

from __future__ import annotations

from collections.abc import Sequence

from lw_jax.data.example import Example
from lw_jax.mesh import fetch
from lw_jax.models.frozen import FrozenDecoder
from lw_jax.receiver.answer import Batch, asked, message_of, score
from lw_jax.text.budget import Spans, offsets
from lw_jax.text.collate import Collate, measure
from lw_jax.text.layout import Prompt, head_ids
from lw_jax.text.layout_config import LayoutConfig
from lw_jax.text.tokenizer import Tokenizer

PRIMER = "Text:"
"""Before the text where the sender reads no primer, so that its first token follows something."""


def of_texts(
    layout: LayoutConfig,
    sender: FrozenDecoder,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    batch_size: int,
) -> list[Spans]:
    """The nats of every text's tokens under the sender.

    Args:
        layout: of the evaluation.
        sender: whole.
        tokenizer: the sender's.
        texts: that the latent replaces.
        batch_size: rows at once.
    """
    primer = layout.primer if layout.source_primer is None else layout.source_primer
    own = LayoutConfig(primer=primer or PRIMER, question="", anchor="", anchor_mode="none")
    prompt = Prompt(tuple(head_ids(own, tokenizer)))
    bodies = [text.strip() for text in texts]
    groups = [(Example("", str(i), "", "", (body,)),) for i, body in enumerate(bodies)]
    collate = Collate(own, None, {"lm": tokenizer}, measure(own, None, {"lm": tokenizer}, groups))
    found: list[Spans] = []
    for begin in range(0, len(groups), batch_size):
        rows = groups[begin : begin + batch_size]
        batch: Batch = collate(rows + rows[:1] * (batch_size - len(rows)))  # type: ignore[assignment]  # of the host
        message, (ask, answer) = message_of(sender, prompt, batch, "lm", "none"), asked(batch, "lm")
        scored = score(sender, prompt, message, ask, answer, each=True)
        assert scored.each is not None
        nats, ids, lengths = fetch((scored.each.nll, answer.ids, answer.lengths))
        for i in range(len(rows)):
            text, body, end = texts[begin + i], bodies[begin + i], int(lengths[i]) - 1  # no EOS
            shift = text.index(body) - 1  # a space comes before the answer
            at = offsets(tokenizer, f" {body}", ids[i][:end].tolist())
            each = zip(at, nats[i][:end].tolist(), strict=True)
            found.append([(a + shift, b + shift, value) for (a, b), value in each])
    return found
