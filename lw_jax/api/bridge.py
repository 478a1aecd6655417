"""A trained bridge with its frozen models: texts to packets, packets and questions to answers."""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, overload

import jax
import numpy as np

from lw_jax.api.deliveries import deliver, filled, in_words, segment
from lw_jax.api.shapes import (
    PARTS_RUNG,
    ROW_RUNGS,
    SLOTS_RUNG,
    TEXT_RUNG,
    batches,
    rung,
    rung_of,
    rungs,
)
from lw_jax.api.talk import Talk, pieces
from lw_jax.config.schema import Config
from lw_jax.data.example import Example, Group
from lw_jax.data.load import data_set
from lw_jax.errors import UserError
from lw_jax.evaluate import packets
from lw_jax.evaluate.config import DecodeConfig
from lw_jax.evaluate.methods.base import EvalContext
from lw_jax.evaluate.predict import options_of
from lw_jax.mesh import MeshConfig, make_mesh
from lw_jax.models.checkpoint import read_arch, small_files
from lw_jax.models.generate import DecodeOptions
from lw_jax.pipeline import Pipeline
from lw_jax.receiver import answer
from lw_jax.receiver.answer import Message as ReceiverMessage
from lw_jax.runs import hub
from lw_jax.runs.ends import open_half
from lw_jax.runs.export import export
from lw_jax.runs.exported import LONGEST, about_bridge, is_exported
from lw_jax.runs.hub import bridge_at
from lw_jax.runs.places import located
from lw_jax.runs.session import open_pipeline
from lw_jax.runs.trained import Trained, check_frozen, config_at, load_trained, saved_at
from lw_jax.text.collate import Batch, Collate, Lengths, by_key
from lw_jax.text.layout import asked_ids, message_ids, message_text, source_head_ids, split_joint
from lw_jax.text.stop import Stop, stop_of, stop_strings
from lw_jax.text.tokenizer import Tokenizer
from lw_jax.text.windows import windows
from lw_jax.types import Latent
from lw_jax.utils import arguments, program_cache
from lw_jax.utils.registry import chosen
from lw_jax.wire import packet
from lw_jax.wire.codecs import codec as check
from lw_jax.wire.gate import Gate
from lw_jax.wire.message import Message, Part

Role = Literal["both", "sender", "receiver"]
Fingerprint = Literal["exact", "same_model"]


class Text(NamedTuple):
    """A text that is checked and ready to be sent.

    Attributes:
        row: text and question.
        ratio: source tokens a slot; None: as the bridge's config says.
        view: of the text that the latent is made from; None: likewise.
        codec: of the slots.
        size: what it is padded to.
    """

    row: Group
    ratio: float | None
    view: str | None
    codec: str
    size: dict[str, int]


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


