"""What every request goes through: token, state, timeout, refusals, counts."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from lw_jax.errors import UserError, said
from lw_jax.serve.batching import FullError, TooManyError
from lw_jax.serve.config import ServeConfig
from lw_jax.serve.given import RefusedError
from lw_jax.serve.metrics import Metrics
from lw_jax.serve.replies import error

Handler = Callable[[Request], Awaitable[Response]]
LEFT = 499
"""Status of a request whose other end went away; nobody is told, but it is counted."""
_log = logging.getLogger("lw_jax.serve")


class Entry:
    """Makes handlers that refuse, time and count.

    Attributes:
        config: limits.
        state: of the server; requests are let in once it is "ready".
    """

    def __init__(self, config: ServeConfig, metrics: Metrics, token: str | None) -> None:
        """Nobody is let in yet.

        Args:
            config: limits.
            metrics: where requests are counted.
            token: that requests have to bear; None: none.
        """
        self.state = "warming up"
        self.config, self._metrics, self._token = config, metrics, token

    def __call__(self, handle: Handler) -> Handler:
        """A handler with all that every request needs; the body is `request.state.body`."""

        async def entry(request: Request) -> Response:
            began, path = time.monotonic(), request.url.path
            try:
                self._allowed(request)
                response = await self._watched(request, handle)
            except RefusedError as refused:
                response = error(refused.status, refused.reason)
            except UserError as wrong:
                response = error(400, str(wrong))
            except FullError:
                response = error(429, f"{self.config.queue} texts and questions wait; try later")
                response.headers["Retry-After"] = "1"
            except TooManyError as much:
                response = error(413, str(much))
            except TimeoutError:
                response = error(504, f"not answered within {self.config.timeout:g} s")
            except ClientDisconnect:
                self._metrics.left.inc()
                _log.warning("%s: the other end went away before it was answered", path)
                response = Response(status_code=LEFT)
            except Exception as raised:
                _log.exception("%s failed", path)
                response = error(500, said(raised))
            self._metrics.requests.labels(path, response.status_code).inc()
            self._metrics.seconds.labels(path).observe(time.monotonic() - began)
            return response

        return entry

    def _allowed(self, request: Request) -> None:
        if self._token is not None:
            given = request.headers.get("authorization", "")
            if not hmac.compare_digest(given.encode(), f"Bearer {self._token}".encode()):
                raise RefusedError(401, "a bearer token is asked for: Authorization: Bearer TOKEN")
        if self.state != "ready":
            raise RefusedError(503, f"the server is {self.state}")

    async def _watched(self, request: Request, handle: Handler) -> Response:
        """The answer, unless it takes too long or the other end goes away."""
        async with asyncio.timeout(self.config.timeout):
            request.state.body = await self._body(request)
        work = asyncio.ensure_future(handle(request))
        gone = asyncio.ensure_future(_gone(request))
        try:
            await asyncio.wait(
                {work, gone},
                timeout=self.config.timeout,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if work.done():
                return work.result()
            raise ClientDisconnect if gone.done() else TimeoutError
        finally:
            for task in (work, gone):
                task.cancel()

    async def _body(self, request: Request) -> dict[str, Any]:
        if request.method == "GET":
            return {}
        most, held = self.config.most_bytes, bytearray()
        async for chunk in request.stream():
            held += chunk
            if len(held) > most:
                raise RefusedError(413, f"the body has more than {most:,} bytes")
        try:
            found = json.loads(held)
        except (ValueError, RecursionError) as wrong:
            raise RefusedError(400, f"the body is no JSON: {said(wrong)}") from wrong
        if not isinstance(found, dict):
            raise RefusedError(400, "the body: expected a JSON object")
        return found


async def _gone(request: Request) -> None:
    """Returns once the other end has gone away."""
    with suppress(RuntimeError):
        while (await request.receive())["type"] != "http.disconnect":
            pass
