"""A conversation about messages, of which a receiver keeps what it has read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from lw_jax.api.deliveries import deliver, filled
from lw_jax.api.shapes import PARTS_RUNG, SLOTS_RUNG, TEXT_RUNG, rung
from lw_jax.errors import UserError
from lw_jax.evaluate.methods.base import EvalContext
from lw_jax.models.generate import DecodeOptions
from lw_jax.receiver import talk as engine
from lw_jax.receiver.answer import before
from lw_jax.receiver.talk import Heard
from lw_jax.text.stop import Stop
from lw_jax.text.tokenizer import Tokenizer
from lw_jax.types import Latent

ROOM_RUNG = 128
"""Tokens that keys and values are kept for at first; each next room is twice as large."""


_Begun = tuple[Heard | None, tuple[int, ...]]
"""What was heard, and what of the last answer is still to be read."""


class Talk:
    """Questions about messages that the receiver reads once. Make one with `Bridge.talk`.

        >>> talk = wire.talk(sent, history=False)
        >>> talk.ask("How many cats does Ben Korim keep?")
        '31'

    Attributes:
        history: whether questions and answers stay in the receiver's sequence.
        turns: questions and answers so far.
        finished: whether the last answer ended; if not, it ran into `decode.max_new_tokens`.
    """

    def __init__(
        self,
        ctx: EvalContext,
        tokenizer: Tokenizer,
        stop: Stop,
        options: DecodeOptions,
        latents: Callable[[Any], tuple[Latent, ...]],
        ids: Callable[[str], Sequence[int]],
        history: bool,
    ) -> None:
        """Nothing is read yet: `add` gives the first message.

        Args:
            ctx: the bridge, and the receiver.
            tokenizer: the receiver's.
            stop: where answers stop.
            options: how they are decoded.
            latents: reads what is given as a message.
            ids: question and anchor in the receiver's tokens.
            history: whether turns stay.
        """
        self.history = history
        self.turns: list[tuple[str, str]] = []
        self.finished = True
        self._ctx, self._tokenizer, self._stop, self._options = ctx, tokenizer, stop, options
        self._latents, self._ids = latents, ids
        self._heard: Heard | None = None
        self._used = 0
        self._pending: tuple[int, ...] = ()

    def add(self, data: Any) -> None:
        """Has the receiver read another message, after all that it has read.

        Args:
            data: a packet, or a message of several.

        Raises:
            UserError: it is no message of this bridge, or too long.
        """
        latents, limits = self._latents(data), self._ctx.bridge.limits
        slots = max(one.mask.shape[1] for one in latents)
        if limits.fewest != limits.most:
            slots = rung(SLOTS_RUNG, slots, limits.most)
        parts = rung(PARTS_RUNG, len(latents), None)
        message = deliver(self._ctx, filled([latents], parts, slots), parts)
        size = message.segment.size
        model, prompt = self._ctx.model, self._ctx.prompt
        if self._heard is None:
            head = sum(part.size for part in before(prompt, message)) - size
            room = self._room(head + size, "the message")
            heard = engine.begin(model, prompt, message, room)
        else:
            room = self._room(self._used + len(self._pending) + size, "the message")
            heard = engine.hear(model, self._read(self._heard, room), message)
        self._keep(heard)

    def ask(self, question: str = "") -> str:
        """The answer to a question.

        Args:
            question: as in `Bridge.answer`.

        Raises:
            UserError: it is no text, or there is no room for it and its answer.
        """
        text = ""
        for text in self.stream(question):  # noqa: B007  # the last is the whole answer
            pass
        return text

    def stream(self, question: str = "") -> Iterator[str]:
        """The answer as far as it is written, after every token; the last one is the whole answer.

        The turn counts once it is written to its end.

        Args:
            question: as in `Bridge.answer`.

        Raises:
            UserError: it is no text, or there is no room for it and its answer; or, while it is
                written, another turn has come between.
        """
        assert self._heard is not None
        ids = [*self._pending, *self._ids(question)]
        size = rung(TEXT_RUNG, len(ids), None)
        room = self._room(self._used + size + self._options.max_new, "the question")
        return self._written(question, ids, size, room, (self._heard, self._pending))

    def _written(
        self, question: str, ids: list[int], size: int, room: int, begun: _Begun
    ) -> Iterator[str]:
        """The answer, if nothing else is heard meanwhile: a stream begins at its first `next`.

        begun: what was heard when the question was asked.
        """
        self._alone(begun)
        assert self._heard is not None
        model, options = self._ctx.model, self._options
        heard = engine.roomier(self._heard, room)
        row = np.zeros((1, size), np.int32)
        row[0, : len(ids)] = ids
        lengths = np.array([len(ids)], np.int32)
        said = engine.ask(model, heard, row, lengths, options, jax.random.key(0))
        text = ""
        while True:
            out = said.writing.out
            step, tokens, n, stopped, ended = jax.device_get(
                (said.writing.step, out.ids[0], out.lengths[0], out.stopped[0], out.ended[0])
            )
            text = self._stop.text(self._tokenizer, tokens.tolist(), int(n), bool(stopped))
            if ended or step == options.max_new:
                break
            yield self._stop.sure(text)
            self._alone(begun)
            said = engine.write(model, heard, said, options, step + 1)
        if self.history:
            self._pending = () if ended else (int(tokens[int(n) - 1]),)
            self._keep(engine.remembered(heard, said))
        self.turns.append((question, text))
        self.finished = bool(ended)
        yield text

    def _alone(self, begun: _Begun) -> None:
        """Checks that nothing was heard since a question was asked, which its answer would lose.

        Raises:
            UserError: something was.
        """
        if self._heard is not begun[0] or self._pending != begun[1]:
            raise UserError(
                "talk: a message or another question came before this answer was written to its "
                "end; read one answer before you ask or add the next"
            )

    def _keep(self, heard: Heard) -> None:
        self._heard, self._used = heard, int(jax.device_get(heard.cache.lengths)[0])

    def _read(self, heard: Heard, room: int) -> Heard:
        """The same once it has read what is pending, which ends with the last answer."""
        heard = engine.roomier(heard, room)
        if not self._pending:
            return heard
        ids = np.array([self._pending], np.int32)
        lengths = np.array([len(self._pending)], np.int32)
        model, options = self._ctx.model, self._options
        said = engine.ask(model, heard, ids, lengths, options, jax.random.key(0))
        self._pending = ()
        return Heard(said.writing.cache, said.ends_at[:, 0] + 1, heard.inputs)

    def _room(self, tokens: int, what: str) -> int:
        """Room for so many tokens."""
        most = self._ctx.model.arch.max_positions
        begun = 0.0 if self._heard is None else float(jax.device_get(self._heard.position)[0])
        if max(tokens, begun + tokens - self._used) > most:
            raise UserError(
                f"talk: no room for {what}: {self._ctx.receiver} has {most} positions, and "
                f"{tokens} would be taken; begin a new one"
            )
        return rung(ROOM_RUNG, tokens, None)


def pieces(texts: Iterable[str]) -> Iterator[str]:
    """What each text adds to what was said before it.

    The end of a text can still change, where a character has more bytes or white space may end the
    answer; so only what the next text begins with as well is said.

    Args:
        texts: an answer as far as it is written, again and again; the last one is whole.
    """
    said, before = "", ""
    for text in texts:
        common = _common(before, text)
        if len(common) > len(said):
            yield common[len(said) :]
            said = common
        before = text
    if len(before) > len(said):
        yield before[len(said) :]


def _common(a: str, b: str) -> str:
    same = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        same += 1
    return b[:same]
