"""The one exception that means "your input is wrong": printed as one line, exit code 2."""

from __future__ import annotations

LONGEST = 2000
"""Characters of a line."""


class UserError(ValueError):
    """Bad input: one line that says what is wrong, where, and what would be right.

    Raised in the `__post_init__` of a config dataclass, the line begins with the field's name
    ("accumulate: 3 does not divide batch_size 32"); the parser puts the dotted path before it.

    Args:
        line: the line; line breaks become spaces, and characters that cannot be printed their
            escapes, so that it is one line whatever a file holds.
    """

    def __init__(self, line: str) -> None:
        super().__init__(one_line(line))


def one_line(text: str) -> str:
    """A text as one line of characters that can be printed, cut to `LONGEST`."""
    text = "".join(c if c.isprintable() else " " if c in "\n\r\t" else _escape(c) for c in text)
    return short(text, LONGEST)


def said(error: BaseException, most: int = 300) -> str:
    """What an error of a library says, in one short line; its type where it says nothing."""
    return short(one_line(" ".join(str(error).split()) or type(error).__name__), most)


def short(text: str, most: int) -> str:
    """A text of at most so many characters; dots where it is cut."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
