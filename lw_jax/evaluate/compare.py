"""All methods on the same rows, one after the other; a finished method is never run again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lw_jax.data.example import Example
from lw_jax.evaluate import latents
from lw_jax.evaluate.candidates import answering
from lw_jax.evaluate.config import AT_PRECISION, CONTROLS, METHODS, REPLAY, EvaluateConfig, codec_of
from lw_jax.evaluate.methods import method
from lw_jax.evaluate.methods.base import EvalContext, Method
from lw_jax.evaluate.predict import (
    Planned,
    compile_all,
    on_host,
    options_of,
    predict,
    rate,
    shortened,
    sizes,
)
from lw_jax.evaluate.relay import Written
from lw_jax.evaluate.summary import Prediction
from lw_jax.mesh import put_batch
from lw_jax.pipeline import Pipeline
from lw_jax.text.collate import Batch, Collate
from lw_jax.text.layout import message_text

SLOT_ROWS = 256
"""Rows whose slots are looked at."""


def methods_of(config: EvaluateConfig) -> list[str]:
    """The methods to run, in the order of the table; the controls come with `latent`."""
    wanted = {*config.methods, *(CONTROLS if "latent" in config.methods else ())}
    named = [name for name in METHODS if name in wanted]
    after = named.index("latent") + 1 if "latent" in named else len(named)
    sent = [AT_PRECISION + codec for codec in config.wire]
    changed = [REPLAY + change for change in config.replay]
    return [*named[:after], *sent, *named[after:], *changed]


@dataclass(frozen=True)
class Comparison:
    """Rows that every method is given.

    others: row by row an example of another context; collate: with lengths that hold them all;
    terminated: whether to stop after the batch at hand; candidates: answers to choose from; guest:
    the name of a line that is another bridge's `latent` (`lw_jax.runs.rivals`).
    """

    pipeline: Pipeline
    config: EvaluateConfig
    examples: Sequence[Example]
    others: Sequence[Example]
    collate: Collate
    console: Console
    terminated: Callable[[], bool]
    candidates: tuple[str, ...] = ()
    other: str | None = None

    def method(self, name: str) -> Method:
        """The method of that name; the guest's is `latent`."""
        return method("latent" if name == self.other else name)

    @property
    def size(self) -> int:
        """Rows at once: no more than there are, a multiple of the mesh's data axis."""
        ways = dict(self.pipeline.mesh.shape)["data"]
        return -(-min(self.config.batch_size, len(self.examples)) // ways) * ways

    def texts(self) -> list[str]:
        """The texts that the latent replaces."""
        return [message_text(self.pipeline.layout, e) for e in self.examples]

    def batches(self, other: bool = False) -> Iterator[tuple[int, Batch]]:
        """(first row, batch) over all rows, the last batch filled up; with `other`, the sources
        are the other contexts'."""
        for begin in range(0, len(self.examples), self.size):
            batch = self._collated(self.examples, begin)
            if other:
                swapped = self._collated(self.others, begin)
                batch |= {k: v for k, v in swapped.items() if k.startswith("source/")}
            yield begin, batch

    def sizes(self, ctx: EvalContext) -> tuple[list[int], list[int]]:
        """Per row: slots of its latent, and receiver columns of its message."""
        slots: list[int] = []
        columns: list[int] = []
        for _, batch in self.batches():
            found = jax.device_get(sizes(ctx, put_batch(self.pipeline.mesh, batch)))
            slots += found[0].tolist()
            columns += found[1].tolist()
        return slots[: len(self.examples)], columns[: len(self.examples)]

    def tokens(self, receiver: str) -> list[int]:
        """Receiver tokens of every row's text."""
        key = f"{receiver}/context/lengths"
        held = [n for _, batch in self.batches() for n in batch[key].tolist()]
        return held[: len(self.examples)]

    def latent_bytes(self, slots: Sequence[int], name: str) -> list[int]:
        """Bytes on the wire of latents of so many slots, in the codec of the method `name` (the
        bridge's own but for `latent_<codec>`); with the text where the receiver reads that as
        well."""
        sizes = [self.pipeline.bridge.nbytes(m, codec_of(name)) for m in slots]
        if not self.pipeline.layout.with_text:
            return sizes
        return [n + len(t.encode()) for n, t in zip(sizes, self.texts(), strict=True)]

    def compile(self, scenes: Sequence[tuple[EvalContext, str]]) -> None:
        """Compile what methods need, each of the receiver of its scene, side by side."""
        placed = {
            other: put_batch(self.pipeline.mesh, next(self.batches(other))[1])
            for other in {self.method(name).other_source for _, name in scenes}
        }
        rng = jax.random.fold_in(jax.random.key(self.config.seed), 0)
        calls = []
        for ctx, name in scenes:
            how, tokenizer = self.method(name), self.pipeline.receivers[ctx.receiver]
            options = options_of(self.config.decode, ctx.model.arch, tokenizer)
            calls.append(Planned(how.message, ctx, placed[how.other_source], rng, options))
        compile_all(calls, self.console)

    def run(
        self, ctx: EvalContext, name: str, latent_bytes: Sequence[int]
    ) -> tuple[list[Prediction], float]:
        """One method on all rows of one receiver, and the seconds it took (without those of rating
        candidates); they hold compilation unless `compile` was given this method before.

        Raises:
            SystemExit: code 0 after SIGTERM; what was finished before is kept.
        """
        how, tokenizer = self.method(name), self.pipeline.receivers[ctx.receiver]
        options = options_of(self.config.decode, ctx.model.arch, tokenizer)
        texts, root = self.texts(), jax.random.key(self.config.seed)
        said: list[Prediction] = []
        seconds = 0.0
        with self._bar(f"{ctx.receiver} {name}") as advance:
            for begin, whole in self.batches(how.other_source):
                rows = slice(begin, begin + self.size)
                batch = shortened(
                    whole,
                    latent_bytes[rows],
                    method=how,
                    receiver=ctx.receiver,
                    tokenizer=tokenizer,
                )
                placed = put_batch(self.pipeline.mesh, batch)
                rng = jax.random.fold_in(root, begin)
                began = time.monotonic()
                raw = predict(how.message, ctx, placed, rng, options)
                found = on_host(
                    raw,
                    batch,
                    self.examples[rows],
                    texts[rows],
                    latent_bytes[rows],
                    method=how,
                    ctx=ctx,
                    tokenizer=tokenizer,
                    options=options,
                )
                seconds += time.monotonic() - began
                said += self._rated(found, how, ctx, batch, begin)
                advance()
                if self.terminated():
                    self.say("stopped; run the same command again to go on at this method")
                    raise SystemExit(0)
        return said, seconds

    def _rated(
        self, said: list[Prediction], how: Method, ctx: EvalContext, batch: Batch, begin: int
    ) -> list[Prediction]:
        """A batch's predictions with the log-probability of every candidate after the same message.

        batch: as the method was given it; only its answers are other ones here.
        """
        if not self.candidates:
            return said
        key, batches = f"{ctx.receiver}/answer/", []
        for candidate in self.candidates:
            rows = [replace(e, answers=(candidate,)) for e in self.examples[begin:][: self.size]]
            other = self._collated(rows, 0)
            answers = {k: v for k, v in other.items() if k.startswith(key)}
            batches.append(put_batch(self.pipeline.mesh, batch | answers))
        scored = jax.device_get(rate(how.message, ctx, batches))
        nats = -np.stack([one.nll for one in scored], axis=1).astype(np.float64)
        return [
            replace(p, nats=dict(zip(self.candidates, row.tolist(), strict=True)))
            for p, row in zip(said, nats, strict=False)  # rows beyond are filling
        ]

    def relayed(self, written: Written) -> Comparison:
        """The same rows, with what the sender wrote in the place of their contexts."""
        examples = written.examples(self.examples)
        layout = replace(self.pipeline.layout, max_tokens=None)  # none is left out for its length
        every = (*self.examples, *examples, *answering(examples, self.candidates))
        groups = [(e,) for e in every]
        return replace(self, examples=examples, collate=self.pipeline.collate(groups, layout))

    def slots(self, ctx: EvalContext) -> dict[str, float]:
        """Statistics of the latent's slots (`lw_jax.evaluate.latents.inspect`): means over some
        batches, of `texts` rows each."""
        found: list[dict[str, float]] = []
        for begin, batch in self.batches():
            whole = begin + self.size <= len(self.examples)
            if begin >= SLOT_ROWS or (begin and not whole):
                break
            placed = put_batch(self.pipeline.mesh, batch)
            seen = jax.device_get(
                latents.inspect(ctx.bridge, ctx.receiver, ctx.params, ctx.frozen, placed)
            )
            seen |= {f"codes_{key}": value for key, value in seen.pop("codes").items()}
            found.append(seen)
        means = {key: float(np.mean([one[key] for one in found])) for key in found[0]}
        return means | {"texts": float(self.size)}

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
