"""`lw-jax probe oracle`: what is the receiver's share of a bridge's loss, and what the encoder's?

Soft tokens of each passage are optimised by gradient against the frozen receiver
(`lw_jax.probes.descent`), as many as there would be at a ratio, and then asked what they were not
optimised for: the questions of the data. What they lack of the text is what so few soft tokens
before this receiver cost (of those that a search of so many steps finds); what the bridge lacks of
them is what sender, compressor and reader leave.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lw_jax.data.load import load_rows, sample
from lw_jax.errors import UserError
from lw_jax.evaluate import packets
from lw_jax.evaluate.methods.base import EvalContext
from lw_jax.mesh import put_batch
from lw_jax.models.split import embedding_table
from lw_jax.probes.asking import Asker, Asking, Counted, Reader, in_turn
from lw_jax.probes.base import (
    Figure,
    Lines,
    Probed,
    batched,
    figure,
    handed,
    most_slots,
    progress,
    ratios_of,
    show,
    write,
)
from lw_jax.probes.config import OracleConfig
from lw_jax.probes.descent import (
    Passage,
    batches,
    delivered,
    descend,
    filled,
    passage,
    prepare,
    up,
)
from lw_jax.receiver import answer
from lw_jax.receiver.answer import Message
from lw_jax.receiver.pack import segment
from lw_jax.receiver.read import text_message
from lw_jax.runs import rivals
from lw_jax.text.layout import Prompt, split_joint
from lw_jax.types import Delivery, Edits, Latent
from lw_jax.utils.compile import AheadOfTime

MOST = 4000
"""Contexts of the data among which passages are chosen."""
SHARES = ("token_match", "f1", "em")


def run(probed: Probed, cfg: OracleConfig) -> Path:
    """Measures it, writes the result (after each optimisation as well) and prints the table.

    Returns:
        The path of the result.

    Raises:
        UserError: an option does not fit the bridge, or there are no two passages.
    """
    return _Oracle(probed, cfg).run()


class _Oracle:
    """One run of the probe."""

    def __init__(self, probed: Probed, cfg: OracleConfig) -> None:
        self.began = time.monotonic()
        self.probed, self.cfg = probed, cfg
        pipeline = probed.wire.pipeline
        self.tokenizer = pipeline.receivers[probed.receiver]
        frozen = pipeline.frozen.rematerialised("dots")
        self.ctx = replace(probed.ctx, frozen=frozen)
        self.model = self.ctx.model
        self.gaps = cfg.gaps if probed.asks else 0
        self.passages = self._passages()
        self.askings = self._askings()
        self.lengths = np.array([len(one.words) for one in self.passages])
        self.known = [r for r in ratios_of(probed.wire, ()) if r is not None]
        self.asker = Asker(
            probed.console, self.model, self.tokenizer, probed.wire.decode, self.passages,
            self.askings, cfg.batch_size,
        )  # fmt: skip
        self.counted: dict[str, Counted] = {}
        self.more: dict[str, Any] = {"best_start": {}, "curves": {}, "wrote": {}}

    def run(self) -> Path:
        cfg = self.cfg
        names: dict[float, list[str]] = {}
        tuned = None if cfg.text is None else self._tuned(cfg.text)
        bridges = self._bridges()
        first = next(iter(bridges.values()))
        beside, unit = _beside(first), self._unit(first)
        begun = {r: self._begun(r, bridges) for r in cfg.ratios}
        starts = {
            (r, how): self._start(how, begun[r], unit) for r in cfg.ratios for how in cfg.starts
        }
        widest = max(one.slots for one in bridges.values())
        self.most = max(widest, up(len(x) for some in starts.values() for x in some))
        held = {
            key: batches(self.passages, x, cfg.batch_size, self.gaps) for key, x in starts.items()
        }
        empty = np.zeros((0, self.model.params["embed"].shape[1]), np.float32)
        nothing = self._free([empty] * len(self.passages), beside)
        readers = {
            "nothing": Reader(self.ctx.prompt, nothing),
            "text": Reader(Prompt(self.ctx.prompt.head), self._words),
            **({} if tuned is None else {"text_tuned": tuned}),
            **{
                line: Reader(self.ctx.prompt, one.filled(self.most if self.known else one.slots))
                for line, one in bridges.items()
            },
        }
        plan = AheadOfTime()
        for one in held.values():
            prepare(plan, self.model, self.ctx.prompt, beside, one, cfg.steps)
        for line, reader in readers.items():
            self.asker.prepare(plan, reader, line != "text_tuned")
        plan.compile(self.probed.console)
        for line, reader in readers.items():
            self._count(line, reader)
        path = self._write(names)
        for r in cfg.ratios:
            for how in cfg.starts:
                line = f"oracle_{r:g}_{how}"
                total = len(held[r, how]) * cfg.steps
                with progress(self.probed.console, line, total) as step:
                    found, curve = descend(
                        self.model, self.ctx.prompt, beside, held[r, how], cfg.steps, cfg.lr, unit,
                        step,
                    )  # fmt: skip
                self.more["curves"][line] = curve
                self._count(line, Reader(self.ctx.prompt, self._free(found, beside)))
                names.setdefault(r, []).append(line)
                path = self._write(names)
        show(self.probed.console, f"receiver {self.probed.receiver}", self._lines(names))
        return path

    # Rows

    def _passages(self) -> list[Passage]:
        """Passages that sender and receiver can read, spread evenly over the data."""
        probed, cfg = self.probed, self.cfg
        layout = probed.wire.pipeline.layout
        groups = sample(load_rows(probed.config.data, "eval", cfg.seed), MOST)
        fits = probed.wire.pipeline.collate([(g[0],) for g in groups])([(g[0],) for g in groups])
        groups = [g for g, fit in zip(groups, fits["valid"], strict=True) if fit]
        found: list[Passage] = []
        order = np.linspace(0, len(groups) - 1, min(len(groups), cfg.passages)).astype(int)
        for i in dict.fromkeys(order.tolist()):
            if not probed.fits(groups[i][0]):
                continue
            one = passage(layout, self.tokenizer, groups[i], cfg.anchor, self.gaps, cfg.seed)
            found += [] if one is None else [one]
        if len(found) < 2:
            raise UserError("probe oracle: fewer than two passages that both models can read")
        return found

    def _askings(self) -> list[Asking]:
        """All questions about the passages; none where the receiver is asked none."""
        if not self.probed.asks:
            return []
        layout = self.probed.wire.pipeline.layout
        rows = [(i, row) for i, one in enumerate(self.passages) for row in one.rows]
        pairs = [(row.question, row.answers[0]) for _, row in rows]
        asked = split_joint(layout, self.tokenizer, pairs)
        return [Asking(i, row, a) for (i, row), a in zip(rows, asked, strict=True) if a is not None]

    # What the receiver is given

    def _words(self, at: Sequence[int]) -> Message:
        laid = segment([self.passages[i].words for i in at], up(self.lengths), "message")
        assert laid.ids is not None
        return Message(text_message(laid.ids, laid.lengths))

    def _free(
        self, slots: Mapping[int, np.ndarray] | Sequence[np.ndarray], beside: Delivery
    ) -> Callable[[Sequence[int]], Message]:
        def message(at: Sequence[int]) -> Message:
            x, mask = filled([slots[i] for i in at], self.most)
            return answer.alone(self.model, delivered(x, mask, beside), len(at))

        return message

    def _tuned(self, place: str) -> Reader:
        """The receiver as another run tuned it for reading the text."""
        pipeline = self.probed.wire.pipeline
        groups = [(one.rows[0],) for one in self.passages]
        rival = rivals.load("text", place, pipeline, groups, "last")
        if not rival.pipeline.layout.with_text:
            raise UserError(
                f"text: {place}: its receiver does not read the text (layout.with_text)"
            )
        receiver, frozen = self.probed.receiver, rival.pipeline.frozen
        ctx = EvalContext(frozen, rival.trained.params, None, rival.pipeline.bridge, receiver)

        def message(at: Sequence[int]) -> Message:
            batch = put_batch(pipeline.mesh, rival.collate([groups[i] for i in at]))
            return _of_text(ctx, batch)

        return Reader(ctx.prompt, message)

    def _bridges(self) -> dict[str, _Bridge]:
        """What the bridge delivers, by line: at each ratio that it sends at; of a bridge with one
        number of slots that alone."""
        low, high = (min(self.known), max(self.known)) if self.known else (0.0, 0.0)
        sends: dict[str, float | None] = {
            f"bridge_{r:g}": r for r in self.cfg.ratios if low <= r <= high
        }
        if not sends:  # its highest is what others begin as
            sends = {f"bridge_{high:g}": high} if self.known else {"bridge": None}
        own = self.ctx.bridge
        each = {
            line: replace(self.ctx, bridge=own if ratio is None else own.at_ratio(ratio))
            for line, ratio in sends.items()
        }
        plan, held = AheadOfTime(), list(self._texts())
        for ctx in each.values():
            plan.add(packets.encode, ctx, held[0][1])
        plan.compile(self.probed.console)
        return {line: _Bridge(self.ctx, self._sent(ctx, held)) for line, ctx in each.items()}

    def _texts(self) -> Iterator[tuple[int, Any]]:
        """The passages as the sender reads them, in batches of one shape, each after the number of
        its first."""
        pipeline = self.probed.wire.pipeline
        groups = [(one.rows[0],) for one in self.passages]
        collate = pipeline.collate(groups)
        for at, _ in in_turn(len(groups), min(self.cfg.batch_size, len(groups))):
            yield at[0], put_batch(pipeline.mesh, collate([groups[i] for i in at]))

    def _sent(self, ctx: EvalContext, texts: Sequence[tuple[int, Any]]) -> list[Latent]:
        """The latents of the passages as their packets hold them."""
        held = packets.send(
            ctx,
            texts,
            rows=len(self.passages),
            codecs=(),
            mark=self.probed.wire.trained.mark,
            looked=lambda _: False,
            clock=time.monotonic,
        )
        return [held.received(None, [i]) for i in range(len(self.passages))]

    # How the optimisation begins

    def _begun(self, ratio: float, bridges: dict[str, _Bridge]) -> list[np.ndarray]:
        """[M, D] soft tokens of each passage that stand for what the bridge delivers: that where it
        sends at this ratio, else means of neighbours of what it sends at the next lower one."""
        own = bridges.get(f"bridge_{ratio:g}")
        soft = (own or min(bridges.values(), key=lambda one: one.slots)).soft()
        if own is not None and soft:
            return soft
        sizes = [int(np.ceil(n / ratio)) for n in self.lengths]
        if not soft:
            return [np.zeros((m, self.model.params["embed"].shape[1])) for m in sizes]
        return [_pooled(x, m) for x, m in zip(soft, sizes, strict=True)]

    def _unit(self, one: _Bridge) -> float:
        """The loudness of the bridge's soft tokens; where it has none, of the embeddings."""
        soft = one.soft()
        if not soft:
            if "bridge" in self.cfg.starts:
                raise UserError("starts: this bridge delivers no soft tokens; give words or random")
            return self.ctx.bridge.dims.receivers[self.probed.receiver].embed_rms
        return float(np.sqrt(np.mean(np.concatenate(soft) ** 2)))

    def _start(self, how: str, begun: Sequence[np.ndarray], unit: float) -> list[np.ndarray]:
        """What the soft tokens of each passage begin as."""
        if how == "bridge":
            return list(begun)
        table, rng = embedding_table(self.model.params), np.random.default_rng(self.cfg.seed)
        found = []
        for one, like in zip(self.passages, begun, strict=True):
            m = len(like)
            ids = one.words if how == "words" else rng.integers(0, table.shape[0], m)
            rows = np.asarray(jnp.take(table, jnp.asarray(ids), axis=0), np.float32)
            rows = _pooled(rows, m)
            rms = np.sqrt(np.mean(rows**2, axis=1, keepdims=True))
            found.append(unit * rows / np.maximum(rms, 1e-9))
        return found

    # What is said

    def _count(self, line: str, reader: Reader) -> None:
        self.counted[line] = self.asker.count(line, reader, line != "text_tuned")
        self.more["wrote"][line] = self.counted[line].wrote[:3]

    def _lines(self, names: dict[float, list[str]]) -> Lines:
        """All figures; what a ratio's better oracle leaves of the text, and the bridge of it."""
        lines = {name: self._figures(one) for name, one in self.counted.items()}
        best_text = self.counted.get("text_tuned", self.counted["text"])
        for r, found in names.items():
            best = min(found, key=lambda line: self.counted[line].mean("nats_a_token"))
            self.more["best_start"][f"{r:g}"] = best
            oracle = self.counted[best]
            text = {"nats_a_token": self.counted["text"], "token_match": self.counted["text"]}
            lines[f"text_minus_oracle_{r:g}"] = {
                name: self._apart(text.get(name, best_text), oracle, name) for name in oracle.sums
            }
            bridge = self.counted.get(f"bridge_{r:g}")
            if bridge is not None:
                lines[f"oracle_minus_bridge_{r:g}"] = {
                    name: self._apart(oracle, bridge, name) for name in oracle.sums
                }
        return lines

    def _figures(self, one: Counted) -> dict[str, Figure]:
        held = {
            name: figure(total, self.cfg.seed, one.parts[name], share=name in SHARES)
            for name, total in one.sums.items()
        }
        if one.columns.sum():
            held["tokens_a_column"] = figure(self.lengths, self.cfg.seed, one.columns, share=False)
        return held

    def _apart(self, one: Counted, other: Counted, name: str) -> Figure:
        """One minus the other, passage by passage."""
        return figure(
            one.sums[name] - other.sums[name], self.cfg.seed, one.parts[name], share=False
        )

    def _write(self, names: dict[float, list[str]]) -> Path:
        return write(
            self.probed,
            "oracle",
            self.cfg,
            self._lines(names),
            time.monotonic() - self.began,
            {
                "passages": len(self.passages),
                "tokens_a_passage": float(self.lengths.mean()),
                "questions": len(self.askings),
                **self.more,
            },
        )


