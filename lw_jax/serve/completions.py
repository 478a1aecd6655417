"""OpenAI's completions, with a `message` beside `prompt`."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from lw_jax.errors import said
from lw_jax.serve.batching import FullError
from lw_jax.serve.given import Given, RefusedError, decoded
from lw_jax.serve.work import Work
from lw_jax.text.stop import cut
from lw_jax.wire.message import Message

KNOWN = {"model", "prompt", "message", "receiver", "max_tokens", "temperature", "stop"}
KNOWN |= {"stream", "n", "top_p", "user", "seed", "best_of", "echo", "logprobs", "suffix"}
KNOWN |= {"presence_penalty", "frequency_penalty"}


class Completions:
    """The handler of `/v1/completions`."""

    def __init__(self, work: Work, name: str) -> None:
        """What it has done, and the name of the bridge as `model`."""
        self._work, self._name = work, name

    async def __call__(self, request: Request) -> Response:
        """Answers, whole or in pieces."""
        work, given = self._work, Given(request.state.body, KNOWN)
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
            "model": self._name,
        }
        if given.value("stream", bool):
            if not work.config.stream:
                raise RefusedError(400, "stream: this server was started without it")
            if len(asked) > 1 or len(messages) > 1 or most is not None or stops:
                raise RefusedError(
                    400, "stream: one prompt and message, without max_tokens and stop"
                )
            if work.config.role == "sender":
                raise RefusedError(
                    400, "this server is a sender; questions are answered by a receiver"
                )
            receiver = given.value("receiver", str)
            found = await run_in_threadpool(work.question, messages[0], asked[0], receiver)
            data = Message.from_bytes(decoded(messages[0]))
            pieces = await work.batcher.call(
                lambda: work.bridge.answer_stream(data, asked[0], found.receiver)
            )
            return StreamingResponse(self._streamed(pieces, about), media_type="text/event-stream")
        answers = await work.asked(messages, asked, given)
        tokenizer = work.bridge.pipeline.receivers[
            given.value("receiver", str) or next(iter(work.bridge.pipeline.receivers))
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
        decode = self._work.bridge.decode
        own: dict[str, Any] = {"temperature": decode.temperature, "top_p": decode.top_p}
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
                piece = await self._work.batcher.call(lambda: next(pieces, None))
            except Exception as error:
                reason = "too many wait" if isinstance(error, FullError) else said(error)
                yield _event({"error": {"message": reason}})
                return
            choice = {"index": 0, "text": piece or "", "logprobs": None}
            choice["finish_reason"] = None if piece is not None else "stop"
            yield _event(about | {"choices": [choice]})
            if piece is None:
                yield b"data: [DONE]\n\n"
                return


def _event(body: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(body).encode() + b"\n\n"