@dataclass(frozen=True, repr=False)
class Bridge:
    """A trained bridge with its frozen models. Make one with `Bridge.load`.

    Attributes:
        pipeline: the frozen models, their tokenizers and the bridge.
        trained: the bridge's parameters, and where they come from.
        decode: how answers are decoded.
        key: that both ends share: packets are tagged with it, and others are refused; None: no key.
        role: which ends are loaded.
        longest: most tokens of what it was trained on, by the name of the part (`source`,
            `<receiver>/ask`); those unknown are missing.
        reach: most source tokens that a text can have; None: unknown.
        home: directory of the run or of the exported bridge.
        gate: that refuses messages unlike those of honest senders; None: there is none.
    """

    pipeline: Pipeline
    trained: Trained
    decode: DecodeConfig
    key: bytes | None = None
    role: Role = "both"
    longest: Mapping[str, int] = field(default_factory=dict)
    reach: int | None = None
    home: Path | None = None
    gate: Gate | None = None

    @classmethod
    def load(
        cls,
        run_dir: str | Path,
        checkpoint: Literal["last", "best"] = "last",
        *,
        role: Role = "both",
        sender: str | Path | None = None,
        receivers: Mapping[str, str | Path] | None = None,
        key: bytes | str | None = None,
        fingerprint: Fingerprint | None = None,
        gate: str | Path | None = None,
    ) -> Bridge:
        """The bridge of a run, decoding as its last evaluation did. The run's rows are not needed.

            >>> Bridge.load("zoo/bridges/facts", role="sender")
            <lw_jax.Bridge to mistral: 32 slots of 256 (float16), ..., sending end; on cpu>

        Models are looked up as `lw_jax.runs.places` says: from the current directory, then from
        the bridge's own and those above it. Their fingerprints have to be those of training.

        Args:
            run_dir: of a run, or of an exported bridge (as those in `zoo/bridges` are), or the name
                of one on the Hugging Face hub.
            checkpoint: of a run.
            role: which end this is: "sender" loads no receiver, and "receiver" no sender but for
                its config.json; "both" is both.
            sender: directory or hub name of the sender, if it has moved.
            receivers: the same of receivers by name.
            key: that both ends share, 16 bytes or more: packets carry an HMAC-SHA256, and those
                without the right one are refused. It says that a packet comes from someone who has
                the key, unchanged; it hides nothing.
            fingerprint: `same_model` takes the models of an exported bridge also where they are
                stored otherwise than in training (a GGUF file, other bits, another dtype), with a
                warning; `exact` does not; None: as its config says, which is `exact` by default.
            gate: a file that `lw-jax probe hostile` wrote: messages that it does not let pass are
                refused by all that reads one; None: no gate.

        Raises:
            UserError: neither there, nothing trained yet, its receiver needs the text as well, or
                the frozen models are not to be had.
        """
        program_cache.use()
        home = bridge_at(arguments.path("run_dir", run_dir))
        arguments.one_of("checkpoint", checkpoint, ("last", "best"))
        arguments.one_of("role", role, ("both", "sender", "receiver"))
        secret = arguments.key("key", key)
        config = config_at(home)
        if config.bridge is None:
            raise UserError(f"{run_dir}: that run has no bridge")
        if config.layout.with_text:
            raise UserError(
                f"{run_dir}: its receiver reads the text beside what is delivered "
                "(layout.with_text), so there is no wire to send over"
            )
        if fingerprint is not None:
            arguments.one_of("fingerprint", fingerprint, get_args(Fingerprint))
            config = replace(config, fingerprint=fingerprint)
        config = located(config, home, sender, receivers)
        # Rows of a call are few: they cannot be spread over devices.
        mesh = make_mesh(MeshConfig(data=1, tensor=config.mesh.tensor))
        try:
            if role == "both":
                pipeline = open_pipeline(config, mesh, home, rows=False)
            else:
                pipeline = open_half(config, mesh, home, role, saved_at(home))
        except UserError as error:
            if not str(error).startswith("model "):
                raise
            raise UserError(
                f"{error}; Bridge.load is told where it is by sender= or receivers="
            ) from error
        if sender is not None or receivers:
            check_frozen(saved_at(home), pipeline, home)
        exported = is_exported(home)
        origin = str(home) if exported else None
        trained = load_trained(config, home, pipeline, checkpoint, init_from=origin)
        longest = _whole_numbers(about_bridge(home).get(LONGEST)) if exported else {}
        opened = None if gate is None else Gate.load(Path(gate), trained.mark)
        decode, reach = _decoding(config), _reach(config)
        return cls(pipeline, trained, decode, secret, role, longest, reach, home, opened)

    def __repr__(self) -> str:
        s, bridge = self.pipeline, self.pipeline.bridge
        limits = bridge.limits
        slots = "any number of" if limits.most is None else f"up to {limits.most}"
        if limits.fewest == limits.most:
            slots = f"{limits.fewest}"
        ends = {"both": "", "sender": ", sending end", "receiver": ", receiving end"}[self.role]
        names = ", ".join(bridge.dims.receivers)
        return (
            f"<lw_jax.Bridge to {names}: {slots} slots of {limits.width} ({bridge.codec}), "
            f"{sum(self.trained.counts.values()):,} parameters, stage {self.trained.stage}, "
            f"step {self.trained.step}{', key' if self.key else ''}{ends}; on "
            f"{s.mesh.devices.flat[0].platform}>"
        )

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

    def push(self, name: str, *, licence: str | None = None, private: bool = True) -> str:
        """Puts the bridge on the Hugging Face hub, as `lw-jax export --push` does; from there
        `Bridge.load(name)` has it. No frozen model goes with it.

        Args:
            name: of the repository, `user/name`; made if it is not there.
            licence: of the bridge's weights, a name that the hub knows, for the model card.
            private: whether a new repository is private.

        Returns:
            The address of its page.

        Raises:
            UserError: the name is none, the hub does not take it, it was loaded with
                `checkpoint="best"`, or its frozen models are not to be had.
        """
        if self.home is None or self.trained.which != "last":
            raise UserError("push: the last checkpoint of a run is pushed; load that")
        hub.repository(name)
        with tempfile.TemporaryDirectory() as folder:
            export(self.home, Path(folder), card=True, licence=licence)
            return hub.push(Path(folder), name, private)

    # A str is a Sequence[str] too, so the first of two overloads has to win.

    @overload
    def encode(  # type: ignore[overload-overlap]
        self,
        text: str,
        question: str | None = None,
        codec: str | None = None,
        ratio: float | None = None,
        view: str | None = None,
    ) -> bytes: ...

    @overload
    def encode(
        self,
        text: Sequence[str],
        question: str | Sequence[str] | None = None,
        codec: str | None = None,
        ratio: float | None = None,
        view: str | None = None,
    ) -> list[bytes]: ...

    def encode(
        self,
        text: str | Sequence[str],
        question: str | Sequence[str] | None = None,
        codec: str | None = None,
        ratio: float | None = None,
        view: str | None = None,
    ) -> bytes | list[bytes]:
        """One text as the bytes that cross the wire, or a list of texts as a list of such.

            >>> sent = wire.encode("Ada Lumen keeps 50 hens in the yard.")
            >>> len(sent)
            16416
            >>> len(wire.encode(["Ada Lumen keeps 50 hens in the yard.", TEXT], codec="int8"))
            2

        A text may have as many tokens as its readers have positions for, and no more than
        `layout.max_tokens`. One longer than those that the bridge was trained on warns, where that
        is known.

        Args:
            text: a text, or a list of texts, which are run in batches.
            question: needed where the question travels in the latent, and only there; of a list
                of texts one for all, or one for each.
            codec: of the slots, one of `lw_jax.wire.codecs.CODECS`; None: the one that holds
                exactly what this bridge sends.
            ratio: source tokens a slot, of a bridge trained for several, between the smallest and
                the largest of them; None: as its config says.
            view: whose view of the text the latent is made from, of a bridge that makes it from one
                of several (`compressor.interlingua`); None: as its config says.

        Raises:
            UserError: an argument is not what it should be, a question is missing or of no use,
                the text is too long, the codec is unknown or cannot hold the slots, or the bridge
                has one number of slots only.
        """
        texts, many = arguments.several("encode: text", text, arguments.text)
        asked = self._asked_of_sender(question, len(texts))
        ready = self._texts(texts, asked, codec, ratio, many, view)
        sent = self.send(ready)
        return sent if many else sent[0]

    def encode_stream(
        self,
        text: str | Iterable[str],
        question: str | None = None,
        codec: str | None = None,
        ratio: float | None = None,
        tokens: int | None = None,
    ) -> Iterator[Message]:
        """A text of any length, in windows: a message of one part for each, as soon as it is read.

        Windows are cut at the ends of sentences (`lw_jax.text.windows`), and each is encoded by
        itself: `Message.of` puts them together, and parts of it can be replaced and dropped. Where
        a text ends at the end of a window, its parts and those of what follows are those of both
        together, up to the rounding of batches of other sizes.

            >>> message = Message.of(wire.encode_stream(TEXT, tokens=24))
            >>> [len(message), message.characters == len(TEXT)]
            [4, True]

        Args:
            text: the text, or pieces of it as they come.
            question: as in `encode`; of every window.
            codec: as in `encode`.
            ratio: as in `encode`.
            tokens: the longest window, in tokens of every source; None: the longest text that the
                bridge was trained on, else the longest that it can read.

        Raises:
            UserError: as `encode`; or the head that comes before every text leaves no room.
        """
        asked = self._asked_of_sender(question, 1)
        self._codec(codec)
        if ratio is not None:
            self._ratio(ratio)
        cut = self.windows(text, question, tokens)
        step = ROW_RUNGS[-1] if isinstance(text, str) else 1  # pieces may come slowly

        def sent() -> Iterator[Message]:
            while held := list(islice(cut, step)):
                ready = self._texts(
                    [w.strip() for w in held], asked * len(held), codec, ratio, True
                )
                for window, data in zip(held, self.send(ready), strict=True):
                    yield Message((Part(data, len(window)),))

        return sent()

    def windows(
        self, text: str | Iterable[str], question: str | None = None, tokens: int | None = None
    ) -> Iterator[str]:
        """The windows in which `encode_stream` reads a text; those of white space are left out.

        Args:
            text: as in `encode_stream`.
            question: as in `encode_stream`.
            tokens: as in `encode_stream`.

        Raises:
            UserError: as `encode_stream`.
        """
        asked = self._asked_of_sender(question, 1)[0]
        most = self._window(tokens)
        given = [arguments.text("encode: text", text)] if isinstance(text, str) else text
        if not isinstance(given, Iterable):
            raise UserError(f"encode: text: expected text or pieces; got {arguments.shown(text)}")

        def fits(window: str) -> bool:
            sizes = self._tokens([(Example("", "", window.strip(), asked, ("",)),)])
            return all(len(ids[0] or ()) <= most[key] for key, ids in sizes.items())

        checked = (arguments.text("encode: text", one, blank=True) for one in given)
        return (window for window in windows(checked, fits) if window.strip())

    def text(
        self,
        text: str,
        question: str | None = None,
        codec: str | None = None,
        ratio: float | None = None,
    ) -> Text:
        """A text that is checked and ready to be sent, as `encode` takes it; see there."""
        asked = self._asked_of_sender(question, 1)
        checked = arguments.text("encode: text", text)
        return self._texts([checked], asked, codec, ratio, False)[0]

    def send(self, texts: Sequence[Text]) -> list[bytes]:
        """Packets of texts that are ready, which are run in batches of equal sizes."""
        found: dict[int, bytes] = {}
        kinds = [(one.ratio, one.view, one.codec) for one in texts]
        for kind in dict.fromkeys(kinds):
            own = [i for i, one in enumerate(kinds) if one == kind]
            ratio, view, name = kind
            ctx = self._context("", ratio, view)
            for size, places in batches([texts[i].size for i in own]):
                at = [own[i] for i in places]
                batch = self._collate(size)([texts[i].row for i in at])
                assert batch["valid"].all()  # their lengths were checked
                found |= zip(at, self._send(ctx, batch, name), strict=False)
        return [found[i] for i in range(len(texts))]

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
        return name, len(self._ids(name, self._asked_of_receiver(question)[0][0]))

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
        asked = self._asked_of_receiver(question)[0][0]
        row = Example("", "", arguments.text("answer: text", text), asked, ("",))
        (words,) = message_ids(layout, tokenizer, [message_text(layout, row)])
        if tokens is not None:
            words = words[: int(arguments.number("answer: tokens", tokens, 1, 2**20))]
        ids = self._ids(name, asked)
        self._fits(name, "a text", len(words), len(ids))
        size = self._size(name, ids) | {"words": rung(TEXT_RUNG, len(words), None)}
        return Question(name, tuple(ids), (), tuple(words), size)

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """Answers to questions that are ready, which are run in batches of equal sizes."""
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

    def warm_up(
        self,
        tokens: int | None = None,
        receiver: str | None = None,
        ratio: float | None = None,
        *,
        question: int | None = None,
        rows: int = 1,
        parts: int = 1,
        words: int = 0,
        talk: bool = False,
    ) -> None:
        """Compiles what calls will need, so that the first of them is as fast as the others.

        Args:
            tokens: of the longest text in the sender's tokens, 1 to 65,536; None: the longest that
                the bridge was trained on, else 128.
            receiver: that will be asked; may be left out where there is one.
            ratio: as in `encode`.
            question: tokens of the longest question, its anchor included; None: the longest that
                the bridge was trained on, else 32.
            rows: texts or questions in a call, at most.
            parts: of a message, at most.
            words: tokens of the longest text that the receiver is given in words.
            talk: whether `answer_stream` and conversations are to be compiled as well.

        Raises:
            UserError: an argument is not what it should be.
        """

        def whole(what: str, value: Any, low: int) -> int:
            if arguments.number(f"warm_up: {what}", value, low, 2**16) % 1:
                raise UserError(f"warm_up: {what}: expected a whole number; got {value}")
            return int(value)

        most = self.longest_text if tokens is None else whole("tokens", tokens, 1)
        counts = [n for n in ROW_RUNGS if n <= rung_of(min(whole("rows", rows, 1), ROW_RUNGS[-1]))]
        if self.role != "receiver":
            ctx = self._context("", None if ratio is None else self._ratio(ratio))
            for size in rungs(TEXT_RUNG, most, None):
                blank = self._blank(size)
                for count in counts:
                    batch = {k: np.repeat(x, count, axis=0) for k, x in blank.items()}
                    jax.block_until_ready(packets.encode(ctx, batch))
        if self.role == "sender":
            return
        name, limits = self._receiver(receiver), self.pipeline.bridge.limits
        slots = rungs(SLOTS_RUNG, most, limits.most)
        if limits.fewest == limits.most:
            slots = [limits.fewest]
        asks = self.longest_question(name) if question is None else whole("question", question, 1)
        for size in rungs(TEXT_RUNG, asks, None):
            ids = [0] * size
            ready = [
                Question(name, tuple(ids), (one,) * n, (), self._size(name, ids, (one,) * n))
                for one in map(self._blank_latent, slots)
                for n in rungs(PARTS_RUNG, whole("parts", parts, 1), None)
            ]
            for n in rungs(TEXT_RUNG, words, None) if whole("words", words, 0) else ():
                long = self._size(name, ids) | {"words": n}
                ready.append(Question(name, tuple(ids), (), (0,) * n, long))
            for one_size in ready:
                for count in counts if one_size.latents else counts[:2]:  # a text and its cut
                    self.ask([one_size] * count)
                if talk and one_size.latents:
                    self._blank_talk(one_size)

    def _blank_talk(self, question: Question) -> None:
        """A conversation of one question, whatever they say."""
        talk = self._talked(
            question.receiver, lambda _: question.latents, lambda _: question.ids, False
        )
        talk.add(None)
        talk.ask()

    @property
    def longest_text(self) -> int:
        """Tokens of the longest text that it was trained on, in any source; 128 if unknown."""
        return max((self.longest.get(k, 0) for k in self._sources), default=0) or 128

    def longest_question(self, receiver: str) -> int:
        """Tokens of the longest question, anchor included, that it was trained on; 32 if unknown.

        Args:
            receiver: who is asked.
        """
        return self.longest.get(f"{receiver}/ask", 32)

    @property
    def mark(self) -> str:
        """Its mark, which its packets carry (`Message.bridge`), as 16 hexadecimal digits."""
        return self.trained.mark.hex()

    # The sending end

    @property
    def _sources(self) -> dict[str, Tokenizer]:
        return by_key(self.pipeline.sources)

    def _asked_of_sender(self, question: Any, count: int) -> list[str]:
        """The question that goes into each text's latent; "" where none does."""
        self._needs("sender", "encode")
        inside = self.pipeline.layout.question_in == "latent"
        if inside != (question is not None):
            raise UserError(
                "encode: this bridge carries the question in the latent; give it to encode"
                if inside
                else "encode: this bridge's receiver is asked the question; give it to answer"
            )
        if not inside:
            return [""] * count
        found, several = arguments.several("encode: question", question, arguments.text)
        if several and len(found) != count:
            raise UserError(f"encode: {count} texts and {len(found)} questions; give as many")
        return found if several else found * count

    def _codec(self, name: Any) -> str:
        if name is not None and not isinstance(name, str):
            raise UserError(f"encode: codec: expected a name; got {arguments.shown(name)}")
        found = self.pipeline.bridge.codec if name is None else name
        check(found, self.pipeline.bridge.levels)
        return found

    def _ratio(self, ratio: Any) -> float:
        """A ratio that the bridge was trained for, or one between two of them."""
        compressor = self.pipeline.bridge.config.chosen_compressor
        known = getattr(compressor, "ratios", ()) if compressor.several_ratios else ()
        low, high = (min(known), max(known)) if known else (1.0, 1024.0)
        return arguments.number("ratio: source tokens a slot", ratio, low, high)

    def _texts(
        self,
        texts: Sequence[str],
        asked: Sequence[str],
        codec: Any,
        ratio: Any,
        many: bool,
        view: Any = None,
    ) -> list[Text]:
        name = self._codec(codec)
        kept = None if ratio is None else self._ratio(ratio)
        seen = None if view is None else arguments.text("encode: view", view)
        self._context("", kept, seen)  # refuses what the bridge has not
        rows = [(Example("", "", t, q, ("",)),) for t, q in zip(texts, asked, strict=True)]
        sizes = self._sizes(rows, many)
        return [Text(row, kept, seen, name, size) for row, size in zip(rows, sizes, strict=True)]

    def _tokens(self, rows: Sequence[Group]) -> dict[str, Sequence[list[int] | None]]:
        """The rows' texts in tokens of every source, head and tail included, by part."""
        probe = Collate(self.pipeline.layout, self.pipeline.sources, {}, Lengths())
        found = probe.rows(rows, [row[0] for row in rows], 1)
        return {key: ids for key, (ids, _) in found.items()}

    def _window(self, tokens: Any) -> dict[str, int]:
        """The most tokens of a window, by source."""
        if tokens is not None:
            tokens = int(arguments.number("encode: tokens", tokens, 1, 2**20))
        found = {}
        for key, tokenizer in self._sources.items():
            limit, _ = self._limit(tokenizer)
            known = [n for n in (tokens or self.longest.get(key), limit) if n is not None]
            found[key] = min(known, default=128)
            head = len(source_head_ids(self.pipeline.layout, tokenizer))
            if found[key] <= head:
                raise UserError(
                    f"encode: tokens: {found[key]}, where {head} come before every text; give more"
                )
        return found

    def _sizes(self, rows: Sequence[Group], many: bool) -> list[dict[str, int]]:
        """The padded length of every row's texts by part; what is too long raises UserError."""
        found: list[dict[str, int]] = [{} for _ in rows]
        for key, ids in self._tokens(rows).items():
            limit, words = self._limit(self._sources[key])
            for i, one in enumerate(ids):
                assert one is not None
                what = f"text {i}" if many else "the text"
                if limit is not None and len(one) > limit:
                    raise UserError(
                        f"encode: {what} is longer than {words}: it has {len(one)} tokens"
                    )
                self._warn(f"encode: {what}", len(one), key, "texts")
                found[i][key] = rung(TEXT_RUNG, len(one), limit)
        return found

    def _limit(self, tokenizer: Tokenizer) -> tuple[int | None, str]:
        """The most tokens of a text, head and tail included, and what sets this limit."""
        if tokenizer.limit is not None:
            return tokenizer.limit, f"max_bytes {tokenizer.limit}"
        sender, most = self.pipeline.frozen.sender, self.pipeline.layout.max_tokens
        limits: list[tuple[int, str]] = []
        if tokenizer.positions is not None:
            limits.append((tokenizer.positions, f"the encoder's {tokenizer.positions} positions"))
        elif sender is not None:
            room = sender.arch.max_positions
            limits.append((room, f"the sender's {room} positions"))
        if most is not None:
            limits.append((most, f"layout.max_tokens {most}"))
        return min(limits, default=(None, ""))

    def _warn(self, what: str, count: int, key: str, kind: str) -> None:
        known = self.longest.get(key)
        if known is not None and count > known:
            warnings.warn(
                f"{what} has {count} tokens, and this bridge was trained on {kind} of up to "
                f"{known}: expect errors",
                stacklevel=4,
            )

    def _collate(self, sizes: Mapping[str, int]) -> Collate:
        return Collate(self.pipeline.layout, self.pipeline.sources, {}, Lengths(dict(sizes)))

    def _blank(self, size: int) -> Batch:
        """A batch of one text of `size` tokens, whatever they are."""
        batch: Batch = {}
        for key, tokenizer in self._sources.items():
            limit, _ = self._limit(tokenizer)
            length = rung(TEXT_RUNG, size if limit is None else min(size, limit), limit)
            head = len(source_head_ids(self.pipeline.layout, tokenizer))
            batch[f"{key}/ids"] = np.zeros((1, length), np.int32)
            batch[f"{key}/lengths"] = np.full(1, length, np.int32)
            batch[f"{key}/skip"] = np.full(1, min(head, length), np.int32)
        return batch | {"valid": np.ones(1, bool)}

    def _send(self, ctx: EvalContext, batch: Batch, codec: str) -> list[bytes]:
        """The packets of a batch's rows."""
        rows = rung_of(len(batch["valid"]))
        whole = {k: np.concatenate([x, *[x[:1]] * (rows - len(x))]) for k, x in batch.items()}
        sent = jax.device_get(packets.encode(ctx, whole))
        return packets.to_packets(ctx.bridge, sent, codec, self.trained.mark, key=self.key)

    # The receiving end

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

    def _context(
        self, receiver: str, ratio: float | None = None, view: str | None = None
    ) -> EvalContext:
        s = self.pipeline
        bridge = s.bridge if ratio is None else s.bridge.at_ratio(ratio)
        bridge = bridge if view is None else bridge.at_view(view)
        return EvalContext(s.frozen, self.trained.params, None, bridge, receiver)

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

    def _needs(self, end: Literal["sender", "receiver"], what: str) -> None:
        if self.role not in ("both", end):
            raise UserError(
                f"{what}: this bridge was loaded with role={self.role!r}; load it with "
                f"role={end!r}, or 'both'"
            )


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


def _whole_numbers(value: Any) -> dict[str, int]:
    """The whole numbers in a JSON value, by key."""
    held = value if isinstance(value, dict) else {}
    return {k: n for k, n in held.items() if isinstance(n, int)}


def _reach(config: Config) -> int | None:
    """The most tokens that a text can have for the sources of a config; None: unknown."""
    assert config.bridge is not None
    found = []
    for source in config.bridge.views.values():
        own = None if source.reads_sender else source.tokenizer(None)
        if own is not None and own.limit is not None:
            found.append(own.limit)
        elif config.sender is not None:
            found.append(read_arch(small_files(config.sender.path)).max_positions)
    return max(found, default=None)


def _decoding(config: Config) -> DecodeConfig:
    """As the last evaluation decodes; where it leaves stops to the task, with the task's."""
    found = [s.evaluate for s in config.stages.values() if s.evaluate is not None]
    decode, data = DecodeConfig(), config.data
    if found:
        decode, data = found[-1].decode, found[-1].data or data
    return replace(decode, stop=stop_strings(decode.stop, data_set(data), config.layout))
