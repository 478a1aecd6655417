"""The receiving end: packets and questions to answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, overload

import jax
import numpy as np

from lw_jax.api.deliveries import deliver, filled, in_words
from lw_jax.api.loaded import Loaded
from lw_jax.api.shapes import PARTS_RUNG, SLOTS_RUNG, TEXT_RUNG, batches, rung, rung_of
from lw_jax.api.talk import Talk, pieces
from lw_jax.data.example import Example
from lw_jax.errors import UserError
from lw_jax.evaluate import packets
from lw_jax.evaluate.methods.base import EvalContext
from lw_jax.evaluate.predict import options_of
from lw_jax.models.generate import DecodeOptions
from lw_jax.receiver import answer
from lw_jax.receiver.answer import Message as ReceiverMessage
from lw_jax.receiver.pack import segment
from lw_jax.text.layout import asked_ids, message_ids, message_text, split_joint
from lw_jax.text.stop import Stop, stop_of
from lw_jax.types import Latent
from lw_jax.utils import arguments
from lw_jax.utils.registry import chosen
from lw_jax.wire import packet
from lw_jax.wire.message import Message


class Question(NamedTuple):
    """A question that is checked and ready to be asked.

    Attributes:
        receiver: who is asked.
        ids: question and anchor in its tokens.
        latents: the parts of the message; () where a text stands in its place.
        words: that text in the receiver's tokens.
        size: what it is padded to.
    """

    receiver: str
    ids: tuple[int, ...]
    latents: tuple[Latent, ...]
    words: tuple[int, ...]
    size: dict[str, int]


class Answer(NamedTuple):
    """What a receiver said.

    Attributes:
        text: the answer.
        tokens: that it wrote, without the one that ended it.
        finished: whether it ended; if not, it ran into `decode.max_new_tokens`.
        logprob: natural logarithm of the probability of all it wrote, the end included.
    """

    text: str
    tokens: int
    finished: bool
    logprob: float


class Score(NamedTuple):
    """How probable a receiver finds an answer.

    Attributes:
        logprob: natural logarithm of its probability, its end included.
        tokens: of the answer, its end included.
    """

    logprob: float
    tokens: int


class Answering(Loaded):
    """What a bridge does with packets."""

    def admit(self, latent: Latent) -> None:
        """Checks what a packet says (slots, or codes in their place) at the gate, if there is one.

        Raises:
            UserError: the gate refuses it.
        """
        if self.gate is None:
            return
        bridge = self.pipeline.bridge
        held = bridge.from_wire(self.trained.params, latent) if bridge.levels else latent
        self.gate.check(held)

    # A str is a Sequence[str] too, so the first of two overloads has to win.

    @overload
    def answer(  # type: ignore[overload-overlap]
        self, data: bytes | Message, question: str = "", receiver: str | None = None
    ) -> str: ...

    @overload
    def answer(
        self,
        data: bytes | Message | Sequence[bytes | Message],
        question: str | Sequence[str] = "",
        receiver: str | None = None,
    ) -> list[str]: ...

    def answer(
        self,
        data: bytes | Message | Sequence[bytes | Message],
        question: str | Sequence[str] = "",
        receiver: str | None = None,
    ) -> str | list[str]:
        """A receiver's answer to a question about the text behind the bytes, or a list of answers.

            >>> wire.answer(sent, "How many cats does Ben Korim keep?")
            '31'
            >>> wire.answer(sent, ["How many cats does Ben Korim keep?", "What is Ada Lumen?"])
            ['31', ...]

        Message, question and the answer's tokens have to fit into the receiver's positions.

        Args:
            data: a packet or a message of several, or a list of them.
            question: a question; or a list of them, each to the packet in its place, or all to the
                one packet. "" where the question travels in the latent.
            receiver: its name; may be left out where there is one.

        Returns:
            The answer; a list of them if packets or questions are one.

        Raises:
            UserError: an argument is not what it should be, the bytes are no latent of this bridge,
                the question is too long, or the receiver is unknown.
        """
        self._needs("receiver", "answer")
        name = self._receiver(receiver)
        held, many = arguments.several("answer: packet", data, _message)
        asked, several = self._asked_of_receiver(question)
        if many and several and len(held) != len(asked):
            raise UserError(f"answer: {len(held)} packets and {len(asked)} questions; give as many")
        if not many:
            held = held * len(asked)
        elif not several:
            asked = asked * len(held)
        ready = self._questions(name, held, asked, many)
        said = [one.text for one in self.ask(ready)]
        return said if many or several else said[0]

    def answer_stream(
        self, data: bytes | Message, question: str = "", receiver: str | None = None
    ) -> Iterator[str]:
        """The answer of `answer` in pieces, each as soon as it is written.

            >>> "".join(wire.answer_stream(sent, "How many cats does Ben Korim keep?"))
            '31'

        Args:
            data: a packet, or a message of several.
            question: as in `answer`.
            receiver: as in `answer`.

        Raises:
            UserError: as `answer`.
        """
        talk = self.talk(data, receiver, history=False)
        return pieces(talk.stream(question))

    def talk(
        self,
        data: bytes | Message,
        receiver: str | None = None,
        history: bool = True,
    ) -> Talk:
        """A conversation about a message, which the receiver reads once.

            >>> talk = wire.talk(sent, history=False)
            >>> talk.ask("How many cats does Ben Korim keep?")
            '31'
            >>> talk.add(wire.encode("Ada Lumen keeps 50 hens in the yard."))
            >>> talk.ask("How many hens does Ada Lumen keep?")
            '50'

        Args:
            data: a packet, or a message of several.
            receiver: as in `answer`.
            history: whether questions and answers stay in the receiver's sequence; if not, each
                question is answered as `answer` does.

        Raises:
            UserError: as `answer`; or this bridge's layout or decoding has no second turn.
        """
        self._needs("receiver", "talk")
        name = self._receiver(receiver)
        layout = self.pipeline.layout
        if history and (layout.anchor_mode == "chat" or layout.bos != "start"):
            raise UserError(
                "talk: the layout of a second turn is not known where a chat template or a BOS "
                "comes after the message; use history=False"
            )
        if self._decoding(name)[1].gain:
            raise UserError("talk: decode.prefix_gain acts on whole sequences; leave it out")

        def latents(one: Any) -> tuple[Latent, ...]:
            return self._latents(_message("talk: packet", one), "")

        def ids(question: str) -> list[int]:
            return self._ids(name, self._asked_of_receiver(question)[0][0])

        talk = self._talked(name, latents, ids, history)
        talk.add(data)
        return talk

    def _talked(
        self,
        name: str,
        latents: Callable[[Any], tuple[Latent, ...]],
        ids: Callable[[str], Sequence[int]],
        history: bool,
    ) -> Talk:
        stop, options = self._decoding(name)
        tokenizer = self.pipeline.receivers[name]
        return Talk(self._context(name), tokenizer, stop, options, latents, ids, history)

    def score(
        self,
        data: bytes | Message,
        question: str,
        answers: Sequence[str],
        receiver: str | None = None,
    ) -> list[Score]:
        """How probable a receiver finds given answers to a question.

            >>> found = wire.score(sent, "How many cats does Ben Korim keep?", ["31", "7"])
            >>> found[0].logprob > found[1].logprob
            True

        Args:
            data: a packet, or a message of several.
            question: as in `answer`.
            answers: texts that the receiver might write.
            receiver: as in `answer`.

        Returns:
            A score of each, under teacher forcing; the highest `logprob` is the most probable.

        Raises:
            UserError: as `answer`; or an answer is no text, or not separable from the question in
                the receiver's tokens.
        """
        self._needs("receiver", "score")
        name = self._receiver(receiver)
        layout, tokenizer = self.pipeline.layout, self.pipeline.receivers[name]
        given, many = arguments.several("score: answers", answers, arguments.text)
        if not many:
            raise UserError("score: answers: expected a list of texts; got one text")
        (asked,) = self._asked_of_receiver(question)[0][:1]
        one = self._questions(name, [_message("score: packet", data)], [asked], False)[0]
        found = []
        for answer_text, both in zip(
            given, split_joint(layout, tokenizer, [(asked, a) for a in given]), strict=True
        ):
            if both is None:
                raise UserError(
                    f"score: the tokens of {answer_text!r} begin inside the question's; give "
                    "another answer"
                )
            found.append(both)
        ctx, scores = self._context(name), dict[int, Score]()
        sizes = [{"answer": rung(8, len(both.answer), None)} for both in found]
        for size, places in batches(sizes):
            rows = [*places, *[places[0]] * (rung_of(len(places)) - len(places))]
            message = self._messages(ctx, [one] * len(rows))
            out = answer.score(
                ctx.model,
                ctx.prompt,
                message,
                segment([found[i].ask for i in rows], one.size["ask"]),
                segment([found[i].answer for i in rows], size["answer"], "answer"),
            )
            nll, count = jax.device_get((out.nll, out.tokens))
            for i, loss, tokens in zip(places, nll, count, strict=False):
                scores[i] = Score(-float(loss), int(tokens))
        return [scores[i] for i in range(len(found))]

    def question(
        self, data: bytes | Message, question: str = "", receiver: str | None = None
    ) -> Question:
        """A question that is checked and ready to be asked, as `answer` takes it; see there."""
        self._needs("receiver", "answer")
        name = self._receiver(receiver)
        asked = self._asked_of_receiver(question)[0][:1]
        return self._questions(name, [_message("answer: packet", data)], asked, False)[0]

    def asked_tokens(self, question: str = "", receiver: str | None = None) -> tuple[str, int]:
        """A receiver's name, and the tokens of a question to it, its anchor included.

        Raises:
            UserError: as `answer`.
        """
        self._needs("receiver", "answer")
        name = self._receiver(receiver)
        return name, len(self._ids(name, self._asked_once(question)))

    def question_on_text(
        self,
        text: str,
        question: str = "",
        receiver: str | None = None,
        tokens: int | None = None,
    ) -> Question:
        """A question whose receiver is given the text in words, to compare the message with.

        Args:
            text: the text.
            question: as in `answer`; of a bridge with the question in the latent "".
            receiver: as in `answer`.
            tokens: of the text, in the receiver's; what comes after them is cut; None: all.

        Raises:
            UserError: as `answer`.
        """
        self._needs("receiver", "answer")
        name = self._receiver(receiver)
        layout, tokenizer = self.pipeline.layout, self.pipeline.receivers[name]
        asked = self._asked_once(question)
        row = Example("", "", arguments.text("answer: text", text), asked, ("",))
        (words,) = message_ids(layout, tokenizer, [message_text(layout, row)])
        if tokens is not None:
            words = words[: int(arguments.number("answer: tokens", tokens, 1, 2**20))]
        ids = self._ids(name, asked)
        self._fits(name, "a text", len(words), len(ids))
        size = self._size(name, ids) | {"words": rung(TEXT_RUNG, len(words), None)}
        return Question(name, tuple(ids), (), tuple(words), size)

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """Answers to questions that are ready, which are run in batches of equal sizes.

        Raises:
            UserError: one is none that `question` or `question_on_text` made.
        """
        arguments.made("ask", questions, Question, "question or question_on_text")
        found: dict[int, Answer] = {}
        for size, places in batches([one.size for one in questions]):
            rows = [*places, *[places[0]] * (rung_of(len(places)) - len(places))]
            name = questions[places[0]].receiver
            ctx, tokenizer = self._context(name), self.pipeline.receivers[name]
            stop, options = self._decoding(name)
            said = answer.write(
                ctx.model,
                ctx.prompt,
                self._messages(ctx, [questions[i] for i in rows]),
                segment([questions[i].ids for i in rows], size["ask"]),
                jax.random.key(0),
                options,
            )
            parts = (said.ids, said.lengths, said.stopped, said.ended, said.total_logprob)
            wrote = jax.device_get(parts)
            for i, ids, n, stopped, ended, logprob in zip(places, *wrote, strict=False):
                text = stop.text(tokenizer, ids.tolist(), int(n), bool(stopped))
                found[i] = Answer(text, int(n), bool(ended), float(logprob))
        return [found[i] for i in range(len(questions))]

    def _asked_once(self, question: Any) -> str:
        """A single question, as the receiver is asked it."""
        if isinstance(question, list | tuple):
            raise UserError(f"answer: question: expected text; got {arguments.shown(question)}")
        return self._asked_of_receiver(question)[0][0]

    def _blank_talk(self, question: Question) -> None:
        """A conversation of one question, whatever they say."""
        talk = self._talked(
            question.receiver, lambda _: question.latents, lambda _: question.ids, False
        )
        talk.add(None)
        talk.ask()

    def longest_question(self, receiver: str) -> int:
        """Tokens of the longest question, anchor included, that it was trained on; 32 if unknown.

        Args:
            receiver: who is asked.
        """
        return self.longest.get(f"{receiver}/ask", 32)

    def _asked_of_receiver(self, question: Any) -> tuple[list[str], bool]:
        """The questions, and whether they were a list."""
        layout = self.pipeline.layout
        asks = layout.question_in == "receiver" and bool(layout.question)
        found, several = arguments.several(
            "answer: question", question, lambda where, q: arguments.text(where, q, not asks)
        )
        if not asks and any(found):
            raise UserError(
                "answer: this bridge carries the question in the latent; give it to encode"
                if layout.question_in == "latent"
                else "answer: this bridge's receiver is asked no question; leave it out"
            )
        return found, several

    def _ids(self, name: str, question: str) -> list[int]:
        """What a receiver is asked, in its tokens."""
        layout, tokenizer = self.pipeline.layout, self.pipeline.receivers[name]
        return asked_ids(layout, tokenizer, question)

    def _opened(self, data: bytes, where: str) -> Latent:
        """What a packet says."""
        bridge = self.pipeline.bridge
        limits = bridge.limits
        if limits.span is not None and self.reach is not None:
            limits = replace(limits, span=float(self.reach))
        try:
            latent = packets.opened(bridge, data, self.trained.mark, limits, self.key)
            self.admit(latent)
        except UserError as error:
            raise UserError(f"{where}{error}") from error
        return latent

    def _latents(self, message: Message, where: str) -> tuple[Latent, ...]:
        """What the parts of a message say."""
        several = len(message) > 1
        return tuple(
            self._opened(part.packet, f"{where}part {i}: " if several else where)
            for i, part in enumerate(message.parts)
        )

    def _questions(
        self, name: str, held: Sequence[Message], asked: Sequence[str], many: bool
    ) -> list[Question]:
        """Questions about the messages in their places."""
        once: dict[Message, tuple[Latent, ...]] = {}
        for i, one in enumerate(held):
            if one not in once:
                once[one] = self._latents(one, f"answer: packet {i}: " if many else "")
        found = []
        for one, text in zip(held, asked, strict=True):
            ids, latents = self._ids(name, text), once[one]
            slots = sum(latent.mask.shape[1] for latent in latents)
            taken = slots if len(latents) == 1 else max(slots, self._spread(latents))
            several = f"{len(latents)} parts and " if len(latents) > 1 else ""
            self._fits(name, f"a message of {several}{slots} slots", taken, len(ids))
            self._warn("answer: the question", len(ids), f"{name}/ask", "questions")
            found.append(Question(name, tuple(ids), latents, (), self._size(name, ids, latents)))
        return found

    def _spread(self, latents: Sequence[Latent]) -> int:
        """Positions that a message takes where its reader spreads slots over the text's length."""
        readers = chosen(self.pipeline.bridge.config.reader).values()
        if not any(getattr(one, "positions", "") == "spread" for one in readers):
            return 0
        return math.ceil(sum(float(one.span[0]) for one in latents if one.span is not None))

    def _fits(self, name: str, what: str, taken: int, asked: int) -> None:
        """Raises UserError unless message, question and answer fit into a receiver's positions."""
        ctx = self._context(name)
        room, most = ctx.model.arch.max_positions, self._decoding(name)[1].max_new
        left = room - len(ctx.prompt.head) - taken - most
        if asked > left:
            raise UserError(
                f"answer: a question of {asked} tokens, where {max(left, 0)} fit into the "
                f"{room} positions of {name} with {what} and an answer of {most} tokens"
            )

    def _size(
        self, name: str, ids: Sequence[int], latents: Sequence[Latent] = ()
    ) -> dict[str, int]:
        """What a question is padded to."""
        limits = self.pipeline.bridge.limits
        slots = max((one.mask.shape[1] for one in latents), default=0)
        if latents and limits.fewest != limits.most:
            slots = rung(SLOTS_RUNG, slots, limits.most)
        return {
            "receiver": list(self.pipeline.receivers).index(name),
            "parts": rung(PARTS_RUNG, len(latents), None),
            "slots": slots,
            "ask": rung(TEXT_RUNG, len(ids), None),
            "codes": int(bool(latents) and latents[0].slots.dtype == np.int32),
            "words": 0,
        }

    def _messages(self, ctx: EvalContext, rows: Sequence[Question]) -> ReceiverMessage:
        """What stands in the message's place, of questions of one size."""
        size = rows[0].size
        if size["words"]:
            return in_words([one.words for one in rows], size["words"])
        latents = [one.latents for one in rows]
        sent = filled(latents, size["parts"], size["slots"])
        return deliver(ctx, sent, size["parts"])

    def _blank_latent(self, slots: int) -> Latent:
        """A latent of so many slots, whatever they say."""
        bridge = self.pipeline.bridge
        limits, codes = bridge.limits, bridge.codec == "codes"
        width = len(bridge.levels) if codes else limits.width
        values = np.zeros((1, slots, width), np.int32 if codes else np.float32)
        span = None if limits.span is None else np.ones(1, np.float32)
        whole = Latent(values, np.ones((1, slots), bool), span, limits.owners[:slots])  # type: ignore[arg-type]
        return packet.sendable(whole)

    def _decoding(self, name: str) -> tuple[Stop, DecodeOptions]:
        """Where a receiver's answers stop, and how they are decoded."""
        tokenizer, arch = self.pipeline.receivers[name], self._context(name).model.arch
        stop = stop_of(tokenizer, self.decode.stop or ())
        return stop, options_of(self.decode, arch, tokenizer, stop)

    def _receiver(self, name: Any) -> str:
        known = list(self.pipeline.receivers)
        if name is None and len(known) == 1:
            return known[0]
        if name is None:
            raise UserError(f"answer: which receiver? there are {', '.join(known)}")
        if not isinstance(name, str) or name not in known:
            got = repr(name) if isinstance(name, str) else arguments.shown(name)
            raise UserError(f"answer: receiver {got} is not one of {', '.join(known)}")
        return name


def _message(where: str, value: Any) -> Message:
    """A message, or the bytes of one."""
    if isinstance(value, Message):
        return value
    try:
        return Message.from_bytes(arguments.packet(where, value))
    except UserError as error:
        said = str(error)
        listed = where.startswith("answer: packet ")
        raise UserError(f"{where}: {said}" if listed and where not in said else said) from error
