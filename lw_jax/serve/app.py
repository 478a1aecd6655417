"""The HTTP interface of a bridge: OpenAI's completions with a `message` beside `prompt`, and ours.

Every answer that is not 200 is `{"error": {"message", "type", "code"}}`, with the reason in a line.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import lw_jax
from lw_jax.api.bridge import Bridge
from lw_jax.errors import said
from lw_jax.serve import demo
from lw_jax.serve.batching import Batcher
from lw_jax.serve.completions import Completions
from lw_jax.serve.config import ServeConfig
from lw_jax.serve.entry import Entry
from lw_jax.serve.given import Given, RefusedError
from lw_jax.serve.metrics import Metrics
from lw_jax.serve.peer import Peer
from lw_jax.serve.replies import about, failed, in_base64, not_found
from lw_jax.serve.work import Work

OF_TEXTS = ("codec", "ratio", "tokens")
"""Keys of a request that say how its texts are encoded."""
_log = logging.getLogger("lw_jax.serve")


class Server:
    """A bridge with its limits.

    Attributes:
        app: the ASGI application.
        entry: what every request goes through.
    """

    def __init__(
        self,
        bridge: Bridge,
        config: ServeConfig,
        name: str,
        token: str | None = None,
        peer: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Nothing is compiled yet: `warm_up` does it.

        Args:
            bridge: loaded for the role.
            config: limits.
            name: of the bridge, for people and `model`.
            token: that requests have to bear; None: none.
            peer: how the other server is reached; None: over the network.
        """
        self.bridge, self.config, self.name, self.token = bridge, config, name, token
        self.metrics = Metrics()
        self.batcher = Batcher(bridge, config.rows, config.queue, self.metrics)
        self.began = time.time()
        self.entry = entry = Entry(config, self.metrics, token)
        self._work = Work(bridge, config, self.batcher)
        self._peer_transport = peer
        self._peer: Peer | None = None
        both = ["POST"]
        routes = [
            Route("/health", self._health),
            Route("/metrics", self._metrics),
            Route("/v1/models", entry(self._models)),
            Route("/encode", entry(self._encode), methods=both),
            Route("/answer", entry(self._answer), methods=both),
            Route("/v1/completions", entry(Completions(self._work, name)), methods=both),
        ]
        if config.demo:
            routes += [
                Route("/", demo.page),
                Route("/demo", entry(demo.Demo(self._work)), methods=both),
            ]
        self.app = Starlette(
            routes=routes,
            lifespan=self._life,
            exception_handlers={404: not_found, 405: not_found, 500: failed},
        )

    @property
    def state(self) -> str:
        """What it is doing: `warming up`, `ready`, `stopping`, or why it failed."""
        return self.entry.state

    def warm_up(self) -> None:
        """Compiles every program that a request can need, and says that it is ready."""
        c, wire = self.config, self.bridge
        for name in wire.pipeline.receivers or [None]:
            wire.warm_up(
                c.window or None,
                receiver=name,
                question=self._work.question_limit(name) if name else None,
                rows=c.rows,
                parts=c.parts,
                words=c.text_tokens,
                talk=c.stream,
            )
        self.metrics.ready()
        self.entry.state = "ready"

    @asynccontextmanager
    async def _life(self, app: Starlette) -> AsyncIterator[None]:
        def begin() -> None:
            try:
                self.warm_up()
            except Exception as error:
                self.entry.state = f"failed: {said(error)}"
                _log.exception("warm-up failed")
            else:
                seconds = time.time() - self.began
                _log.info("ready after %.1f s", seconds)

        threading.Thread(target=begin, name="warm-up", daemon=True).start()
        where = self.config.receiver
        if where is not None:
            self._peer = Peer(where, self.config.timeout, self.token, self._peer_transport)
        yield
        self.entry.state = "stopping"
        if self._peer is not None:
            await self._peer.close()
        await run_in_threadpool(self.batcher.close)

    async def _health(self, request: Request) -> Response:
        found: dict[str, Any] = {
            "status": self.state,
            "role": self.config.role,
            "bridge": self.bridge.mark,
            "version": lw_jax.__version__,
            "waiting": self.batcher.waiting,
            "seconds": round(time.time() - self.began, 1),
        }
        if self._peer is not None:
            found["receiver"] = {
                "address": self._peer.address,
                "status": await self._peer.status(),
            }
        return JSONResponse(found, 200 if self.state == "ready" else 503)

    async def _metrics(self, request: Request) -> Response:
        return Response(self.metrics.text(), media_type=self.metrics.content_type)

    async def _models(self, request: Request) -> Response:
        one = {"id": self.name, "object": "model", "created": int(self.began), "owned_by": "lw_jax"}
        return JSONResponse({"object": "list", "data": [one]})

    async def _encode(self, request: Request) -> Response:
        given = Given(request.state.body, {"text", "texts", "question", "codec", "ratio", "tokens"})
        texts, many = given.several("text", "texts", str)
        question = given.value("question", str)
        messages = [about(one) for one in await self._work.sent_all(texts, question, given)]
        return JSONResponse({"messages": messages} if many else messages[0])

    async def _answer(self, request: Request) -> Response:
        known = {"message", "messages", "text", "texts", "question", "questions", "receiver"}
        given = Given(request.state.body, known | set(OF_TEXTS))
        asked, several = given.several("question", "questions", str, missing=[""])
        sends = given.has("text") or given.has("texts")
        if sends and (given.has("message") or given.has("messages")):
            raise RefusedError(400, "give either a message or a text")
        if not sends and (stray := [key for key in OF_TEXTS if given.has(key)]):
            raise RefusedError(400, f"{stray[0]}: of a text; a message is encoded already")
        if sends:
            texts, many = given.several("text", "texts", str)
            inside, asked = self._work.split(asked)
            sent = await self._work.sent_all(texts, inside, given)
            messages = [in_base64(one.to_bytes()) for one in sent]
        else:
            messages, many = given.several("message", "messages", str)
        if self._peer is not None:
            body: dict[str, Any] = {"messages": messages, "questions": asked}
            receiver = given.value("receiver", str)
            body |= {"receiver": receiver} if receiver else {}
            answers = [str(one) for one in await self._peer.answers(body)]
        else:
            answers = [one.text for one in await self._work.asked(messages, asked, given)]
        return JSONResponse({"answers": answers} if many or several else {"answer": answers[0]})
