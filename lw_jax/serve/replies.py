"""Answers that are not a handler's own: refusals, and what is said of a message."""

from __future__ import annotations

import base64
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from lw_jax.errors import said
from lw_jax.wire.message import Message

_KINDS = {400: "invalid_request_error", 401: "authentication_error", 413: "too_large"}


def error(status: int, reason: str) -> Response:
    """A refusal in OpenAI's form, with the reason in a line."""
    kind = _KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error")
    body = {"message": reason, "type": kind, "code": status}
    return JSONResponse({"error": body}, status)


async def not_found(request: Request, raised: Exception) -> Response:
    """The answer where no route leads."""
    status = getattr(raised, "status_code", 404)
    allowed = (getattr(raised, "headers", None) or {}).get("Allow", "")
    why = f"use {allowed}" if allowed else "there is no such thing here"
    found = error(status, f"{request.method} {request.url.path}: {why}")
    if allowed:
        found.headers["Allow"] = allowed
    return found


async def failed(request: Request, raised: Exception) -> Response:
    """The answer to what nobody has caught."""
    return error(500, said(raised))


def in_base64(data: bytes) -> str:
    """Bytes as requests hold them."""
    return base64.b64encode(data).decode()


def about(message: Message) -> dict[str, Any]:
    """A message in base64, and its figures."""
    data = message.to_bytes()
    return {
        "message": in_base64(data),
        "bytes": len(data),
        "parts": len(message),
        "slots": message.slots,
        "width": message.width,
        "codec": message.codec,
        "bridge": message.bridge,
        "tokens": message.tokens,
        "characters": message.characters,
    }
