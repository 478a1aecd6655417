"""The HTTP interface of a bridge: OpenAI's completions with a `message` beside `prompt`, and ours.

Every answer that is not 200 is `{"error": {"message", "type", "code"}}`, with the reason in a line.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import logging
import math
import threading
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

import lw_jax
from lw_jax.api.bridge import Answer, Bridge, Question
from lw_jax.api.shapes import TEXT_RUNG, rung
from lw_jax.errors import UserError, said
from lw_jax.serve.batching import Batcher, FullError
from lw_jax.serve.config import ServeConfig
from lw_jax.serve.given import Given, RefusedError, decoded
from lw_jax.serve.metrics import Metrics
from lw_jax.text.stop import cut
from lw_jax.wire.message import Message, Part

PAGE = Path(__file__).with_name("page.html")
LEFT = 499
"""Status of a request whose other end went away; nobody is told, but it is counted."""
_KINDS = {400: "invalid_request_error", 401: "authentication_error", 413: "too_large"}
_log = logging.getLogger("lw_jax.serve")


class Server:
    """A bridge with its limits; `app` is the ASGI application."""

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
        self.state, self.began = "warming up", time.time()
        self._peer_transport = peer
        self._peer: httpx.AsyncClient | None = None
        self._peer_up: bool | None = None
        both = ["POST"]
        routes = [
            Route("/health", self._health),
            Route("/metrics", self._metrics),
            Route("/v1/models", self._entry(self._models)),
            Route("/encode", self._entry(self._encode), methods=both),
            Route("/answer", self._entry(self._answer), methods=both),
            Route("/v1/completions", self._entry(self._completions), methods=both),
        ]
        if config.demo:
            routes += [
                Route("/", lambda _: FileResponse(PAGE, media_type="text/html")),
                Route("/demo", self._entry(self._demo), methods=both),
            ]
        self.app = Starlette(
            routes=routes,
            lifespan=self._life,
            exception_handlers={404: _not_found, 405: _not_found, 500: _failed},
        )

    # Life

    def warm_up(self) -> None:
        """Compiles every program that a request can need, and says that it is ready."""
        c, wire = self.config, self.bridge
        for name in wire.pipeline.receivers or [None]:
            wire.warm_up(
                c.window or None,
                receiver=name,
                question=self._question_limit(name) if name else None,
                rows=c.rows,
                parts=c.parts,
                words=c.text_tokens,
                talk=c.stream,
            )
        self.metrics.ready()
        self.state = "ready"

    @asynccontextmanager
    async def _life(self, app: Starlette) -> AsyncIterator[None]:
        def begin() -> None:
            try:
                self.warm_up()
            except Exception as error:
                self.state = f"failed: {said(error)}"
                _log.exception("warm-up failed")
            else:
                seconds = time.time() - self.began
                _log.info("ready after %.1f s", seconds)

        threading.Thread(target=begin, name="warm-up", daemon=True).start()
        if self.config.receiver is not None:
            self._peer = httpx.AsyncClient(
                base_url=self.config.receiver,
                timeout=self.config.timeout,
                transport=self._peer_transport,
            )
        yield
        self.state = "stopping"
        if self._peer is not None:
            await self._peer.aclose()
        await run_in_threadpool(self.batcher.close)

    def _entry(self, handle: Callable[[Request], Awaitable[Response]]) -> Any:
        """A handler with all that every request needs: token, state, timeout, refusals, counts."""

        async def entry(request: Request) -> Response:
            began, path = time.monotonic(), request.url.path
            try:
                self._allowed(request)
                response = await self._watched(request, handle)
            except RefusedError as error:
                response = _error(error.status, error.reason)
            except UserError as error:
                response = _error(400, str(error))
            except FullError:
                response = _error(429, f"{self.config.queue} texts and questions wait; try later")
                response.headers["Retry-After"] = "1"
            except TimeoutError:
                response = _error(504, f"not answered within {self.config.timeout:g} s")
            except ClientDisconnect:
                self.metrics.left.inc()
                _log.warning("%s: the other end went away before it was answered", path)
                response = Response(status_code=LEFT)
            except Exception as error:
                _log.exception("%s failed", path)
                response = _error(500, said(error))
            self.metrics.requests.labels(path, response.status_code).inc()
            self.metrics.seconds.labels(path).observe(time.monotonic() - began)
            return response

        return entry

    def _allowed(self, request: Request) -> None:
        if self.token is not None:
            given = request.headers.get("authorization", "")
            if not hmac.compare_digest(given.encode(), f"Bearer {self.token}".encode()):
                raise RefusedError(401, "a bearer token is asked for: Authorization: Bearer TOKEN")
        if self.state != "ready":
            raise RefusedError(503, f"the server is {self.state}")

    async def _watched(
        self, request: Request, handle: Callable[[Request], Awaitable[Response]]
    ) -> Response:
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
        except (ValueError, RecursionError) as error:
            raise RefusedError(400, f"the body is no JSON: {said(error)}") from error
        if not isinstance(found, dict):
            raise RefusedError(400, "the body: expected a JSON object")
        return found

    # Requests

    async def _health(self, request: Request) -> Response:
        about: dict[str, Any] = {
            "status": self.state,
            "role": self.config.role,
            "bridge": self.bridge.mark,
            "version": lw_jax.__version__,
            "waiting": self.batcher.waiting,
            "seconds": round(time.time() - self.began, 1),
        }
        if self._peer is not None:
            about["receiver"] = {"address": self.config.receiver, "status": await self._probed()}
        return JSONResponse(about, 200 if self.state == "ready" else 503)

    async def _metrics(self, request: Request) -> Response:
        return Response(self.metrics.text(), media_type=self.metrics.content_type)

    async def _models(self, request: Request) -> Response:
        one = {"id": self.name, "object": "model", "created": int(self.began), "owned_by": "lw_jax"}
        return JSONResponse({"object": "list", "data": [one]})

    async def _encode(self, request: Request) -> Response:
        given = Given(request.state.body, {"text", "texts", "question", "codec", "ratio", "tokens"})
        texts, many = given.several("text", "texts", str)
        question = given.value("question", str)
        messages = await asyncio.gather(*(self._sent(text, question, given) for text in texts))
        about = [_about(message) for message in messages]
        return JSONResponse({"messages": about} if many else about[0])

    async def _sent(self, text: str, question: str | None, given: Given) -> Message:
        if self.config.role == "receiver":
            raise RefusedError(400, "this server is a receiver; texts are encoded by a sender")
        wire, most = self.bridge, self.config.parts
        tokens = given.value("tokens", int)
        if self.config.window:
            tokens = min(tokens or self.config.window, self.config.window)

        def ready() -> tuple[list[str], list[Any]]:
            cut_at: list[str] = []
            for window in wire.windows(text, question, tokens):
                if len(cut_at) == most:
                    raise RefusedError(
                        413, f"a text of more than {most} windows; give it in pieces"
                    )
                cut_at.append(window)
            codec, ratio = given.value("codec", str), given.value("ratio", float)
            return cut_at, [wire.text(w.strip(), question, codec, ratio) for w in cut_at]

        windows, texts = await run_in_threadpool(ready)
        packets = await self.batcher.send(texts)
        parts = zip(windows, packets, strict=True)
        return Message(tuple(Part(data, len(window)) for window, data in parts))

    async def _answer(self, request: Request) -> Response:
        known = {"message", "messages", "text", "texts", "question", "questions", "receiver"}
        given = Given(request.state.body, known | {"codec", "ratio", "tokens"})
        asked, several = given.several("question", "questions", str, missing=[""])
        if given.has("text") or given.has("texts"):
            texts, many = given.several("text", "texts", str)
            inside, asked = self._split(asked)
            sent = await asyncio.gather(*(self._sent(text, inside, given) for text in texts))
            messages = [base64.b64encode(one.to_bytes()).decode() for one in sent]
        else:
            messages, many = given.several("message", "messages", str)
        if self._peer is not None:
            body: dict[str, Any] = {"messages": messages, "questions": asked}
            receiver = given.value("receiver", str)
            said_there = await self._handed_on(body | ({"receiver": receiver} if receiver else {}))
            answers = [str(one) for one in said_there]
        else:
            answers = [one.text for one in await self._asked(messages, asked, given)]
        return JSONResponse({"answers": answers} if many or several else {"answer": answers[0]})

    async def _asked(
        self, messages: Sequence[str], asked: Sequence[str], given: Given
    ) -> list[Answer]:
        """Answers to questions about messages in base64, as many as the longer list has."""
        self._is_receiver()
        count = max(len(messages), len(asked))
        if {len(messages), len(asked)} - {1, count} or not messages or not asked:
            raise RefusedError(400, f"{len(messages)} messages and {len(asked)} questions")
        receiver = given.value("receiver", str)
        pairs = [(messages[i % len(messages)], asked[i % len(asked)]) for i in range(count)]
        ready = await run_in_threadpool(lambda: [self._question(m, q, receiver) for m, q in pairs])
        return await self.batcher.ask(ready)

    def _split(self, asked: list[str]) -> tuple[str | None, list[str]]:
        """Of questions about a text what travels in the latent, and what the receiver is asked."""
        if self.bridge.pipeline.layout.question_in == "receiver":
            return None, asked
        if len(asked) != 1:
            raise RefusedError(400, "this bridge carries the question in the latent; ask one")
        return asked[0], [""]

    def _is_receiver(self) -> None:
        if self.config.role == "sender":
            raise RefusedError(400, "this server is a sender; a receiver answers questions")

    def _question(self, message: str, question: str, receiver: str | None) -> Question:
        data = Message.from_bytes(decoded(message))
        if len(data) > self.config.parts:
            raise RefusedError(
                413, f"a message of {len(data)} parts; {self.config.parts} are the most"
            )
        self._short(question, receiver)
        return self.bridge.question(data, question, receiver)

    def _short(self, question: str, receiver: str | None) -> None:
        """Refuses a question that is longer than what was compiled."""
        name, count = self.bridge.asked_tokens(question, receiver)
        most = self._question_limit(name)
        if count > most:
            raise RefusedError(413, f"a question of {count} tokens; {most} are the most")

    def _question_limit(self, receiver: str) -> int:
        return self.config.question_tokens or self.bridge.longest_question(receiver)

    async def _completions(self, request: Request) -> Response:
        known = {"model", "prompt", "message", "receiver", "max_tokens", "temperature", "stop"}
        known |= {"stream", "n", "top_p", "user", "seed", "best_of", "echo", "logprobs", "suffix"}
        known |= {"presence_penalty", "frequency_penalty"}
        given = Given(request.state.body, known)
        asked, _ = given.several("prompt", "prompt", str, missing=[""])
        messages, _ = given.several("message", "message", str)
        most, stops = given.value("max_tokens", int), given.texts("stop")
        if most is not None and most < 1:
            raise RefusedError(400, "max_tokens: expected 1 or more")
        self._as_decoded(given)
        about = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": self.name,
        }
        if given.value("stream", bool):
            if not self.config.stream:
                raise RefusedError(400, "stream: this server was started without it")
            if len(asked) > 1 or len(messages) > 1 or most is not None or stops:
                raise RefusedError(
                    400, "stream: one prompt and message, without max_tokens and stop"
                )
            if self.config.role == "sender":
                raise RefusedError(
                    400, "this server is a sender; questions are answered by a receiver"
                )
            receiver = given.value("receiver", str)
            found = await run_in_threadpool(self._question, messages[0], asked[0], receiver)
            data = Message.from_bytes(decoded(messages[0]))
            pieces = await self.batcher.call(
                lambda: self.bridge.answer_stream(data, asked[0], found.receiver)
            )
            return StreamingResponse(self._streamed(pieces, about), media_type="text/event-stream")
        answers = await self._asked(messages, asked, given)
        tokenizer = self.bridge.pipeline.receivers[
            given.value("receiver", str) or next(iter(self.bridge.pipeline.receivers))
        ]
        choices, written = [], 0
        for i, one in enumerate(answers):
            ids = tokenizer.encode(one.text)
            limited = most is not None and len(ids) > most
            text = tokenizer.backend.decode(ids[:most]) if limited else one.text
            stopped = cut(text, stops)
            finish = "stop" if stopped != text or (one.finished and not limited) else "length"
            written += min(one.tokens, most or one.tokens)
            choices.append({"index": i, "text": stopped, "finish_reason": finish, "logprobs": None})
        read = sum(len(tokenizer.encode(q)) for q in asked)
        usage = {
            "prompt_tokens": read,
            "completion_tokens": written,
            "total_tokens": read + written,
        }
        return JSONResponse(about | {"choices": choices, "usage": usage})

    def _as_decoded(self, given: Given) -> None:
        """Refuses what asks for another decoding than the bridge's own."""
        own: dict[str, Any] = {
            "temperature": self.bridge.decode.temperature,
            "top_p": self.bridge.decode.top_p,
        }
        own |= {"n": 1, "best_of": 1, "echo": False, "logprobs": None, "suffix": None}
        own |= {"presence_penalty": 0, "frequency_penalty": 0}
        for key, value in own.items():
            asked = given.body.get(key, value)
            if asked is not None and asked != value:
                raise RefusedError(
                    400, f"{key}: {asked!r} is not offered; this bridge has {value!r}"
                )

    async def _streamed(self, pieces: Iterator[str], about: dict[str, Any]) -> AsyncIterator[bytes]:
        """The pieces of an answer as server-sent events."""
        while True:
            try:
                piece = await self.batcher.call(lambda: next(pieces, None))
            except Exception as error:
                reason = "too many wait" if isinstance(error, FullError) else said(error)
                yield b"data: " + json.dumps({"error": {"message": reason}}).encode() + b"\n\n"
                return
            choice = {"index": 0, "text": piece or "", "logprobs": None}
            choice["finish_reason"] = None if piece is not None else "stop"
            yield b"data: " + json.dumps(about | {"choices": [choice]}).encode() + b"\n\n"
            if piece is None:
                yield b"data: [DONE]\n\n"
                return

    async def _demo(self, request: Request) -> Response:
        """All that the demo page shows of a text and a question."""
        given = Given(request.state.body, {"text", "question", "ratio", "receiver"})
        ((text,), _), ((question,), _) = (
            given.several("text", "text", str),
            given.several("question", "question", str, missing=[""]),
        )
        wire, receiver = self.bridge, given.value("receiver", str)
        inside, (asked,) = self._split([question])
        message = await self._sent(text, inside, given)
        about = _about(message)
        if not question.strip():
            return JSONResponse(about)

        def ready() -> tuple[list[Question], list[int]]:
            self._short(asked, receiver)
            latent = wire.question(message, asked, receiver)
            whole = wire.question_on_text(text, asked, receiver)
            most = self.config.text_tokens
            if len(whole.words) > rung(TEXT_RUNG, most, None):
                raise RefusedError(413, f"a text of {len(whole.words)} tokens; {most} are the most")
            columns = min(message.slots, len(whole.words))
            short = wire.question_on_text(text, asked, receiver, tokens=columns)
            return [latent, whole, short], [message.slots, len(whole.words), columns]

        questions, columns = await run_in_threadpool(ready)
        answers = await self.batcher.ask(questions)
        rows = {
            name: {"answer": one.text, "columns": n, "probability": math.exp(one.logprob)}
            for name, one, n in zip(("latent", "text", "cut"), answers, columns, strict=True)
        }
        tokenizer = wire.pipeline.receivers[questions[0].receiver]
        rows["cut"]["kept"] = tokenizer.backend.decode(list(questions[2].words))
        return JSONResponse(about | {"rows": rows})

    # The other server

    async def _handed_on(self, body: dict[str, Any]) -> list[Any]:
        assert self._peer is not None
        where = self.config.receiver
        headers = {} if self.token is None else {"Authorization": f"Bearer {self.token}"}
        try:
            response = await self._peer.post("/answer", json=body, headers=headers)
        except httpx.HTTPError as error:
            self._now(False)
            reason = f"the receiver at {where} does not answer: {said(error)}"
            raise RefusedError(502, reason) from error
        self._now(True)
        try:
            found = response.json()
        except ValueError:
            found = {}
        if response.status_code != 200:
            reason = found.get("error", {}).get("message", "no reason given")
            raise RefusedError(response.status_code, f"the receiver at {where}: {reason}")
        answers = found.get("answers")
        if not isinstance(answers, list):
            raise RefusedError(502, f"the receiver at {where} answered something else than answers")
        return answers

    async def _probed(self) -> str:
        assert self._peer is not None
        try:
            response = await self._peer.get("/health", timeout=1.0)
            status = str(response.json().get("status", "?"))
        except (httpx.HTTPError, ValueError) as error:
            self._now(False)
            return f"does not answer: {said(error)}"
        self._now(True)
        return status

    def _now(self, up: bool) -> None:
        """Says once when the other server goes away, and when it is back."""
        if up != (self._peer_up is not False):
            _log.warning("the receiver at %s %s", self.config.receiver, _UP[up])
        self._peer_up = up


_UP = {True: "is back", False: "does not answer"}


def _about(message: Message) -> dict[str, Any]:
    data = message.to_bytes()
    return {
        "message": base64.b64encode(data).decode(),
        "bytes": len(data),
        "parts": len(message),
        "slots": message.slots,
        "width": message.width,
        "codec": message.codec,
        "bridge": message.bridge,
        "tokens": message.tokens,
        "characters": message.characters,
    }


def _error(status: int, reason: str) -> Response:
    kind = _KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error")
    body = {"message": reason, "type": kind, "code": status}
    return JSONResponse({"error": body}, status)


async def _gone(request: Request) -> None:
    """Returns once the other end has gone away."""
    with suppress(RuntimeError):
        while (await request.receive())["type"] != "http.disconnect":
            pass


async def _not_found(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    return _error(status, f"{request.method} {request.url.path}: there is no such thing here")


async def _failed(request: Request, error: Exception) -> Response:
    return _error(500, said(error))