class _Bridge:
    """What a bridge delivers for each passage.

    Args:
        ctx: the bridge.
        latents: of the passages.
    """

    def __init__(self, ctx: EvalContext, latents: Sequence[Latent]) -> None:
        self.ctx, self.latents, self.slots = ctx, latents, most_slots(latents)
        self.delivery = handed(ctx, batched(latents[:1], self.slots))

    def filled(self, size: int) -> Callable[[Sequence[int]], Message]:
        """What passages of these numbers are given, with masked slots up to `size`."""

        def message(at: Sequence[int]) -> Message:
            latents = batched([self.latents[i] for i in at], size)
            return answer.alone(self.ctx.model, handed(self.ctx, latents), len(at))

        return message

    def soft(self) -> list[np.ndarray]:
        """[M, D] soft tokens of each passage; none: it delivers none."""
        found = []
        for i in range(len(self.latents)):
            one = handed(self.ctx, batched([self.latents[i]], self.slots))
            if one.embeds is None:
                return []
            x = np.asarray(one.embeds, np.float32)[0]
            found.append(x if one.mask is None else x[np.asarray(one.mask)[0]])
        return found


def _beside(one: _Bridge) -> Delivery:
    """What a bridge gives before every message alike: its soft prompt and its LoRA."""
    edits = one.delivery.edits
    lora = None if edits is None or edits.lora is None else Edits(lora=edits.lora)
    return Delivery(prompt=one.delivery.prompt, edits=lora)


@jax.jit
def _of_text(ctx: EvalContext, batch: Any) -> Message:
    return ctx.delivered(batch, ctx.encode(batch))


def _pooled(x: np.ndarray, size: int) -> np.ndarray:
    """[m, D] -> [size, D]: means of neighbours; where there are too few, some stand twice."""
    edges = np.linspace(0, len(x), size + 1)
    low = np.minimum(np.floor(edges[:-1]).astype(int), len(x) - 1)
    high = np.maximum(np.ceil(edges[1:]).astype(int), low + 1)
    return np.stack([x[a:b].mean(axis=0) for a, b in zip(low, high, strict=True)])
