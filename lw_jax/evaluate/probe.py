"""Linear probes: what a logistic regression reads off the frozen models' mean hidden states.

The rival of a wire that classifies: if a linear map of the sender's states names the label, then
naming it through a receiver shows no more than that (docs/design.md section 12, LatentWire's own
probe).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize  # type: ignore[import-untyped]
from scipy.special import log_softmax  # type: ignore[import-untyped]

from lw_jax.data.example import Example
from lw_jax.errors import UserError
from lw_jax.evaluate import bootstrap
from lw_jax.evaluate.config import ProbeConfig
from lw_jax.evaluate.figures import Asked
from lw_jax.evaluate.metrics.squad import exact_match
from lw_jax.evaluate.summary import BOUNDS
from lw_jax.mesh import put_batch, ways
from lw_jax.models import encoder
from lw_jax.models.decoder import embed_tokens, run
from lw_jax.models.frozen import FrozenEncoder, Sender
from lw_jax.models.params import depth
from lw_jax.pipeline import Pipeline
from lw_jax.types import Array

Floats = NDArray[np.float64]
HELD_OUT = 5
"""Every fifth training row decides the layer and the regularisation."""
OPTIONS = {"maxiter": 100}
"""Of L-BFGS; classes that can be told apart without regularisation would take it for ever."""


@dataclass(frozen=True)
class Linear:
    """A linear classifier: logits = (x - mean) / std @ weights + bias.

    Attributes:
        mean, std: [D] of the features.
        weights: [D, C] for C classes.
        bias: [C].
    """

    mean: Floats
    std: Floats
    weights: Floats
    bias: Floats

    def predict(self, x: Floats) -> NDArray[np.int64]:
        """Classes [n] of features [n, D]."""
        return np.argmax((x - self.mean) / self.std @ self.weights + self.bias, axis=1)


def fit_linear(x: Floats, labels: NDArray[np.int64], classes: int, l2: float) -> Linear:
    """Multinomial logistic regression of labels [n] on x [n, D], standardised, by L-BFGS.

    l2: half of it times the squared weights is added to the mean cross-entropy.
    """
    mean, std = x.mean(axis=0), np.maximum(x.std(axis=0), 1e-6)
    z, (n, width) = (x - mean) / std, x.shape
    gold = np.eye(classes)[labels]

    def loss(flat: Floats) -> tuple[float, Floats]:
        weights, bias = np.split(flat, [width * classes])
        weights = weights.reshape(width, classes)
        logp = log_softmax(z @ weights + bias, axis=1)
        off = (np.exp(logp) - gold) / n
        value = -np.sum(gold * logp) / n + 0.5 * l2 * np.sum(weights**2)
        return value, np.concatenate([(z.T @ off + l2 * weights).ravel(), off.sum(axis=0)])

    found = minimize(
        loss, np.zeros((width + 1) * classes), jac=True, method="L-BFGS-B", options=OPTIONS
    ).x
    weights, bias = np.split(found, [width * classes])
    return Linear(mean, std, weights.reshape(width, classes), bias)


def probe(
    pipeline: Pipeline,
    cfg: ProbeConfig,
    train: Sequence[Example],
    asked: Asked,
    batch_size: int,
) -> dict[str, Any]:
    """Accuracy of probes of the sender and of every receiver, with its interval.

    Args:
        train, asked: rows to fit on, and rows to report.

    Raises:
        UserError: a layer that is not loaded, or answers that are no few labels.
    """
    classes = sorted({e.answers[0] for e in train})
    if not 2 <= len(classes) <= len(train) // HELD_OUT:
        raise UserError(
            f"probe: {len(train)} training rows have {len(classes)} different answers; "
            "a linear probe needs a task of a few labels"
        )
    labels = np.array([classes.index(e.answers[0]) for e in train])
    named: dict[str, Sender] = dict(pipeline.frozen.receivers)
    if (sender := pipeline.sender) is not None:
        named = {"sender": sender} | named
    for name, model in named.items():
        wrong = [layer for layer in cfg.layers if layer > depth(model.params)]
        if wrong:
            raise UserError(
                f"probe.layers: {wrong[0]} is beyond the {depth(model.params)} layers of {name} "
                "that are loaded"
            )
    parts = ways(pipeline.mesh, "rows")
    size = -(-min(batch_size, len(train)) // parts) * parts
    states = _states(pipeline, cfg, named, [*train, *asked.examples], size)
    found = {}
    for name, held in states.items():
        (layer, l2), chosen_by = _choose(held, cfg, labels, len(classes))
        x = held[layer]
        linear = fit_linear(x[: len(train)], labels, len(classes), l2)
        said = [classes[i] for i in linear.predict(x[len(train) :])]
        right = [exact_match(s, e.answers) for s, e in zip(said, asked.examples, strict=True)]
        low_high = bootstrap.interval(
            right,
            groups=asked.groups,
            seed=asked.seed,
            resamples=asked.resamples,
            bounds=BOUNDS,
        )
        found[name] = {
            "accuracy": float(np.mean(right)),
            "ci": list(low_high),
            "n": len(right),
            "layer": layer,
            "l2": l2,
            "held_out_accuracy": chosen_by,
            "train_rows": len(train),
            "classes": classes,
        }
    return found


def _choose(
    held: dict[int, Floats], cfg: ProbeConfig, labels: NDArray[np.int64], classes: int
) -> tuple[tuple[int, float], float]:
    """The layer and l2 with the best accuracy on held-out training rows, and that accuracy."""
    out = np.arange(len(labels)) % HELD_OUT == 0
    scores = {}
    for layer, x in held.items():
        own = x[: len(labels)]
        for l2 in cfg.l2:
            linear = fit_linear(own[~out], labels[~out], classes, l2)
            scores[layer, l2] = float(np.mean(linear.predict(own[out]) == labels[out]))
    best = max(scores, key=lambda key: scores[key])
    return best, scores[best]


def _states(
    pipeline: Pipeline,
    cfg: ProbeConfig,
    named: dict[str, Sender],
    examples: Sequence[Example],
    batch_size: int,
) -> dict[str, dict[int, Floats]]:
    """Per model and layer the mean states [n, D] of the examples' texts."""
    collate = pipeline.collate([(e,) for e in examples])
    layers = {n: cfg.layers or tuple(range(depth(p.params) + 1)) for n, p in named.items()}
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in named}
    for begin in range(0, len(examples), batch_size):
        rows = list(examples[begin : begin + batch_size])
        rows += rows[:1] * (batch_size - len(rows))
        host = collate([(e,) for e in rows])
        placed = put_batch(pipeline.mesh, host)
        for name, model in named.items():
            key = "source" if name == "sender" else f"{name}/context"
            batch = host if name == "sender" and pipeline.apart is not None else placed
            ids, lengths, skip = (
                batch[f"{key}/ids"],
                batch[f"{key}/lengths"],
                batch.get(f"{key}/skip"),
            )
            head = () if name == "sender" else pipeline.frozen.prompt(name).head
            means = _means(model, ids, lengths, skip, layers[name], head)
            parts[name].append(np.asarray(means))
    found = {}
    for name, pieces in parts.items():
        whole = np.concatenate(pieces, axis=1)[:, : len(examples)].astype(np.float64)
        found[name] = dict(zip(sorted(set(layers[name])), whole, strict=True))
    return found


