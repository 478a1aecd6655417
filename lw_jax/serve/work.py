"""What requests have a bridge do: texts to messages, messages and questions to answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.concurrency import run_in_threadpool

from lw_jax.api.bridge import Answer, Bridge, Question
from lw_jax.serve.batching import Batcher
from lw_jax.serve.config import ServeConfig
from lw_jax.serve.given import Given, RefusedError, decoded
from lw_jax.wire.message import Message, Part


class Work:
    """A bridge within its limits.

    Attributes:
        bridge: loaded for the role.
        config: limits.
        batcher: runs what is ready.
    """

    def __init__(self, bridge: Bridge, config: ServeConfig, batcher: Batcher) -> None:
        """See the attributes."""
        self.bridge, self.config, self.batcher = bridge, config, batcher

    async def sent(self, text: str, question: str | None, given: Given) -> Message:
        """The message of a text; see `sent_all`."""
        return (await self.sent_all([text], question, given))[0]

    async def sent_all(
        self, texts: Sequence[str], question: str | None, given: Given
    ) -> list[Message]:
        """The messages of texts, in windows.

        Args:
            texts: the texts.
            question: that travels in the latent; None: none does.
            given: the request, with `codec`, `ratio` and `tokens`.

        Raises:
            RefusedError: one has too many windows, or this end encodes nothing.
            FullError: too many windows wait; none of these is run.
            TooManyError: these are more than may wait.
        """
        if self.config.role == "receiver":
            raise RefusedError(400, "this server is a receiver; texts are encoded by a sender")
        wire, most = self.bridge, self.config.parts
        tokens = given.value("tokens", int)
        if self.config.window:
            tokens = min(tokens or self.config.window, self.config.window)

        def ready(text: str) -> tuple[list[str], list[Any]]:
            cut_at: list[str] = []
            for window in wire.windows(text, question, tokens):
                if len(cut_at) == most:
                    raise RefusedError(
                        413, f"a text of more than {most} windows; give it in pieces"
                    )
                cut_at.append(window)
            codec, ratio = given.value("codec", str), given.value("ratio", float)
            return cut_at, [wire.text(w.strip(), question, codec, ratio) for w in cut_at]

        found = await run_in_threadpool(lambda: [ready(text) for text in texts])
        packets = iter(await self.batcher.send([one for _, own in found for one in own]))
        return [
            Message(tuple(Part(next(packets), len(window)) for window in windows))
            for windows, _ in found
        ]

    async def asked(
        self, messages: Sequence[str], asked: Sequence[str], given: Given
    ) -> list[Answer]:
        """Answers to questions about messages in base64, as many as the longer list has.

        Raises:
            RefusedError: the lists do not fit, a question or a message is too long, or this end
                answers nothing.
        """
        if self.config.role == "sender":
            raise RefusedError(400, "this server is a sender; a receiver answers questions")
        count = max(len(messages), len(asked))
        if {len(messages), len(asked)} - {1, count} or not messages or not asked:
            raise RefusedError(400, f"{len(messages)} messages and {len(asked)} questions")
        receiver = given.value("receiver", str)
        pairs = [(messages[i % len(messages)], asked[i % len(asked)]) for i in range(count)]
        ready = await run_in_threadpool(lambda: [self.question(m, q, receiver) for m, q in pairs])
        return await self.batcher.ask(ready)

    def split(self, asked: list[str]) -> tuple[str | None, list[str]]:
        """Of questions about a text what travels in the latent, and what the receiver is asked."""
        if self.bridge.pipeline.layout.question_in == "receiver":
            return None, asked
        if len(asked) != 1:
            raise RefusedError(400, "this bridge carries the question in the latent; ask one")
        return asked[0], [""]

    def question(self, message: str, question: str, receiver: str | None) -> Question:
        """A question about a message in base64, ready to be asked."""
        data = Message.from_bytes(decoded(message))
        if len(data) > self.config.parts:
            raise RefusedError(
                413, f"a message of {len(data)} parts; {self.config.parts} are the most"
            )
        self.check_length(question, receiver)
        return self.bridge.question(data, question, receiver)

    def check_length(self, question: str, receiver: str | None) -> None:
        """Refuses a question that is longer than what was compiled."""
        name, count = self.bridge.asked_tokens(question, receiver)
        most = self.question_limit(name)
        if count > most:
            raise RefusedError(413, f"a question of {count} tokens; {most} are the most")

    def question_limit(self, receiver: str) -> int:
        """Most tokens of a question to a receiver."""
        return self.config.question_tokens or self.bridge.longest_question(receiver)
