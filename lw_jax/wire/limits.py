"""What a packet of one bridge can be, so that nothing else is read as one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lw_jax.errors import UserError
from lw_jax.types import SHARED, Latent

LARGEST = 1e12
"""The largest magnitude of an entry: squares of such entries can still be summed in float32."""
LONGEST = 2**24
"""The largest span where nothing smaller is known: float32 counts up to there."""


@dataclass(frozen=True)
class Limits:
    """What a packet of one bridge can be.

    Attributes:
        width: d, of a slot.
        fewest: real slots of a text, at least.
        most: real slots of a text, at most; None: no more than the text has source tokens.
        owners: owners of the slots, of which a packet has the first; (): all are shared.
        span: the longest text in source tokens; None: no length is sent.
        largest: the largest magnitude of an entry.
    """

    width: int
    fewest: int = 1
    most: int | None = None
    owners: tuple[int, ...] = ()
    span: float | None = LONGEST
    largest: float = LARGEST

    def check_size(self, slots: int, width: int | None) -> None:
        """Checks the numbers in a packet's header, before anything is read with them.

        Args:
            slots: M.
            width: d; None: codes are sent, whose number is known.

        Raises:
            UserError: this bridge sends no such packet.
        """
        if width not in (None, self.width):
            raise UserError(
                f"wire: slots of width {width}, where those of this bridge have {self.width}"
            )
        if slots < self.fewest or (self.most is not None and slots > self.most):
            more = " or more" if self.most is None else f" to {self.most}"
            raise UserError(
                f"wire: {slots} slots, where this bridge sends {self.fewest}"
                f"{'' if self.most == self.fewest else more}"
            )

    def check(self, latent: Latent) -> None:
        """Checks what a packet says, before it is handed on.

        Args:
            latent: of one row, with numpy leaves.

        Raises:
            UserError: this bridge sends no such packet.
        """
        mask, slots, span = (np.asarray(x) for x in (latent.mask, latent.slots, latent.span))
        count = mask.shape[1]
        if not mask.all():
            raise UserError(
                f"wire: {int(mask.sum())} of its {count} slots are used; a sender sends all or none"
            )
        owners = self.owners[:count]
        expected = () if all(owner == SHARED for owner in owners) else owners
        if latent.owner != expected:
            said = ", ".join(map(str, latent.owner[:8])) or "none"
            raise UserError(f"wire: the owners of its slots ({said}) are not this bridge's")
        if (latent.span is None) != (self.span is None):
            raise UserError(
                f"wire: {'no' if latent.span is None else 'a'} length of the text, where this "
                f"bridge sends {'one' if latent.span is None else 'none'}"
            )
        if self.span is not None and not 0 <= float(span[0]) <= self.span:
            raise UserError(
                f"wire: a text of {float(span[0]):g} source tokens, where this bridge reads 0 to "
                f"{self.span:,.0f}"
            )
        if self.most is None and self.span is not None and count > max(1.0, float(span[0])):
            raise UserError(f"wire: {count} slots for {float(span[0]):g} source tokens")
        if slots.dtype != np.int32 and np.abs(slots).max(initial=0.0) > self.largest:
            raise UserError(
                f"wire: an entry of a slot is {float(np.abs(slots).max()):.3g}, where those of "
                f"this bridge are {self.largest:g} at most"
            )
