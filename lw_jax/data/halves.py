"""A text in two halves: the first crosses the wire, the receiver has to write the second.

To continue raw text, no question and no label is needed; ICAE (Ge et al. 2023) and COCOM (Rau et
al. 2024) train with it before the task.
"""

from __future__ import annotations

from lw_jax.data.records import BadRowError, shown


def halves(text: str) -> tuple[str, str]:
    """The text cut at the space nearest its middle, without that space.

    Raises:
        BadRowError: it is a single word.
    """
    text = text.strip()
    spaces = [i for i, char in enumerate(text) if char == " "]
    if not spaces:
        raise BadRowError(
            f"expected two words or more, to continue from the first; got {shown(text)}"
        )
    cut = min(spaces, key=lambda i: abs(2 * i - len(text)))
    return text[:cut].rstrip(), text[cut:].lstrip()
