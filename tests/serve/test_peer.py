"""What a sender makes of a receiver's answers, whatever stands at its address."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from lw_jax.serve.given import RefusedError
from lw_jax.serve.peer import Peer

BODY = {"messages": ["a"], "questions": ["b", "c"]}


def peer(status: int, content: bytes) -> Peer:
    """One that always gets this answer."""
    transport = httpx.MockTransport(lambda request: httpx.Response(status, content=content))
    return Peer("http://there", 1.0, None, transport)


@pytest.mark.parametrize(
    ("status", "content", "seen", "reason"),
    [
        (200, b"[]", 502, "answered something else than answers"),
        (200, b"3", 502, "answered something else than answers"),
        (200, b"\xff", 502, "answered something else than answers"),
        (200, b"[" * 100_000, 502, "answered something else than answers"),
        (200, b"{}", 502, "answered something else than answers"),
        (200, b'{"answers": []}', 502, "answered something else than answers"),
        (200, b'{"answers": ["one"]}', 502, "answered something else than answers"),
        (500, b"[1]", 500, "no reason given"),
        (400, b'{"error": "no"}', 400, "no reason given"),
        (404, b'{"error": ["no"]}', 404, "no reason given"),
        (302, b"", 502, "no reason given (status 302)"),
        (413, b'{"error": {"message": "too long"}}', 413, "too long"),
    ],
)
def test_whatever_it_answers_is_a_reason(
    status: int, content: bytes, seen: int, reason: str
) -> None:
    with pytest.raises(RefusedError) as raised:
        asyncio.run(peer(status, content).answers(BODY))
    assert raised.value.status == seen
    assert reason in raised.value.reason


def test_answers_are_handed_on() -> None:
    assert asyncio.run(peer(200, b'{"answers": ["x", "y"]}').answers(BODY)) == ["x", "y"]


@pytest.mark.parametrize("content", [b"[]", b"3", b"null", b"\xff", b"[" * 100_000])
def test_a_status_that_is_none_is_unknown(content: bytes) -> None:
    assert asyncio.run(peer(200, content).status()) == "?"
