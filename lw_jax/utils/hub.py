"""The Hugging Face hub is asked once for each thing; what failed is not asked again.

Without a network one question takes a minute until it fails, and a run asks for the same models and
data sets in every stage.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from lw_jax.errors import UserError

T = TypeVar("T")


class HubUnreachableError(UserError):
    """The hub could not be reached; what is asked next is looked for in the local cache alone."""


_given: dict[str, Any] = {}
_refused: dict[str, UserError] = {}


def ask_once(what: str, ask: Callable[[bool], T]) -> T:
    """What the hub gives, from memory if this process has asked for it before.

    Args:
        what: names all that the answer depends on (kind, name, revision, files).
        ask: asks the hub, or only the local cache if its argument is True. It raises UserError for
            what does not exist, and `HubUnreachableError` where there is no connection.

    Raises:
        UserError: what `ask` raised, now or before.
    """
    if what in _given:
        return _given[what]
    if what in _refused:
        raise _refused[what]
    offline = any(isinstance(error, HubUnreachableError) for error in _refused.values())
    try:
        _given[what] = found = ask(offline)
    except UserError as error:
        _refused[what] = error
        raise
    return found


def forget() -> None:
    """Forgets all answers, as a new process has them."""
    _given.clear()
    _refused.clear()
