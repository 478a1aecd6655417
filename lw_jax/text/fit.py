"""How many contexts are too long, in words."""

from __future__ import annotations

from lw_jax.data.example import Remark
from lw_jax.text.collate import Lengths

MANY = 0.2
"""From this share on, contexts that are too long are a warning."""


def length_remark(lengths: Lengths, max_tokens: int | None, of: int, which: str) -> Remark | None:
    """What is said of contexts that are too long; an error if all are. None: none is.

    Args:
        lengths: of all contexts, or of some that are spread evenly over them.
        max_tokens: of the layout.
        of: number of all contexts.
        which: which they are, in words.
    """
    if not lengths.long:
        return None
    limit = "the source reads" if max_tokens is None else f"layout.max_tokens={max_tokens}"
    share = lengths.long / lengths.contexts
    count = f"{lengths.long:,} of {lengths.contexts:,}"
    if of != lengths.contexts:
        seen = f"of {lengths.contexts:,} looked at {lengths.long:,}"
        count = f"{'all' if share == 1 else f'about {share:.0%}'} of {of:,} ({seen})"
    text = f"{count} contexts {which} are longer than {limit}"
    if share == 1:
        return Remark("error", f"{text}: raise it, or give shorter texts")
    return Remark("warning" if share >= MANY else "ok", f"{text}, and are left out")
