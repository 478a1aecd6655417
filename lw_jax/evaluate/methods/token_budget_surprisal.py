"""`token_budget_surprisal`: the text's most surprising tokens, as many as the message has columns.

Surprising to the sender, a token's nats given all before it, as in Selective Context (Li et al.
2023, arXiv:2310.06201) and LLMLingua (Jiang et al. 2023, arXiv:2310.05736). They stay in the order
of the text. The sender is loaded whole for it, with its head.
"""

from __future__ import annotations

from lw_jax.evaluate.methods.base import Cut, Method, left_bytes, reads_text


def cut(row: Cut) -> list[int]:
    """The ids with the most nats, of equal ones the first."""
    nats = row.nats
    assert nats is not None  # asked for
    most = sorted(range(len(row.ids)), key=lambda place: (-nats[place], place))[: row.columns]
    return [row.ids[place] for place in sorted(most)]


METHOD = Method(reads_text, left_bytes, order=47, cut=cut, surprisal=True, default=False)
