"""A trained bridge with its frozen models: texts to packets, packets and questions to answers."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
import numpy as np

from lw_jax.api.shapes import SLOTS_RUNG, TEXT_RUNG, batches, rung, rung_of, rungs
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
from lw_jax.pipeline import Pipeline
from lw_jax.receiver import answer
from lw_jax.receiver.answer import Message
from lw_jax.receiver.pack import Segment
from lw_jax.runs.exported import LONGEST, about_bridge, is_exported
from lw_jax.runs.places import located
from lw_jax.runs.session import open_half, open_pipeline
from lw_jax.runs.trained import Trained, check_frozen, config_at, load_trained, saved_at
from lw_jax.text.collate import Batch, Collate, Lengths, by_key
from lw_jax.text.layout import asked_ids, source_head_ids
from lw_jax.text.stop import stop_of, stop_strings
from lw_jax.text.tokenizer import Tokenizer
from lw_jax.types import Latent
from lw_jax.utils import arguments, program_cache
from lw_jax.wire import packet
from lw_jax.wire.codecs import codec as check

Role = Literal["both", "sender", "receiver"]


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
    """

    pipeline: Pipeline
    trained: Trained
    decode: DecodeConfig
    key: bytes | None = None
    role: Role = "both"
    longest: Mapping[str, int] = field(default_factory=dict)
    reach: int | None = None

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
    ) -> Bridge:
        """The bridge of a run, decoding as its last evaluation did. The run's rows are not needed.

        Models are looked up as `lw_jax.runs.places` says: from the current directory, then from
        the bridge's own and those above it. Their fingerprints have to be those of training.

        Args:
            run_dir: of a run, or of an exported bridge (as those in `zoo/bridges` are).
            checkpoint: of a run.
            role: which end this is: "sender" loads no receiver, and "receiver" no sender but for
                its config.json; "both" is both.
            sender: directory or hub name of the sender, if it has moved.
            receivers: the same of receivers by name.
            key: that both ends share, 16 bytes or more: packets carry an HMAC-SHA256, and those
                without the right one are refused. It says that a packet comes from someone who has
                the key, unchanged; it hides nothing.

        Raises:
            UserError: neither there, nothing trained yet, its receiver needs the text as well, or
                the frozen models are not to be had.
        """
        program_cache.use()
        home = arguments.path("run_dir", run_dir)
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
        config = located(config, home, sender, receivers)
        # Rows of a call are few: they cannot be spread over devices.
        mesh = make_mesh(MeshConfig(data=1, model=config.mesh.model))
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
        return cls(pipeline, trained, _decoding(config), secret, role, longest, _reach(config))

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
        self._needs("sender", "encode")
        texts, many = arguments.several("encode: text", text, arguments.text)
        asked = self._asked_of_sender(question, len(texts))
        name = self._codec(codec)
        ctx = self._context("")
        if ratio is not None:
            ctx = replace(ctx, bridge=ctx.bridge.at_ratio(self._ratio(ratio)))
        if view is not None:
            ctx = replace(ctx, bridge=ctx.bridge.at_view(arguments.text("encode: view", view)))
        rows = [(Example("", "", t, q, ("",)),) for t, q in zip(texts, asked, strict=True)]
        sizes = self._sizes(rows, many)
        found: dict[int, bytes] = {}
        for size, places in batches(sizes):
            batch = self._collate(size)([rows[i] for i in places])
            assert batch["valid"].all()  # their lengths were checked
            found |= zip(places, self._send(ctx, batch, name), strict=False)
        sent = [found[i] for i in range(len(rows))]
        return sent if many else sent[0]

    @overload
    def answer(  # type: ignore[overload-overlap]
        self, data: bytes, question: str = "", receiver: str | None = None
    ) -> str: ...

    @overload
    def answer(
        self,
        data: bytes | Sequence[bytes],
        question: str | Sequence[str] = "",
        receiver: str | None = None,
    ) -> list[str]: ...

    def answer(
        self,
        data: bytes | Sequence[bytes],
        question: str | Sequence[str] = "",
        receiver: str | None = None,
    ) -> str | list[str]:
        """A receiver's answer to a question about the text behind the bytes, or a list of answers.

        Message, question and the answer's tokens have to fit into the receiver's positions.

        Args:
            data: a packet, or a list of them.
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
        held, many = arguments.several("answer: packet", data, arguments.packet)
        asked, several = self._asked_of_receiver(question)
        if many and several and len(held) != len(asked):
            raise UserError(f"answer: {len(held)} packets and {len(asked)} questions; give as many")
        if not many:
            held = held * len(asked)
        elif not several:
            asked = asked * len(held)
        once: dict[bytes, Latent] = {}
        for i, one in enumerate(held):
            if one not in once:
                once[one] = self._opened(one, f"answer: packet {i}: " if many else "")
        said = self._ask(name, [once[one] for one in held], [self._ids(name, q) for q in asked])
        return said if many or several else said[0]

    def warm_up(
        self, tokens: int | None = None, receiver: str | None = None, ratio: float | None = None
    ) -> None:
        """Compiles what single calls will need, so that the first of them is as fast as the others.

        Args:
            tokens: of the longest text in the sender's tokens, 1 to 65,536; None: the longest that
                the bridge was trained on, else 128. Questions are as long as in training, else up
                to 32 tokens.
            receiver: that will be asked; may be left out where there is one.
            ratio: as in `encode`.

        Raises:
            UserError: an argument is not what it should be.
        """
        if tokens is not None and arguments.number("warm_up: tokens", tokens, 1, 2**16) % 1:
            raise UserError(f"warm_up: tokens: expected a whole number; got {tokens}")
        most = int(tokens or max((self.longest.get(k, 0) for k in self._sources), default=0) or 128)
        limits = self.pipeline.bridge.limits
        slots = rungs(SLOTS_RUNG, most, limits.most)
        if limits.fewest == limits.most:
            slots = [limits.fewest]
        if self.role != "receiver":
            ctx = self._context("")
            if ratio is not None:
                ctx = replace(ctx, bridge=ctx.bridge.at_ratio(self._ratio(ratio)))
            for size in rungs(TEXT_RUNG, most, None):
                jax.block_until_ready(packets.encode(ctx, self._blank(size)))
        if self.role != "sender":
            name, width = self._receiver(receiver), limits.width
            levels = self.pipeline.bridge.levels
            for count in slots:
                values = (
                    np.zeros((1, count, len(levels)), np.int32)
                    if self.pipeline.bridge.codec == "codes"
                    else np.zeros((1, count, width), np.float32)
                )
                span = None if limits.span is None else np.ones(1, np.float32)
                blank = Latent(values, np.ones((1, count), bool), span, limits.owners[:count])  # type: ignore[arg-type]
                for size in rungs(TEXT_RUNG, self.longest.get(f"{name}/ask", 32), None):
                    self._ask(name, [packet.sendable(blank)], [[0] * size])

    # The sending end

    @property
    def _sources(self) -> dict[str, Tokenizer]:
        return by_key(self.pipeline.sources)

    def _asked_of_sender(self, question: Any, count: int) -> list[str]:
        """The question that goes into each text's latent; "" where none does."""
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

    def _sizes(self, rows: Sequence[Group], many: bool) -> list[dict[str, int]]:
        """The padded length of every row's texts by part; what is too long raises UserError."""
        found: list[dict[str, int]] = [{} for _ in rows]
        probe = Collate(self.pipeline.layout, self.pipeline.sources, {}, Lengths())
        flat = [row[0] for row in rows]
        for key, (ids, _) in probe.rows(rows, flat, 1).items():
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
            return packets.opened(bridge, data, self.trained.mark, limits, self.key)
        except UserError as error:
            raise UserError(f"{where}{error}") from error

    def _ask(self, name: str, sent: Sequence[Latent], asked: Sequence[list[int]]) -> list[str]:
        """The answers of a receiver: to each question about the latent in its place."""
        ctx, tokenizer = self._context(name), self.pipeline.receivers[name]
        stop = stop_of(tokenizer, self.decode.stop or ())
        options = options_of(self.decode, ctx.model.arch, tokenizer, stop)
        limits, room = ctx.bridge.limits, ctx.model.arch.max_positions
        head = len(ctx.prompt.head)
        sizes = []
        for latent, ids in zip(sent, asked, strict=True):
            slots = latent.mask.shape[1]
            left = room - head - slots - options.max_new
            if len(ids) > left:
                raise UserError(
                    f"answer: a question of {len(ids)} tokens, where {max(left, 0)} fit into the "
                    f"{room} positions of {name} with a message of {slots} slots and an answer of "
                    f"{options.max_new} tokens"
                )
            self._warn("answer: the question", len(ids), f"{name}/ask", "questions")
            if limits.fewest != limits.most:
                slots = rung(SLOTS_RUNG, slots, limits.most)
            codes = latent.slots.dtype == np.int32
            sizes.append(
                {"slots": slots, "ask": rung(TEXT_RUNG, len(ids), None), "codes": int(codes)}
            )
        found: dict[int, str] = {}
        for size, places in batches(sizes):
            rows = [*places, *[places[0]] * (rung_of(len(places)) - len(places))]
            latent = packets.filled([sent[i] for i in rows], size["slots"])
            said = answer.write(
                ctx.model,
                ctx.prompt,
                _deliver(ctx, latent),
                _segment([asked[i] for i in rows], size["ask"]),
                jax.random.key(0),
                options,
            )
            wrote = jax.device_get((said.ids, said.lengths, said.stopped))
            for i, ids, n, ended in zip(places, *wrote, strict=False):  # beyond is filling
                found[i] = stop.text(tokenizer, ids.tolist(), int(n), bool(ended))
        return [found[i] for i in range(len(sizes))]

    def _context(self, receiver: str) -> EvalContext:
        s = self.pipeline
        return EvalContext(s.frozen, self.trained.params, None, s.bridge, receiver)

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


@jax.jit
def _deliver(ctx: EvalContext, sent: Latent) -> Message:
    latent = ctx.received(sent)
    return answer.alone(ctx.model, ctx.deliver(latent), latent.mask.shape[0])


def _segment(asked: Sequence[list[int]], size: int) -> Segment:
    """Questions in tokens as one segment, padded to a length."""
    ids = np.zeros((len(asked), size), np.int32)
    for row, one in zip(ids, asked, strict=True):
        row[: len(one)] = one
    lengths = jnp.asarray([len(one) for one in asked], jnp.int32)
    return Segment(jnp.asarray(ids), None, lengths, "ask")


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
