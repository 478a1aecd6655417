"""Unlimited training texts: a data set's own texts with other names and other numbers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from lw_jax.data.augment import excerpt, pieces, proper_names, rewrite
from lw_jax.data.example import Example, Remark, rng_of
from lw_jax.data.overlap import RunIndex
from lw_jax.data.source import Account
from lw_jax.utils.bounds import Checked, Share

SIZE = 100_000_000
TRIES = 100


@dataclass(frozen=True)
class Augment(Checked):
    """Training texts that cannot be learned by heart.

    Args:
        rewritten: share of contexts whose names and numbers are replaced, anew each time.
        excerpts: share of those that are cut to some of their consecutive sentences.
    """

    rewritten: Share = 0.0
    excerpts: Share = 0.0


class RewrittenRows:
    """Contexts to read back; `rows[i]` is a pure function of (texts, seed, i), made when needed.

    Args:
        groups: a data set's own contexts, one example each.
        augment: how many are changed, and how.
        seed: seed of the changes.
        held_out: runs of words that no rewritten text may contain; after some tries without success
            the text is not changed. None: nothing is held out.
        malformed: rows that the data set left out as malformed.
        account: what became of the data set's records.
    """

    def __init__(
        self,
        groups: Sequence[tuple[Example, ...]],
        augment: Augment,
        seed: int,
        held_out: RunIndex | None = None,
        malformed: Sequence[str] = (),
        account: Account = Account(),  # noqa: B008
    ) -> None:
        self.groups = groups
        self.augment = augment
        self.seed = seed
        self.held_out = held_out
        self.malformed = malformed
        self.account = account
        texts = [group[0].context for group in groups]
        self.names = proper_names(texts)
        known = frozenset(self.names)
        self.pieces = [pieces(text, known) for text in texts]

    @property
    def remarks(self) -> tuple[Remark, ...]:
        """What is said of the data set's rows that were left out."""
        return self.account.remarks

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int, /) -> tuple[Example, ...]:
        name = f"rewritten-{self.seed}-{index}"
        rng = rng_of(name)
        place = int(rng.random() * len(self.groups))
        text = self._text(place, rng) if rng.random() < self.augment.rewritten else None
        if text is None:
            return self.groups[place]
        return (Example(f"{name}/{self.groups[place][0].id}", name, text, "", (text,)),)

    def _text(self, place: int, rng: random.Random) -> str | None:
        for _ in range(TRIES):
            text = rewrite(self.pieces[place], {}, self.names, rng, numbers=True)
            if rng.random() < self.augment.excerpts:
                text = excerpt(text, rng)
            if self.held_out is None or self.held_out.shared(text) is None:
                return text
        return None
