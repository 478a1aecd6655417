"""The sending end: texts to packets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple, overload

import jax
import numpy as np

from lw_jax.api.loaded import Loaded
from lw_jax.api.shapes import ROW_RUNGS, TEXT_RUNG, batches, rung, rung_of
from lw_jax.data.example import Example, Group
from lw_jax.errors import UserError
from lw_jax.evaluate import packets
from lw_jax.evaluate.methods.base import EvalContext
from lw_jax.text.collate import Batch, Collate, Lengths, by_key
from lw_jax.text.layout import source_head_ids
from lw_jax.text.tokenizer import Tokenizer
from lw_jax.text.windows import windows
from lw_jax.utils import arguments
from lw_jax.wire.codecs import codec as check
from lw_jax.wire.message import Message, Part


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


class Sending(Loaded):
    """What a bridge does with texts."""

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
        """Packets of texts that are ready, which are run in batches of equal sizes.

        Raises:
            UserError: one is none that `text` made.
        """
        arguments.made("send", texts, Text, "text")
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

    @property
    def longest_text(self) -> int:
        """Tokens of the longest text that it was trained on, in any source; 128 if unknown."""
        return max((self.longest.get(k, 0) for k in self._sources), default=0) or 128

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
