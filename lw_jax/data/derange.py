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
    """For every row the index of a row with another context; the same for the same arguments.

    Rows are paired within their level, and with rows of about their length. Within a level it is a
    permutation wherever one exists (no context has more than half of the rows). Shifting by one
    row would not do: SQuAD's neighbours share their passage in four cases of five.

    Args:
        levels, lengths: of each row; not given: all alike.

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
    """The rows with those of one context side by side, shorter contexts first."""
    shortest: dict[str, int] = {}
    for row in rows:
        shortest[ids[row]] = min(size[row], shortest.get(ids[row], size[row]))
    return sorted(rows, key=lambda row: (shortest[ids[row]], ids[row], row))


def _rotate(rows: Sequence[int], ids: Sequence[str], partner: np.ndarray) -> bool:
    """Pairs each row with the one a largest block further on; False where that is its own block.

    Blocks are of at most that size, so the partner lies behind the row's own block; around the end
    it lies before it if no block has more than half of the rows.
    """
    block = max(Counter(ids[row] for row in rows).values())
    if 2 * block > len(rows):
        return False
    for place, row in enumerate(rows):
        partner[row] = rows[(place + block) % len(rows)]
    return True