@partial(jax.jit, static_argnames=("head", "layers"))
def _means(
    model: Sender,
    ids: Array,
    lengths: Array,
    skip: Array | None,
    layers: tuple[int, ...],
    head: tuple[int, ...] = (),
) -> Array:
    """Mean states [n, B, D] over the content of a text, which [BOS] and primer come before.

    Args:
        model: what reads.
        ids: [B, T] tokens.
        lengths: [B] how many are real.
        skip: [B] tokens of the head at the beginning of the rows; None: it is put there.
        layers: after how many layers.
        head: ids of [BOS] and primer, where they are put there.
    """
    wanted = tuple(sorted(set(layers)))
    if isinstance(model, FrozenEncoder):
        assert skip is not None
        stop = max(wanted)
        read = encoder.run(
            model.arch, model.params, ids, lengths, stop=stop, taps=wanted, impl=model.attention
        )
        return _mean(read.taps, skip, lengths - 1)
    if skip is None:
        first = jnp.broadcast_to(jnp.asarray(head, jnp.int32), (ids.shape[0], len(head)))
        ids = jnp.concatenate([first, ids], axis=1)
        lengths = lengths + len(head)
        skip = jnp.full_like(lengths, len(head))
    index = jnp.arange(ids.shape[1])[None]
    out = run(
        model.arch,
        model.params,
        embed_tokens(model.params, ids),
        positions=jnp.broadcast_to(index, ids.shape),
        lengths=lengths,
        stop=max(wanted),
        taps=wanted,
        impl=model.attention,
    )
    return _mean(out.taps, skip, lengths)


def _mean(taps: Array | None, start: Array, stop: Array) -> Array:
    """Mean [n, B, D] of the states [n, B, T, D] from `start` [B] to before `stop` [B]."""
    assert taps is not None
    index = jnp.arange(taps.shape[2])[None]
    keep = ((index >= start[:, None]) & (index < stop[:, None])).astype(jnp.float32)
    total = jnp.einsum("nbtd,bt->nbd", taps.astype(jnp.float32), keep)
    return total / jnp.maximum(1.0, keep.sum(axis=1))[None, :, None]
