"""Who is meant: which pieces of a person's surname a model's states hold, place by place.

    python benchmarks/binding.py

A value of the facts can only be asked for by its person, so somewhere between sender and receiver
the two must be bound. For each model that ships, a linear (ridge) classifier reads the first and
the last piece of the surname off the hidden states after 0, 1, ... layers:

* in a context of six sentences: at the surname's end, at the sentence's value, at its full stop;
* in a question without its context: at the last token before the answer.

Accuracy among the 15 most frequent pieces, on the last 30 % of the rows (their number in brackets);
chance is about 0.08.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from lw_jax.data.facts import draw_facts
from lw_jax.mesh import MeshConfig, make_mesh
from lw_jax.models.config import ModelConfig
from lw_jax.models.decoder import embed_tokens, run
from lw_jax.models.frozen import FrozenDecoder
from lw_jax.models.params import depth
from lw_jax.models.spec import open_model
from lw_jax.models.tokenizer import load_tokenizer

MODELS = ("zoo/tiny-llama", "zoo/tiny-mistral", "zoo/tiny-qwen")
CONTEXTS, QUESTIONS, ROWS = 1200, 3000, 200
CLASSES, RIDGE, TRAINED = 15, 30.0, 0.7

States = NDArray[np.float32]


def states(
    model: FrozenDecoder, rows: Sequence[Sequence[int]], at: Sequence[tuple[int, int]]
) -> States:
    """Hidden states [layers + 1, places, D] at (row, token) places."""
    ids = np.zeros((len(rows), max(map(len, rows))), np.int32)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    lengths = np.asarray([len(row) for row in rows], np.int32)
    taps = tuple(range(depth(model.params) + 1))

    @partial(jax.jit, static_argnums=0)
    def tapped(arch: Any, params: Any, ids: jax.Array, lengths: jax.Array) -> jax.Array:
        positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
        h = embed_tokens(params, ids)
        found = run(arch, params, h, positions=positions, lengths=lengths, taps=taps).taps
        assert found is not None
        return found

    places = np.asarray(at)
    found = []
    for start in range(0, len(rows), ROWS):
        here = places[(places[:, 0] >= start) & (places[:, 0] < start + ROWS)]
        part = tapped(
            model.arch, model.params, ids[start : start + ROWS], lengths[start : start + ROWS]
        )
        found.append(np.asarray(part)[:, here[:, 0] - start, here[:, 1]])
    return np.concatenate(found, axis=1)


def accuracies(h: States, labels: Sequence[int]) -> tuple[list[float], int]:
    """By layer, how often the ridge classifier names the label of held-out places; their number."""
    frequent = [label for label, _ in Counter(labels).most_common(CLASSES)]
    kept = np.asarray([label in frequent for label in labels])
    y = np.asarray([frequent.index(label) for label in labels if label in frequent])
    split = int(TRAINED * len(y))
    found = []
    for layer in h[:, kept]:
        x = (layer - layer.mean(0)) / (layer.std(0) + 1e-6)
        x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
        gram = x[:split].T @ x[:split] + RIDGE * np.eye(x.shape[1])
        weights = np.linalg.solve(gram, x[:split].T @ np.eye(CLASSES)[y[:split]])
        found.append(float(np.mean((x[split:] @ weights).argmax(1) == y[split:])))
    return found, len(y) - split


def contexts(tokenizer: Any) -> tuple[list[list[int]], dict[str, list[tuple[int, int]]], list[str]]:
    """Token ids, the places looked at, and the surname of every sentence."""
    rng = random.Random(5)
    rows: list[list[int]] = []
    places: dict[str, list[tuple[int, int]]] = {"surname's end": [], "value": [], "full stop": []}
    surnames = []
    for i in range(CONTEXTS):
        facts = draw_facts(6, "train", rng)
        said = [rng.choice(kind.statements).format_map(values) for kind, values in facts]
        text = " ".join(said)
        coded = tokenizer(text, return_offsets_mapping=True)
        rows.append(coded["input_ids"])
        starts = [start for start, _ in coded["offset_mapping"]]
        begin = 0
        for sentence, (_, values) in zip(said, facts, strict=True):
            begin = text.index(sentence, begin)
            name, value = values["surname"], list(values.values())[-1]
            ends = {
                "surname's end": sentence.index(name) + len(name),
                "value": sentence.rindex(value) + len(value),
                "full stop": len(sentence),
            }
            for place, end in ends.items():
                token = max(j for j, start in enumerate(starts) if start < begin + end)
                places[place].append((i, token))
            surnames.append(name)
    return rows, places, surnames


def questions(tokenizer: Any) -> tuple[list[list[int]], list[tuple[int, int]], list[str]]:
    """Token ids of questions without a context, their last tokens, and whom they ask about."""
    rng = random.Random(3)
    rows, surnames = [], []
    while len(rows) < QUESTIONS:
        for kind, values in draw_facts(2, "train", rng):
            ask = rng.choice([ask for ask in kind.asks if ask.slot != "who"])
            asker = values | {"who": values["surname"]}
            asked = rng.choice(ask.questions).format_map(asker)
            rows.append(tokenizer.encode(f"Context:\nQuestion: {asked}\nAnswer:"))
            surnames.append(values["surname"])
    return rows, [(i, len(row) - 1) for i, row in enumerate(rows)], surnames


def main() -> None:
    mesh = make_mesh(MeshConfig(data=1, model=1))
    table = Table(title="Accuracy after 0, 1, ... layers", title_justify="left")
    for heading in ("model", "where", "first piece of the surname", "last piece"):
        table.add_column(heading)
    for path in MODELS:
        model = open_model("model", ModelConfig(path, dtype="float32")).load(mesh)
        assert isinstance(model, FrozenDecoder)
        tokenizer = load_tokenizer(path)
        rows, places, told = contexts(tokenizer)
        asked, last, whom = questions(tokenizer)
        looked = [(f"context, {place}", rows, at, told) for place, at in places.items()]
        for where, ids, at, names in [*looked, ("question, last token", asked, last, whom)]:
            h = states(model, ids, at)
            pieces = [tokenizer.encode(f" {n}", add_special_tokens=False) for n in names]
            cells = [accuracies(h, [p[end] for p in pieces]) for end in (0, -1)]
            table.add_row(
                path, where, *[f"{' '.join(f'{a:.3f}' for a in found)} ({n})" for found, n in cells]
            )
    Console().print(table)


if __name__ == "__main__":
    main()
