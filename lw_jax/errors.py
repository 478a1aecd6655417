"""The exceptions that the launcher turns into one line: bad input, and an orderly stop."""

from __future__ import annotations


class UserError(ValueError):
    """Bad input: one line that says what is wrong, where, and what would be right. Exit code 2.

    Raised in the `__post_init__` of a config dataclass, the line begins with the field's name
    ("accumulate: 3 does not divide batch_size 32"); the parser puts the dotted path before it.
    """


class Stopped(Exception):
    """A stage was asked to stop (SIGTERM) and has saved its state. Exit code 0."""
