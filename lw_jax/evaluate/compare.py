"""All methods on the same rows, one after the other; a finished method is never run again.

The rows are collated once, and their texts cross the wire once (`lw_jax.evaluate.packets`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lw_jax.data.example import Example
from lw_jax.evaluate import slot_maps
from lw_jax.evaluate.candidates import answering
from lw_jax.evaluate.config import EvaluateConfig
from lw_jax.evaluate.methods import method
from lw_jax.evaluate.methods.base import EvalContext, Method
from lw_jax.evaluate.metrics.base import Prediction
from lw_jax.evaluate.packets import Packets, encode, send
from lw_jax.evaluate.predict import (
    Held,
    Planned,
    compile_all,
    cut,
    held,
    look,
    on_host,
    options_of,
    predict,
    prepared,
    rate,
    shortened,
)
from lw_jax.evaluate.relay import Written
from lw_jax.evaluate.slots import NEAREST, ranked, spelled
from lw_jax.mesh import fetch, put_batch, ways
from lw_jax.models.generate import DecodeOptions
from lw_jax.pipeline import Pipeline
from lw_jax.text.budget import Cut, Spans, of_tokens
from lw_jax.text.collate import Batch, Collate, by_key
from lw_jax.text.layout import message_ids, message_text
from lw_jax.text.stop import Stop, stop_of
from lw_jax.types import Latent
from lw_jax.utils import signals
from lw_jax.utils.compile import AheadOfTime

SLOT_ROWS = 256
"""Rows whose slots are looked at."""
SPELLED = 4
"""Rows whose soft tokens are spelled in the nearest tokens."""


@dataclass(frozen=True)
class Comparison:
    """Rows that every method is given.

    Attributes:
        pipeline: the frozen models and the bridge.
        config: of the evaluation.
        examples: the rows.
        others: row by row the row of another context.
        near: row by row that of another context of the same article; None where there is none.
        nats: row by row the nats of the spans of its text under the sender; none where no method
            asks for them.
        collate: with lengths that hold them all.
        console: for people.
        terminated: whether to stop after the batch at hand.
        candidates: answers to choose from.
        other: the name of a line that is another bridge's `latent` (`lw_jax.runs.rivals`).
        packets: what crossed the wire for every row; None before anything did.
        stop: strings at which an answer ends, of every method.
    """

    pipeline: Pipeline
    config: EvaluateConfig
    examples: Sequence[Example]
    others: Sequence[int]
    collate: Collate
    console: Console
    terminated: signals.Stop
    candidates: tuple[str, ...] = ()
    other: str | None = None
    packets: Packets | None = None
    stop: tuple[str, ...] = ()
    near: Sequence[int | None] = ()
    nats: Sequence[Spans] = ()

    def method(self, name: str) -> Method:
        """The method of that name; the guest's is `latent`."""
        return method("latent" if name == self.other else name)

    @property
    def size(self) -> int:
        """Rows at once: no more than there are, a multiple of the mesh's data axis."""
        parts = ways(self.pipeline.mesh, "rows")
        return -(-min(self.config.batch_size, len(self.examples)) // parts) * parts

    def texts(self) -> list[str]:
        """The texts that the latent replaces."""
        return [message_text(self.pipeline.layout, e) for e in self.examples]

    @cached_property
    def batches(self) -> list[tuple[int, Batch]]:
        """(first row, arrays on the host) over all rows, the last batch filled up.

        Made once, whatever the number of methods and receivers.
        """
        starts = range(0, len(self.examples), self.size)
        return [(begin, self._collated(self.examples, begin)) for begin in starts]

    # What crosses the wire

    def sent(
        self, ctx: EvalContext, mark: bytes, codecs: Sequence[str], look: bool = False
    ) -> Comparison:
        """The same rows after the sender has read each of them once.

        Args:
            ctx: of any receiver.
            mark: names the bridge.
            codecs: in which the latents are wanted besides the bridge's own.
            look: whether some batches are looked at for `slots`.

        Raises:
            SystemExit: code 143 after SIGTERM, 130 after Ctrl-C.
        """
        looked = partial(self._looked, look)
        place = self.pipeline.placed
        programs = AheadOfTime()
        for wanted in {looked(begin) for begin, _ in self.batches}:
            programs.add(encode, ctx, place(self.batches[0][1]), wanted)
        if look:
            programs.add(slot_maps.reads, ctx, place(self.batches[0][1]))
        programs.compile(self.console)

        def placed() -> Iterator[tuple[int, Any]]:
            with self._bar("sender") as advance:
                for begin, batch in self.batches:
                    yield begin, place(batch)
                    advance()
                    self._stop("run the same command again")

        packets = send(
            ctx,
            placed(),
            rows=len(self.examples),
            codecs=codecs,
            mark=mark,
            looked=looked,
            clock=time.monotonic,
        )
        return replace(self, packets=packets)

    def received(self, how: Method, begin: int) -> Latent | None:
        """What the rows of a batch were sent for a method, on the mesh; None where it needs none.

        Raises:
            UserError: the bytes were damaged on the way.
        """
        if how.latent is None:
            return None
        assert self.packets is not None  # sent before any method that needs a latent
        rows = [*range(begin, min(begin + self.size, len(self.examples)))]
        rows += rows[:1] * (self.size - len(rows))
        if how.latent == "other":
            rows = [self.others[i] for i in rows]
        if how.latent == "near":  # a row without another one is run, and does not count
            rows = [i if (other := self.near[i]) is None else other for i in rows]
        latent = self.packets.received(how.codec, rows)
        placed: Latent = put_batch(self.pipeline.mesh, latent)
        return placed

    def held(self, ctx: EvalContext) -> Held:
        """Columns and keys that each row's latent takes in its receiver, on the host."""
        found: list[Held] = []
        for begin, batch in self.batches:
            latent = self.received(self.method("latent"), begin)
            assert latent is not None
            found.append(fetch(held(ctx, put_batch(self.pipeline.mesh, batch), latent)))
        rows = len(self.examples)
        columns, keys, entries = (
            np.concatenate([getattr(one, part) for one in found])[:rows]
            for part in ("columns", "keys", "entries")
        )
        return Held(columns, keys, found[0].layers, entries)  # type: ignore[arg-type]

    def columns(self, ctx: EvalContext, by_entries: bool = False) -> list[int]:
        """Per row the receiver columns of its latent's message, or by entries the tokens of text
        that hold as many K/V entries, rounded up."""
        held = self.held(ctx)
        arch = ctx.model.arch
        more = held.entries if by_entries else np.zeros_like(held.entries)
        tokens = held.columns + np.ceil(np.asarray(more) / (arch.layers * arch.kv_heads))
        return [int(n) for n in tokens]

    def tokens(self, receiver: str) -> list[int]:
        """Receiver tokens of every row's text."""
        key = f"{receiver}/context/lengths"
        held = [n for _, batch in self.batches for n in batch[key].tolist()]
        return held[: len(self.examples)]

    def latent_bytes(self, codec: str | None = None) -> list[int]:
        """Bytes on the wire of every row's latent, with the text where the receiver reads that as
        well; 0 where nothing was sent.

        Args:
            codec: of the packets; None: the bridge's own.
        """
        if self.packets is None:
            return [0] * len(self.examples)
        sizes = self.packets.sizes(codec)
        if not self.pipeline.layout.with_text:
            return sizes
        return [n + len(t.encode()) for n, t in zip(sizes, self._beside(), strict=True)]

    def _beside(self) -> list[str]:
        """The texts that the first receiver reads besides the latent, cut where they are."""
        if self.pipeline.layout.text_budget is None:
            return self.texts()
        name, tokenizer = next(iter(self.pipeline.receivers.items()))
        rows = [
            ids[:n].tolist()
            for _, batch in self.batches
            for ids, n in zip(
                batch[f"{name}/context/ids"], batch[f"{name}/context/lengths"], strict=True
            )
        ]
        return [tokenizer.backend.decode(ids) for ids in rows[: len(self.examples)]]

    # Methods

    def compile(self, ctxs: Sequence[tuple[EvalContext, str]]) -> None:
        """Compile what methods need, each of the receiver of its scene, side by side."""
        if not ctxs:
            return
        begin, batch = self.batches[0]
        shared = put_batch(self.pipeline.mesh, batch)
        rng = jax.random.fold_in(jax.random.key(self.config.seed), 0)
        calls = []
        for ctx, name in ctxs:
            how, tokenizer = self.method(name), self.pipeline.receivers[ctx.receiver]
            stop = stop_of(tokenizer, self.stop)
            options = self._options(how, ctx, stop)
            latent = self.received(how, begin)
            made = prepared(batch, method=how, ctx=ctx)
            placed = shared if made is batch else put_batch(self.pipeline.mesh, made)
            calls.append(Planned(how.message, ctx, placed, latent, rng, options, stop.clean))
        compile_all(calls, self.console)

    def run(self, ctx: EvalContext, name: str) -> tuple[list[Prediction], float]:
        """One method on all rows of one receiver, and the seconds that it takes.

        They are those of the sender and of the codec, which all methods share, and of the receiver;
        without those of rating candidates. They hold compilation unless `compile` was given this
        method before.

        Raises:
            SystemExit: code 143 after SIGTERM, 130 after Ctrl-C; what was finished before is kept.
        """
        how, tokenizer = self.method(name), self.pipeline.receivers[ctx.receiver]
        stop = stop_of(tokenizer, self.stop)
        options = self._options(how, ctx, stop)
        texts, root = self.texts(), jax.random.key(self.config.seed)
        cuts = [] if how.cut is None else self._cuts(how, ctx, texts)
        sizes = self.latent_bytes(how.codec)
        said: list[Prediction] = []
        seconds = 0.0
        if how.latent is not None and self.packets is not None:
            seconds = self.packets.seconds[how.codec or self.packets.bridge.codec]
        with self._bar(f"{ctx.receiver} {name}") as advance:
            for begin, whole in self.batches:
                rows = slice(begin, begin + self.size)
                batch = shortened(
                    whole,
                    sizes[rows],
                    method=how,
                    receiver=ctx.receiver,
                    tokenizer=tokenizer,
                )
                batch = cut(batch, cuts[rows], method=how, receiver=ctx.receiver)
                rng = jax.random.fold_in(root, begin)
                began = time.monotonic()
                batch = prepared(batch, method=how, ctx=ctx)
                placed = put_batch(self.pipeline.mesh, batch)
                latent = self.received(how, begin)
                raw = predict(how.message, ctx, placed, latent, rng, options, stop.clean)
                found = on_host(
                    raw,
                    batch,
                    self.examples[rows],
                    texts[rows],
                    sizes[rows],
                    method=how,
                    ctx=ctx,
                    tokenizer=tokenizer,
                    options=options,
                    stop=stop,
                )
                seconds += time.monotonic() - began
                said += self._rated(found, how, ctx, batch, begin, stop.clean)
                advance()
                self._stop("run the same command again to go on at this method")
        return said, seconds

    def _cuts(self, how: Method, ctx: EvalContext, texts: Sequence[str]) -> list[Cut]:
        """Every row's text as a method that cuts it is given it."""
        layout, tokenizer = self.pipeline.layout, self.pipeline.receivers[ctx.receiver]

        def encode(text: str) -> list[int]:
            return message_ids(layout, tokenizer, [text])[0]

        every = message_ids(layout, tokenizer, texts)
        nats: Sequence[Any] = [None] * len(texts)
        if how.surprisal:
            nats = [
                of_tokens(spans, text, tokenizer, ids)
                for spans, text, ids in zip(self.nats, texts, every, strict=True)
            ]
        return [
            Cut(text, ids, example.question, columns, encode, of_each)
            for text, ids, example, columns, of_each in zip(
                texts, every, self.examples, self.columns(ctx, how.by_entries), nats, strict=True
            )
        ]

    def _options(self, how: Method, ctx: EvalContext, stop: Stop) -> DecodeOptions:
        """How a method's answers are decoded: the wire's controls act on the wire's methods."""
        tokenizer = self.pipeline.receivers[ctx.receiver]
        arch = ctx.model.arch
        return options_of(self.config.decode, arch, tokenizer, stop, how.of_the_wire)

    def _rated(
        self,
        said: list[Prediction],
        how: Method,
        ctx: EvalContext,
        batch: Batch,
        begin: int,
        stops: tuple[int, ...],
    ) -> list[Prediction]:
        """A batch's predictions with the log-probability of every candidate after the same message.

        batch: as the method was given it; only its answers are other ones here. stops: of `rate`.
        """
        if not self.candidates:
            return said
        batches = [
            put_batch(self.pipeline.mesh, batch | answers) for answers in self._answers[begin]
        ]
        latent = self.received(how, begin)
        scored = fetch(rate(how.message, ctx, batches, latent, stops))
        nats = -np.stack([one.nll for one in scored], axis=1).astype(np.float64)
        return [
            replace(p, nats=dict(zip(self.candidates, row.tolist(), strict=True)))
            for p, row in zip(said, nats, strict=False)  # rows beyond are filling
        ]

    @cached_property
    def _answers(self) -> dict[int, list[Batch]]:
        """By a batch's first row, the answers of all receivers with each candidate for gold."""
        keys = tuple(f"{receiver}/answer/" for receiver in self.pipeline.receivers)
        found: dict[int, list[Batch]] = {}
        for begin, _ in self.batches:
            found[begin] = []
            for candidate in self.candidates:
                rows = [
                    replace(e, answers=(candidate,)) for e in self.examples[begin:][: self.size]
                ]
                other = self._collated(rows, 0)
                found[begin].append({k: v for k, v in other.items() if k.startswith(keys)})
        return found

    def relayed(self, written: Written) -> Comparison:
        """The same rows, with what the sender wrote in the place of their contexts."""
        examples = written.examples(self.examples)
        layout = replace(self.pipeline.layout, max_tokens=None)  # none is left out for its length
        every = (*self.examples, *examples, *answering(examples, self.candidates))
        groups = [(e,) for e in every]
        collate = self.pipeline.collate(groups, layout)
        return replace(self, examples=examples, collate=collate, packets=None)

    def slots(self, ctx: EvalContext) -> dict[str, Any]:
        """Statistics of the latent's slots (`lw_jax.evaluate.latents`): means over some batches, of
        `texts` rows each; `spelled`, what the nearest rows of the vocabulary spell for the first
        texts, where there are soft tokens."""
        assert self.packets is not None
        found: list[dict[str, Any]] = []
        nearest: list[np.ndarray] = []
        begins = (begin for begin, _ in self.batches if self._looked(True, begin))
        for begin, made in zip(begins, self.packets.seen, strict=True):
            latent = self.received(self.method("latent"), begin)
            seen = dict(sorted({**made, **ranked(fetch(look(ctx, latent)))}.items()))
            seen |= {f"codes_{key}": value for key, value in seen.pop("codes").items()}
            if NEAREST in seen:
                nearest.append(seen.pop(NEAREST))
            found.append(seen)
        means = {key: float(np.mean([one[key] for one in found])) for key in found[0]}
        means |= {"texts": float(self.size)}
        if not nearest:
            return means
        shown = nearest[0][: min(SPELLED, len(self.examples))]
        return means | {"spelled": spelled(shown, self.pipeline.receivers[ctx.receiver])}

    def slot_maps(self, ctx: EvalContext) -> list[dict[str, Any]]:
        """The first texts' slots to look at (`lw_jax.evaluate.slot_maps.maps`)."""
        _, batch = self.batches[0]
        if not by_key(self.pipeline.sources):
            return []
        latent, read = fetch(slot_maps.reads(ctx, self.pipeline.placed(batch)))
        key, tokenizer = next(iter(by_key(self.pipeline.sources).items()))
        ids = [example.id for example in self.examples]
        return slot_maps.maps(ids, batch, key, tokenizer, latent, read)

    def _looked(self, look: bool, begin: int) -> bool:
        """Whether the batch that begins there is looked at: the first, and whole ones after it."""
        whole = begin + self.size <= len(self.examples)
        return look and (begin == 0 or (whole and begin < SLOT_ROWS))

    def _stop(self, how_to_go_on: str) -> None:
        if self.terminated():
            self.say(f"stopped; {how_to_go_on}")
            self.terminated.leave()

    def say(self, text: str) -> None:
        """A line for people."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _collated(self, examples: Sequence[Example], begin: int) -> Batch:
        rows = list(examples[begin : begin + self.size])
        rows += [rows[0]] * (self.size - len(rows))
        return self.collate([(e,) for e in rows])

    @contextmanager
    def _bar(self, text: str) -> Iterator[Callable[[], None]]:
        bar = Progress(
            TextColumn(f"[bold]{text}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        with bar:
            task = bar.add_task(text, total=-(-len(self.examples) // self.size))
            yield lambda: bar.advance(task)
