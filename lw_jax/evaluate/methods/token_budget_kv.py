"""`token_budget_kv_<what>`: the budget by K/V entries, where the others count columns.

What a receiver holds of a latent's message is a key (and its value) for every column in every layer
and key/value head, and those that adapters read in theirs. A token of text holds one in every layer
and head as well: as many tokens stay as hold so many. Without adapters it is the budget by columns.
"""

from __future__ import annotations

from functools import cache

from lw_jax.errors import UserError
from lw_jax.evaluate.methods.base import Family, Method, left_bytes, reads_text
from lw_jax.text.budget import KEPT

PREFIX = "token_budget_kv_"


@cache
def keeping(name: str) -> Method:
    """The method that keeps the `first` tokens, the `last`, `sentences` or those of `surprisal`.

    Raises:
        UserError: there is no such choice.
    """
    if name not in KEPT:
        raise UserError(f"methods: unknown {PREFIX + name!r}; one of {', '.join(KEPT)} after it")
    asks = name == "surprisal"
    return Method(
        reads_text,
        left_bytes,
        order=48,
        cut=KEPT[name],
        surprisal=asks,
        by_entries=True,
        default=False,
    )


FAMILY = Family(PREFIX, keeping, ends=", ".join(KEPT))
