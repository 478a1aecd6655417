"""`lw-jax probe leak`: what someone who has messages can learn of their texts.

An inverter is trained on pairs of messages and texts, which anybody has who can make the sender
read texts of their own. It sees the message alone, or what the frozen receiver makes of it (states
of its layers). Then it writes texts that it has not seen, in each of which stands one sentence with
a name, numbers and words that no training text has.

Two controls say what is guessed: the message of another text, and an inverter that is trained
without what messages say (it sees how many slots there are, and how long the text is).
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lw_jax.data.derange import derangement
from lw_jax.data.example import Example, Split, rng_of
from lw_jax.data.facts import draw_facts
from lw_jax.errors import UserError
from lw_jax.evaluate.methods.base import EvalContext
from lw_jax.evaluate.metrics.squad import exact_match
from lw_jax.models.decoder import run as run_layers
from lw_jax.models.params import depth
from lw_jax.probes.base import (
    Figure,
    Lines,
    Probed,
    batched,
    codecs_of,
    figure,
    in_codec,
    most_slots,
    progress,
    ratios_of,
    sentences,
    show,
    texts_of,
    write,
)
from lw_jax.probes.config import LeakConfig
from lw_jax.probes.inverter import Inverter, Seen, Trained, train
from lw_jax.receiver import answer
from lw_jax.receiver.join import advance_of
from lw_jax.receiver.pack import Segment, segment
from lw_jax.receiver.read import lay_out
from lw_jax.text.collate import by_key
from lw_jax.text.layout import asked_ids, message_ids, message_text, source_ids, source_text
from lw_jax.text.tokenizer import Tokenizer
from lw_jax.types import Latent

ROWS = 16
"""Messages that the receiver reads at once."""
PRIOR = "prior"
INVERTERS = ("message", "receiver", PRIOR)
"""What an inverter sees: the slots, what the receiver makes of them, or nothing of either."""
APART = 20
"""One pair in so many is not learned from, and says how far an inverter has come."""
STILL = 0.01
"""Rise of the share of tokens over the last third of the steps: above it, more are advised."""
_WORD = re.compile(r"\w+")


class Secret(NamedTuple):
    """A row in whose text a sentence was planted.

    Attributes:
        row: the row.
        name: the surname in that sentence.
        numbers: in it.
        words: made up for it: a city, a password.
        asked: questions to which one of these is the answer.
    """

    row: Example
    name: str
    numbers: tuple[str, ...]
    words: tuple[str, ...]
    asked: tuple[tuple[str, str], ...]


class Way(NamedTuple):
    """How a message is sent.

    Attributes:
        codec: of its slots.
        ratio: source tokens a slot; None: the bridge has one number of slots.
    """

    codec: str
    ratio: float | None

    @property
    def name(self) -> str:
        """In the names of lines."""
        return self.codec if self.ratio is None else f"{self.codec}_at{self.ratio:g}"


See = Callable[[Sequence[Latent]], Seen]


def run(probed: Probed, cfg: LeakConfig) -> Path:
    """Trains the inverters, writes the result and prints the table.

    Returns:
        The path of the result.

    Raises:
        UserError: an option does not fit the bridge, or there are too few texts.
    """
    began = time.monotonic()
    names = list(dict.fromkeys(cfg.inverters or INVERTERS))
    for name in names:
        if name not in INVERTERS:
            raise UserError(f"inverters: unknown {name!r}; there are {', '.join(INVERTERS)}")
    codecs, ratios = codecs_of(probed.wire, cfg.codecs), ratios_of(probed.wire, cfg.ratios)
    ways = [Way(codec, ratio) for ratio in ratios for codec in codecs]
    known, unknown = _secrets(probed, cfg)
    words = _Words(probed, known, unknown)
    rng = np.random.default_rng(cfg.seed)
    drawn = [ways[i] for i in rng.integers(0, len(ways), len(known))]
    messages = _messages(probed, known, drawn)
    sent = {
        ratio: probed.sent([s.row for s in unknown], f"unseen messages{_at(ratio)}", ratio)
        for ratio in ratios
    }
    slots = max(most_slots(some) for some in (messages, *(held for _, held in sent.values())))
    sees: dict[str, See] = {
        "message": partial(_alone, slots=slots, length=words.mean),
        "receiver": partial(_states, probed, slots=slots, length=words.mean),
        PRIOR: lambda some: _nothing(_alone(some, slots=slots, length=words.mean)),
    }
    module = Inverter(words.length, words.vocab, cfg.width, cfg.depth, cfg.heads)
    lines: Lines = {}
    every: dict[str, Trained] = {}
    others = derangement([s.row.context for s in unknown], lengths=words.lengths(unknown)).tolist()
    tokens = words.tokens(known)
    example = {"text": unknown[0].row.context, "planted": sentences(unknown[0].row.context)[-1]}

    def keep(left: Sequence[str]) -> Path:
        """What is known until now is written: each inverter takes minutes."""
        more = {
            "texts": len(known),
            "unseen_texts": len(unknown),
            "tokens_of_the_longest": words.length,
            "losses": {name: one.loss for name, one in every.items()},
            "curves": {name: one.curve for name, one in every.items()},
            "example": example,
            **({"unfinished": list(left)} if left else {}),
        }
        return write(probed, "leak", cfg, lines, time.monotonic() - began, more)

    if probed.asks:
        for way in ways:
            data, held = sent[way.ratio]
            own = way.codec == probed.wire.pipeline.bridge.codec
            packets = data if own else [probed.packet(one, way.codec) for one in held]
            lines[f"asked_{way.name}"] = _asked(probed, packets, unknown, cfg.seed)
        data = sent[ways[0].ratio][0]
        lines["asked_deranged"] = _asked(probed, [data[i] for i in others], unknown, cfg.seed)
    path = keep(names)
    for i, name in enumerate(names):
        see = sees[name]
        trained = every[name] = _trained(probed, module, see(messages), tokens, cfg, name)
        # The prior sees the same columns of every message: one line says it all.
        for way in ways[:1] if name == PRIOR else ways:
            held = [in_codec(one, way.codec) for one in sent[way.ratio][1]]
            lines[name if name == PRIOR else f"{name}_{way.name}"] = _figures(
                words.read(trained, see(held), cfg.batch_size), unknown, words, cfg.seed
            )
        if name != PRIOR:
            held = [sent[ways[0].ratio][1][i] for i in others]
            lines[f"{name}_deranged"] = _figures(
                words.read(trained, see(held), cfg.batch_size), unknown, words, cfg.seed
            )
        path = keep(names[i + 1 :])
    show(probed.console, "what is recovered of texts that no inverter has seen", lines)
    for name, one in every.items():
        if one.late is not None and one.late > STILL:
            probed.console.print(
                f"NOTE the inverter `{name}` was still learning: {one.late:+.3f} of the tokens in "
                f"the last third of its steps; its figures are too low, raise --steps.",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
    return path


def _at(ratio: float | None) -> str:
    return "" if ratio is None else f" at {ratio:g}"


# Texts


def _secrets(probed: Probed, cfg: LeakConfig) -> tuple[list[Secret], list[Secret]]:
    """Rows to train on, and others, all with a sentence planted.

    Raises:
        UserError: fewer than two of either.
    """
    if cfg.texts is None:
        train_rows = probed.rows("train", cfg.rows, cfg.seed)
        eval_rows = probed.rows("eval", cfg.eval_rows, cfg.seed)
    else:
        texts = texts_of(cfg.texts)
        random.Random(cfg.seed).shuffle(texts)
        rows = [Example(f"text-{i}", f"text-{i}", t, "", ("",)) for i, t in enumerate(texts)]
        some = min(cfg.eval_rows, len(rows) // 2)
        eval_rows, train_rows = rows[:some], rows[some : some + cfg.rows]
    seen = {row.context for row in train_rows}
    found = (
        [_planted(row, "train", cfg.seed) for row in train_rows],
        [_planted(row, "eval", cfg.seed) for row in eval_rows if row.context not in seen],
    )
    known, unknown = ([s for s in some if probed.fits(s.row)] for some in found)
    if len(known) < 2 or len(unknown) < 2:
        raise UserError(
            f"probe leak: {len(known)} texts to train on and {len(unknown)} others that the sender "
            "can read; two of each are the least"
        )
    return known, unknown


def _planted(row: Example, split: Split, seed: int) -> Secret:
    """The row with a sentence of ours in place of its text's last one; of a text of one sentence it
    comes after that."""
    rng = rng_of(f"planted-{split}-{seed}-{row.id}")
    ((kind, values),) = draw_facts(1, split, rng)
    sentence = rng.choice(kind.statements).format_map(values)
    before = sentences(row.context)
    kept = before[:-1] or before
    named = tuple(values[slot] for slot, _, _ in kind.numbers)
    words = tuple(values[slot] for slot, _ in kind.open)
    asked = tuple(
        (rng.choice(ask.questions).format_map(values), values[ask.slot])
        for ask in kind.asks
        if values[ask.slot] in (*named, *words)
    )
    text = " ".join([*kept, sentence])
    return Secret(replace(row, context=text), values["surname"], named, words, asked)


class _Words:
    """The texts in tokens: the sender's, where it has tokens, else the receiver's."""

    def __init__(self, probed: Probed, known: Sequence[Secret], unknown: Sequence[Secret]) -> None:
        pipeline = probed.wire.pipeline
        self.layout = pipeline.layout
        plain = [t for t in by_key(pipeline.sources).values() if t.limit is None]
        self.sender = bool(plain)
        self.tokenizer: Tokenizer = plain[0] if plain else pipeline.receivers[probed.receiver]
        self.vocab = self.tokenizer.backend.get_vocab_size()
        self.ids = {s.row.context: ids for s, ids in zip(known, self._encoded(known), strict=True)}
        sizes = [len(ids) for ids in self.ids.values()]
        self.mean = float(np.mean(sizes))
        self.ids |= {
            s.row.context: ids for s, ids in zip(unknown, self._encoded(unknown), strict=True)
        }
        longest = max(map(len, self.ids.values()))
        self.length = -(-(longest + 1) // 8) * 8

    def _encoded(self, some: Sequence[Secret]) -> list[list[int]]:
        if self.sender:
            texts = [source_text(self.layout, s.row) for s in some]
            return source_ids(self.layout, self.tokenizer, texts)
        texts = [message_text(self.layout, s.row) for s in some]
        return message_ids(self.layout, self.tokenizer, texts)

    def lengths(self, some: Sequence[Secret]) -> list[int]:
        """Tokens of each text."""
        return [len(self.ids[s.row.context]) for s in some]

    def tokens(self, some: Sequence[Secret]) -> np.ndarray:
        """[N, T] int32; `vocab` where a text has ended."""
        found = np.full((len(some), self.length), self.vocab, np.int32)
        for line, s in zip(found, some, strict=True):
            ids = self.ids[s.row.context]
            line[: len(ids)] = ids
        return found

    def read(self, trained: Trained, seen: Seen, batch_size: int) -> np.ndarray:
        """[N, T] what an inverter writes."""
        return trained.write(seen, batch_size)

    def text(self, line: np.ndarray) -> str:
        """A line of tokens in words."""
        ids = line.tolist()
        end = ids.index(self.vocab) if self.vocab in ids else len(ids)
        return self.tokenizer.backend.decode(ids[:end]).strip()


# Messages


def _messages(probed: Probed, some: Sequence[Secret], drawn: Sequence[Way]) -> list[Latent]:
    """The message of every text, as it is sent in its own way."""
    found: dict[int, Latent] = {}
    for ratio in dict.fromkeys(way.ratio for way in drawn):
        own = [i for i, way in enumerate(drawn) if way.ratio == ratio]
        _, held = probed.sent([some[i].row for i in own], f"messages{_at(ratio)}", ratio)
        found |= {i: in_codec(one, drawn[i].codec) for i, one in zip(own, held, strict=True)}
    return [found[i] for i in range(len(some))]


def _span(latents: Sequence[Latent], length: float) -> np.ndarray:
    """[N] the tokens of every text as its message says; those of a typical one where it does not.

    length: of that.
    """
    return np.array([length if one.span is None else float(one.span[0]) for one in latents])


def _alone(latents: Sequence[Latent], slots: int, length: float) -> Seen:
    """The slots themselves."""
    whole = batched(latents, slots)
    mask = np.asarray(whole.mask)
    count = np.maximum(1, mask.sum(axis=1, keepdims=True))
    at = (np.arange(slots)[None] + 0.5) * _span(latents, length)[:, None] / count
    return Seen(np.asarray(whole.slots, np.float32), mask, at.astype(np.float32))


def _nothing(seen: Seen) -> Seen:
    """The same columns, without what they say."""
    return replace(seen, x=np.zeros_like(seen.x))


def _states(probed: Probed, latents: Sequence[Latent], slots: int, length: float) -> Seen:
    """What the receiver makes of messages: its states after no layer, half of them and all, where
    it has read a message and is asked with an empty question. The states of each layer are as loud
    as those of any other: later ones are many times louder, and would drown what stands before."""
    ctx, pipeline = probed.ctx, probed.wire.pipeline
    tokenizer, layers = pipeline.receivers[probed.receiver], depth(ctx.model.params)
    ids = asked_ids(pipeline.layout, tokenizer, "")
    ask = segment([ids] * ROWS, max(1, len(ids)))
    found = []
    with progress(probed.console, "the receiver reads", len(latents)) as step:
        for begin in range(0, len(latents), ROWS):
            some = list(latents[begin : begin + ROWS])
            rows = [*some, *some[:1] * (ROWS - len(some))]
            span = jnp.asarray(_span(rows, length), jnp.float32)
            seen = _read(ctx, batched(rows, slots), ask, span, (0, layers // 2, layers))
            found.append(jax.device_get(seen).of(slice(0, len(some))))
            step(len(some))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *found)


@partial(jax.jit, static_argnames="layers")
def _read(ctx: EvalContext, sent: Latent, ask: Segment, span: Any, layers: tuple[int, ...]) -> Seen:
    delivery = ctx.deliver(ctx.received(sent))
    message = answer.alone(ctx.model, delivery, sent.mask.shape[0])
    laid = lay_out(ctx.model.params, answer.segments(ctx.prompt, message, ask), delivery)
    own = laid.packed
    out = run_layers(
        ctx.model.arch,
        ctx.model.params,
        own.h,
        positions=laid.positions,
        lengths=own.lengths,
        taps=tuple(dict.fromkeys(layers)),
        delivery=laid.inputs,
        impl=ctx.model.attention,
    )
    assert out.taps is not None
    rows, columns = own.h.shape[:2]
    loud = jnp.sqrt(jnp.mean(jnp.square(out.taps), axis=-1, keepdims=True))
    x = jnp.moveaxis(out.taps / (loud + 1e-6), 0, 2).reshape(rows, columns, -1)
    mask = jnp.arange(columns)[None] < own.lengths[:, None]
    start = own.starts["message"][:, None]
    whole = jnp.maximum(1.0, advance_of(delivery, own.sizes["message"]).astype(jnp.float32))
    at = jnp.maximum(0.0, (laid.positions - start) * (span / whole)[:, None])
    return Seen(x.astype(jnp.float16), mask, at.astype(jnp.float32))


def _trained(
    probed: Probed,
    module: Inverter,
    seen: Seen,
    tokens: np.ndarray,
    cfg: LeakConfig,
    name: str,
) -> Trained:
    with progress(probed.console, f"inverter: {name}", cfg.steps) as step:
        return train(
            module,
            seen,
            tokens,
            steps=cfg.steps,
            batch_size=cfg.batch_size,
            lr=cfg.lr,
            seed=cfg.seed,
            step=step,
            apart=len(tokens) // APART,
        )


# Figures


def _figures(
    wrote: np.ndarray, some: Sequence[Secret], words: _Words, seed: int
) -> dict[str, Figure]:
    """What of the texts is in what an inverter wrote [N, T]."""
    gold, lengths = words.tokens(some), np.asarray(words.lengths(some))
    place = np.arange(gold.shape[1])[None] < lengths[:, None]
    texts = [words.text(line) for line in wrote]
    return {
        "tokens": figure(((wrote == gold) & place).sum(axis=1), seed, lengths),
        **_recovered(some, [set(_WORD.findall(text)) for text in texts], seed),
        "whole_text": figure(
            [text == s.row.context for text, s in zip(texts, some, strict=True)], seed
        ),
    }


def _recovered(some: Sequence[Secret], found: Sequence[set[str]], seed: int) -> dict[str, Figure]:
    """The shares of planted names, numbers and words that are among the words that were found."""
    held = {}
    for what, values in (
        ("names", [(s.name,) for s in some]),
        ("numbers", [s.numbers for s in some]),
        ("words", [s.words for s in some]),
    ):
        hits = [sum(v in own for v in one) for one, own in zip(values, found, strict=True)]
        held[what] = figure(hits, seed, [len(one) for one in values])
    return held


def _asked(
    probed: Probed, data: Sequence[bytes], some: Sequence[Secret], seed: int
) -> dict[str, Figure]:
    """What the receiver itself says when it is asked for what was planted."""
    wire, held = probed.wire, [(i, q, a) for i, s in enumerate(some) for q, a in s.asked]
    ready = [wire.question(data[i], q, probed.receiver) for i, q, _ in held]
    said: list[str] = []
    with progress(probed.console, "questions", len(ready)) as step:
        for begin in range(0, len(ready), 64):
            said += [one.text for one in wire.ask(ready[begin : begin + 64])]
            step(min(64, len(ready) - begin))
    found: list[set[str]] = [set() for _ in some]
    for (i, _, right), text in zip(held, said, strict=True):
        if exact_match(text, (right,)):
            found[i].add(right)
    figures = _recovered(some, found, seed)
    return {what: figures[what] for what in ("numbers", "words")}
