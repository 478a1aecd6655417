"""What a request asks: its values are checked one by one, and refused in a line."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from typing import Any

from lw_jax.errors import one_line, said


class RefusedError(Exception):
    """A request that is answered with a status and a reason."""

    def __init__(self, status: int, reason: str) -> None:
        """A status of HTTP, and a line."""
        super().__init__(one_line(reason))
        self.status, self.reason = status, str(self)


class Given:
    """A request's body, whose values are checked one by one."""

    def __init__(self, body: dict[str, Any], known: set[str]) -> None:
        """A body, and the keys that it may have.

        Raises:
            RefusedError: it has another one.
        """
        self.body = body
        unknown = sorted(set(body) - known)
        if unknown:
            raise RefusedError(
                400, f"{unknown[0]}: not known; known are {', '.join(sorted(known))}"
            )

    def has(self, key: str) -> bool:
        """Whether a value is given."""
        return self.body.get(key) is not None

    def value(self, key: str, kind: type) -> Any:
        """A value; None where it is not given."""
        found = self.body.get(key)
        if kind is float and isinstance(found, int) and not isinstance(found, bool):
            try:
                found = float(found)
            except OverflowError:
                raise RefusedError(400, f"{key}: too large a number") from None
        if found is None:
            return None
        if not isinstance(found, kind) or (kind is not bool and isinstance(found, bool)):
            raise RefusedError(400, f"{key}: expected {_WORDS[kind]}; got {json.dumps(found)[:60]}")
        return found

    def needed(self, key: str, kind: type) -> Any:
        """A value that has to be given."""
        found = self.value(key, kind)
        if found is None:
            raise RefusedError(400, f"{key}: missing")
        return found

    def several(
        self, one: str, many: str, kind: type, missing: Sequence[Any] | None = None
    ) -> tuple[list[Any], bool]:
        """Values under one of two keys, and whether they were a list."""
        if one != many and self.has(one) and self.has(many):
            raise RefusedError(400, f"give either {one} or {many}")
        key = many if self.has(many) else one
        found = self.body.get(key)
        if found is None:
            if missing is None:
                raise RefusedError(400, f"{one}: missing")
            return list(missing), False
        listed = found if isinstance(found, list) else [found]
        if not listed or not all(isinstance(v, kind) for v in listed):
            raise RefusedError(400, f"{key}: expected {_WORDS[kind]}, or a list of such")
        return listed, isinstance(found, list)

    def texts(self, key: str) -> list[str]:
        """Texts, of which there may be none."""
        if self.body.get(key) == []:
            return []
        return self.several(key, key, str, missing=[])[0]


_WORDS = {
    dict: "an object",
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
}


def decoded(value: str) -> bytes:
    """The bytes in base64.

    Raises:
        RefusedError: it is none.
    """
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RefusedError(400, f"message: no base64: {said(error)}") from error
