"""How far `quant: float8` moves two real models: what a teacher says, what a bridge reads and gets.

    python -m benchmarks.float8 SENDER.gguf RECEIVER.gguf QA.json --rows 1000 --out FILE.json

The same weights are read in bfloat16 and as 8-bit floats. Of questions on texts (SQuAD's form): the
divergence of the receiver's next tokens in the answers, how often the most probable one is the
same, the cosine of its loss's gradient by the text's embeddings, which is where soft tokens stand;
and of both models the cosine of the states after every layer.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.machine import measured_on
from lw_jax.data import squad
from lw_jax.data.config import DataConfig
from lw_jax.data.load import load_rows, sample
from lw_jax.mesh import MeshConfig, make_mesh
from lw_jax.models import head
from lw_jax.models.config import ModelConfig
from lw_jax.models.decoder import embed_tokens, run
from lw_jax.models.frozen import FrozenDecoder
from lw_jax.models.spec import open_model
from lw_jax.text.tokenizer import Tokenizer
from lw_jax.types import Array

WANTED = {"divergence": 0.01, "agreement": 0.99, "taps": 0.999, "gradient": 0.98}
"""What was asked for: nats at most; shares and cosines at least."""
WIDEST = 16
"""Tokens of an answer that are looked at, at most."""


@dataclass(frozen=True)
class Texts:
    """Rows of one length, padded behind.

    Attributes:
        ids: tokens [N, T].
        lengths: real ones [N].
        begin: where the question begins [N].
        answer: where the answer begins [N].
    """

    ids: np.ndarray
    lengths: np.ndarray
    begin: np.ndarray
    answer: np.ndarray


def texts(tokenizer: Tokenizer, data: str, rows: int, limit: int) -> Texts:
    """Contexts with their first question and answer; those of more than `limit` tokens are left
    out."""
    source = load_rows(DataConfig(squad=squad.Config(train=data, eval=None)), "train", 0)
    kept = []
    for one, *_ in sample(source, rows):
        parts = (one.context, f"\n{one.question}\n", one.answers[0])
        row = [tokenizer.encode(part) for part in parts]
        if sum(map(len, row)) <= limit:
            kept.append(row)
    ids = np.zeros((len(kept), limit), np.int32)
    for i, row in enumerate(kept):
        ids[i, : sum(map(len, row))] = [*row[0], *row[1], *row[2]]
    sizes = np.asarray([[len(part) for part in row] for row in kept]).cumsum(axis=1)
    return Texts(ids, sizes[:, 2], sizes[:, 0], sizes[:, 1])


def _states(model: FrozenDecoder, h: Array, lengths: Array) -> Array:
    """[layers, B, T, D] after every layer."""
    at = jnp.broadcast_to(jnp.arange(h.shape[1])[None], h.shape[:2])
    every = tuple(range(1, model.arch.layers + 1))
    own = partial(run, model.arch, model.params, impl=model.attention)
    found = own(h, positions=at, lengths=lengths, taps=every).taps
    assert found is not None
    return found


def _cosine(a: Array, b: Array, axes: int | tuple[int, ...] = -1) -> Array:
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    size = jnp.sqrt((a * a).sum(axes) * (b * b).sum(axes))
    return (a * b).sum(axes) / jnp.maximum(size, 1e-30)


@jax.jit
def _taps(models: Any, ids: Array, lengths: Array) -> Array:
    """[layers] cosines of the states of real tokens, summed."""
    exact, own = (_states(model, embed_tokens(model.params, ids), lengths) for model in models)
    real = jnp.arange(ids.shape[1])[None] < lengths[:, None]
    return jnp.where(real, _cosine(exact, own), 0).sum((1, 2))


@jax.jit
def _said(models: Any, ids: Array, lengths: Array, begin: Array, answer: Array) -> Any:
    """Of a batch: divergence and agreement summed over answer tokens, cosines of gradients [B]."""
    place = jnp.arange(ids.shape[1])[None]
    told = (place >= answer[:, None] - 1) & (place < lengths[:, None] - 1)

    def loss(h: Array, model: FrozenDecoder) -> tuple[Array, Array]:
        last = _states(model, h, lengths)[-1]
        some = jnp.minimum(answer[:, None] - 1 + jnp.arange(WIDEST)[None], ids.shape[1] - 1)
        own = jnp.take_along_axis(last, some[..., None], 1)
        flat = head.logits(model.arch, model.params, own.reshape(-1, own.shape[-1]))
        p = jax.nn.log_softmax(flat.astype(jnp.float32)).reshape(*some.shape, -1)
        after = jnp.minimum(some + 1, ids.shape[1] - 1)
        gold = jnp.take_along_axis(ids, after, 1)
        real = jnp.take_along_axis(told, some, 1) & (
            jnp.arange(WIDEST)[None] < told.sum(1)[:, None]
        )
        nll = -jnp.take_along_axis(p, gold[..., None], -1)[..., 0]
        return jnp.where(real, nll, 0).sum(), (p, real)

    both = []
    for model in models:
        h = embed_tokens(models[0].params, ids)
        g, (p, real) = jax.grad(loss, has_aux=True)(h, model)
        both.append((jnp.where((place < begin[:, None])[..., None], g, 0), p, real))
    (g, p, real), (f, q, _) = both
    apart = (jnp.exp(p) * (p - q)).sum(-1)
    same = p.argmax(-1) == q.argmax(-1)
    return (
        jnp.where(real, apart, 0).sum(),
        (real & same).sum(),
        real.sum(),
        _cosine(g, f, (1, 2)),
    )


def compared(
    path: str,
    data: str,
    rows: int,
    limit: int,
    batch: int,
    reads: bool,
    quant: str = "float8",
) -> Any:
    """One model against itself in 8 bits.

    Args:
        path: the model.
        data: questions in SQuAD's form.
        rows: of them, at most.
        limit: tokens of a row.
        batch: rows at once.
        reads: whether it is a receiver, whose answers and gradients count as well.
        quant: how its weights are stored.
    """
    mesh = make_mesh(MeshConfig(data=1))
    specs = [
        open_model("model", ModelConfig(path, "bfloat16", cast(Any, own)))
        for own in ("none", quant)
    ]
    some = texts(specs[0].tokenizer, data, rows, limit)
    models = tuple(spec.load(mesh) for spec in specs)
    count = len(some.ids) - len(some.ids) % batch
    taps, tokens, sums, cosines = np.zeros(0), 0, np.zeros(3), []
    for i in range(0, count, batch):
        at = slice(i, i + batch)
        ids, lengths = jnp.asarray(some.ids[at]), jnp.asarray(some.lengths[at])
        found = np.asarray(_taps(models, ids, lengths))
        taps = found if not i else taps + found
        tokens += int(some.lengths[at].sum())
        if reads:
            *three, each = _said(models, ids, lengths, some.begin[at], some.answer[at])
            sums += np.asarray([float(x) for x in three])
            cosines += np.asarray(each).tolist()
    each = taps / tokens
    row = {
        "model": Path(path).name,
        "rows": count,
        "taps": {"least": float(each.min()), "last": float(each[-1]), "layers": each.tolist()},
    }
    if reads:
        apart, same, answered = sums
        row |= {"answer_tokens": int(answered), "divergence": apart / answered}
        row |= {"agreement": same / answered}
        row["gradient"] = {"mean": float(np.mean(cosines)), "least": float(np.min(cosines))}
    return row


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sender")
    parser.add_argument("receiver")
    parser.add_argument("data")
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--limit", type=int, default=320, help="tokens of a row")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    asked = parser.parse_args()
    given = asked.data, asked.rows, asked.limit, asked.batch
    found = measured_on() | {"wanted": WANTED}
    for name, reads in (("sender", False), ("receiver", True)):
        found[name] = compared(getattr(asked, name), *given, reads)
        asked.out.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
