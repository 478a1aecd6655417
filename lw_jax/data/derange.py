"""Pairs every row with a row of another context: the control that a matched latent must beat."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from lw_jax.errors import UserError


def derangement(
    context_ids: Sequence[str],
    levels: Sequence[int] | None = None,
    lengths: Sequence[int] | None = None,
) -> np.ndarray:
    """For every row the index of a row with another context; a pure function of its arguments.

    Rows are paired within their level, with rows of similar length. Within a level it is a
    permutation if one exists (if no context has more than half of the rows). A shift by one
    row would not do: in SQuAD four of five neighbours share their passage.

    Args:
        context_ids: context of each row.
        levels: level of each row; None: all the same.
        lengths: length of each row; None: all the same.

    Returns:
        [n] int64.

    Raises:
        UserError: all rows have one context.
    """
    n = len(context_ids)
    of_level = [0] * n if levels is None else list(levels)
    size = [0] * n if lengths is None else list(lengths)
    if len(set(context_ids)) < 2:
        raise UserError(
            f"deranged: {n} row{'s' * (n != 1)} of one context; give rows of at least two contexts"
        )
    partner = np.full(n, -1, np.int64)
    left: list[int] = []
    for level in sorted(set(of_level)):
        rows = [row for row in range(n) if of_level[row] == level]
        rows = _in_blocks(rows, context_ids, size)
        if not _rotate(rows, context_ids, partner):
            left += rows
    left = _in_blocks(left, context_ids, size)
    if left and not _rotate(left, context_ids, partner):
        everything = _in_blocks(range(n), context_ids, size)
        for turn, row in enumerate(left):
            others = [o for o in everything if context_ids[o] != context_ids[row]]
            partner[row] = others[turn % len(others)]
    return partner


def _in_blocks(rows: Sequence[int], ids: Sequence[str], size: Sequence[int]) -> list[int]:
    """The rows ordered so that those of one context are neighbours, shorter contexts first."""
    shortest: dict[str, int] = {}
    for row in rows:
        shortest[ids[row]] = min(size[row], shortest.get(ids[row], size[row]))
    return sorted(rows, key=lambda row: (shortest[ids[row]], ids[row], row))


def _rotate(rows: Sequence[int], ids: Sequence[str], partner: np.ndarray) -> bool:
    """Pairs each row with the one a largest block further on.

    The partner comes after the row's own block, since no block is larger. Where the order wraps
    around, it comes before that block if no block has more than half of the rows.

    Returns:
        False, with nothing paired, if a block has more than half of the rows.
    """
    block = max(Counter(ids[row] for row in rows).values())
    if 2 * block > len(rows):
        return False
    for place, row in enumerate(rows):
        partner[row] = rows[(place + block) % len(rows)]
    return True
