"""`token_budget_bytes`: the text's first tokens, in as many bytes as the latent takes on the wire.

The budget that counts bytes, where `token_budget_first` counts columns: of a short text it leaves
all, and says then that the latent saves columns and no bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

from lw_jax.evaluate.methods.base import Method, left_bytes, reads_text
from lw_jax.text.tokenizer import Tokenizer


def kept(tokenizer: Tokenizer, ids: Sequence[int], budget: int) -> int:
    """How many of the text's first tokens are at most `budget` bytes of UTF-8."""
    low, high = 0, len(ids)
    while low < high:
        middle = (low + high + 1) // 2
        if len(tokenizer.backend.decode(list(ids[:middle])).encode()) <= budget:
            low = middle
        else:
            high = middle - 1
    return low


METHOD = Method(reads_text, left_bytes, order=50, kept=kept, default=False)
