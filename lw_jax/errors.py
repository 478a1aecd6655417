"""The one exception that means "your input is wrong": printed as one line, exit code 2."""

from __future__ import annotations


class UserError(Exception):
    """Bad input: one line that says what is wrong, where, and what would be right."""
