"""The one exception that means "your input is wrong": printed as one line, exit code 2."""

from __future__ import annotations


class UserError(ValueError):
    """Bad input: one line that says what is wrong, where, and what would be right.

    Raised in the `__post_init__` of a config dataclass, the line begins with the field's name
    ("accumulate: 3 does not divide batch_size 32"); the parser puts the dotted path before it.
    """
