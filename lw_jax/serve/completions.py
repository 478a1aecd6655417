"""OpenAI's completions, with a `message` beside `prompt`."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from lw_jax.api.talk import Talk, pieces
from lw_jax.errors import said
from lw_jax.serve.batching import FullError
from lw_jax.serve.given import Given, RefusedError, decoded
from lw_jax.serve.work import Work
from lw_jax.text.stop import Stop, cut
from lw_jax.text.tokenizer import Tokenizer
from lw_jax.wire.message import Message

KNOWN = {"model", "prompt", "message", "receiver", "max_tokens", "temperature", "stop"}
KNOWN |= {"stream", "stream_options", "n", "top_p", "user", "seed", "best_of", "echo", "logprobs"}
KNOWN |= {"suffix", "presence_penalty", "frequency_penalty"}


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
        if not all(stops):
            raise RefusedError(400, "stop: expected some text")
        model = given.value("model", str)
        if model is not None and model != self._name:
            raise RefusedError(404, f"model: {model!r} is not served here; {self._name} is")
        self._as_decoded(given)
        about = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": self._name,
        }
        options = given.value("stream_options", dict)
        usage_asked = Given(options or {}, {"include_usage"}).value("include_usage", bool)
        if options is not None and not given.value("stream", bool):
            raise RefusedError(400, "stream_options: of a stream; give stream: true as well")
        if given.value("stream", bool):
            if not work.config.stream:
                raise RefusedError(400, "stream: this server was started without it")
            if len(asked) > 1 or len(messages) > 1:
                raise RefusedError(400, "stream: one prompt and message")
            if work.config.role == "sender":
                raise RefusedError(
                    400, "this server is a sender; questions are answered by a receiver"
                )
            receiver = given.value("receiver", str)
            found = await run_in_threadpool(work.question, messages[0], asked[0], receiver)
            data = Message.from_bytes(decoded(messages[0]))

            def begun() -> tuple[Talk, Iterator[str]]:
                talk = work.bridge.talk(data, found.receiver, history=False)
                return talk, pieces(talk.stream(asked[0]))

            talk, said_so_far = await work.batcher.call(begun)
            cutter = _Cutter(work.bridge.pipeline.receivers[found.receiver], most, tuple(stops))
            tokens = None
            if usage_asked:
                tokens = len(cutter.tokenizer.encode(asked[0]))
            return StreamingResponse(
                self._streamed(talk, said_so_far, about, cutter, tokens),
                media_type="text/event-stream",
            )
        answers = await work.asked(messages, asked, given)
        tokenizer = work.bridge.pipeline.receivers[
            given.value("receiver", str) or next(iter(work.bridge.pipeline.receivers))
        ]
        cutter = _Cutter(tokenizer, most, tuple(stops))
        choices, written = [], 0
        for i, one in enumerate(answers):
            stopped, ended = cutter.cut(one.text)
            finish = ended or ("stop" if one.finished else "length")
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
            same = asked == value and isinstance(asked, bool) == isinstance(value, bool)
            if asked is not None and not same:
                raise RefusedError(
                    400, f"{key}: {asked!r} is not offered; this bridge has {value!r}"
                )

    async def _streamed(
        self,
        talk: Talk,
        pieces: Iterator[str],
        about: dict[str, Any],
        cutter: _Cutter,
        read: int | None,
    ) -> AsyncIterator[bytes]:
        """The pieces of an answer as server-sent events.

        read: tokens of the prompt, where the usage is asked for.
        """
        whole, sent = "", ""
        while True:
            try:
                piece = await self._work.batcher.call(lambda: next(pieces, None))
            except Exception as error:
                reason = "too many wait" if isinstance(error, FullError) else said(error)
                yield _event({"error": {"message": reason}})
                return
            whole += piece or ""
            text, finish = cutter.cut(whole)
            if piece is None:
                finish = finish or ("stop" if talk.finished else "length")
            elif finish is None:
                text = cutter.sure(text)
            new, sent = text[len(sent) :], max(sent, text, key=len)
            if not new and finish is None:
                continue
            choice = {"index": 0, "text": new, "logprobs": None, "finish_reason": finish}
            yield _event(about | {"choices": [choice]})
            if finish is not None:
                break
        if read is not None:
            written = len(cutter.tokenizer.encode(sent))
            usage = {"prompt_tokens": read, "completion_tokens": written}
            usage["total_tokens"] = read + written
            yield _event(about | {"choices": [], "usage": usage})
        yield b"data: [DONE]\n\n"


@dataclass(frozen=True)
class _Cutter:
    """Where an answer ends that is longer than was asked for.

    Attributes:
        tokenizer: the receiver's.
        most: tokens; None: any number.
        stops: strings at which it ends.
    """

    tokenizer: Tokenizer
    most: int | None
    stops: tuple[str, ...]

    def cut(self, text: str) -> tuple[str, str | None]:
        """What is left of an answer, and the reason of its end: `stop`, `length`; None: it does
        not end here."""
        ids = [] if self.most is None else self.tokenizer.encode(text)
        limited = self.most is not None and len(ids) > self.most
        left = self.tokenizer.backend.decode(ids[: self.most]) if limited else text
        stopped = cut(left, self.stops)
        return stopped, "stop" if stopped != left else "length" if limited else None

    def sure(self, text: str) -> str:
        """What of an answer stays, whatever is written after it."""
        return Stop(self.stops).sure(text)


def _event(body: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(body).encode() + b"\n\n"
