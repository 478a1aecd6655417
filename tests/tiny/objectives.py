"""A wire made by hand, so that every objective can be checked against numpy.

B = 8 contexts of 2 questions; 3 slots of width 5, the last of some rows not used; the "reader" is
one matrix to the receiver's width of 24, so that a gradient can be told to reach it or not.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lw_jax.models.dims import BridgeDims, ModelDims
from lw_jax.objectives.base import Term, mean, naming
from lw_jax.objectives.common.context import Context
from lw_jax.train.plan import Plan, all_terms
from lw_jax.types import Delivery, Latent, Taps
from tests.tiny.receiver import model, models_of

CONTEXTS, QUESTIONS, SLOTS, TOKENS, WIDTH, VOCAB = 8, 2, 3, 6, 24, 320
DIMS = BridgeDims(WIDTH, 2, 5, {"r": ModelDims(WIDTH, 2, 2, 6, 0.3)}, source_vocab=40)
RECEIVER = model()  # made here, outside any trace
Tree = dict[str, Any]


def data(seed: int = 0) -> Tree:
    """Everything that comes with the rows: the batch, the taps, the slots."""
    draw = np.random.default_rng(seed)
    batch: Tree = {}
    for part, rows, size in (
        ("context", CONTEXTS, TOKENS + 1),
        ("ask", CONTEXTS * QUESTIONS, 4),
        ("answer", CONTEXTS * QUESTIONS, 5),
    ):
        lengths = draw.integers(1, size + 1, rows).astype(np.int32)
        ids = draw.integers(1, VOCAB, (rows, size)).astype(np.int32)
        batch[f"r/{part}/ids"] = ids * (np.arange(size)[None] < lengths[:, None])
        batch[f"r/{part}/lengths"] = lengths
    # Some answers begin with a token that is a bare space.
    lengths = batch["r/answer/lengths"]
    batch["r/answer/start"] = np.where(np.arange(len(lengths)) % 3 == 0, lengths > 1, 0)
    batch["valid"] = np.ones(CONTEXTS * QUESTIONS, bool)
    real = np.ones((CONTEXTS, TOKENS), bool)
    real[:, 0] = False  # BOS: no content
    real[::2, -2:] = False
    used = np.ones((CONTEXTS, SLOTS), bool)
    used[1::3, -1] = False
    return {
        "batch": batch,
        "states": draw.normal(size=(2, CONTEXTS, TOKENS, WIDTH)).astype(np.float32),
        "real": real,
        "ids": draw.integers(0, 40, (CONTEXTS, TOKENS)).astype(np.int32),
        "slots": draw.normal(size=(CONTEXTS, SLOTS, 5)).astype(np.float32),
        "used": used,
    }


def reader(seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(5, WIDTH)).astype(np.float32) * 0.1


def heads(name: str, config: Any, dims: BridgeDims = DIMS) -> Tree:
    with naming(name, config):
        own = jax.jit(partial(config.init, dims))(jax.random.key(3))
    return {} if own is None else {name: own}


@cache
def usual_heads(name: str, config: Any) -> Tree:
    """Of an objective of this wire; made once."""
    return heads(name, config)


@dataclass(frozen=True)
class HandMade:
    """In the place of a `Bridge`: the latent is given, and the reader is one matrix."""

    latent: Latent
    dims: BridgeDims = DIMS

    def apply(self, params: Tree, *arguments: Any, method: str, train: bool, rng: Any) -> Any:
        if method == "encode":
            return self.latent, {}
        return Delivery(arguments[1].slots @ params["reader"], self.latent.mask), {}


def context(params: Tree, rows: Tree, receivers: Any = None) -> Context:
    """What objectives see; params: `reader`."""
    return Context(
        HandMade(Latent(rows["slots"], rows["used"])),  # type: ignore[arg-type]
        {"reader": params["reader"]},
        models_of(None, {"r": RECEIVER} if receivers is None else receivers),
        jax.tree.map(jnp.asarray, rows["batch"]),
        {"source": Taps(rows["states"], rows["real"], rows["ids"])},
        jax.random.key(0),
    )


def terms(name: str, config: Any, seen: Context, heads: Tree | None = None) -> tuple[Term, Tree]:
    """Of an objective alone: its one term of the loss, and what is watched."""
    loss, watched = all_terms(Plan(((name, config),)), seen, heads or {})
    (term,) = loss.values()
    return term, watched


@cache
def compiled(name: str, config: Any) -> Any:
    """Of an objective alone: (loss, watched), and the gradients by `reader` and `heads`."""

    def loss(params: Tree, rows: Tree) -> Any:
        term, watched = terms(name, config, context(params, rows), params["heads"])
        return mean(term), {k: mean(t) for k, t in watched.items()}

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def run(name: str, config: Any, rows: Tree | None = None) -> tuple[float, Tree, Tree]:
    """Loss, watched values and gradients."""
    params = {"reader": reader(), "heads": usual_heads(name, config)}
    found = compiled(name, config)(params, data() if rows is None else rows)
    (loss, watched), grads = jax.device_get(found)
    return float(loss), watched, grads


class Together:
    """Losses of objectives that look at the same rows, all in one program: what the receiver reads
    for one of them it reads for all, as in a step."""

    def __init__(self, *cases: tuple[str, Any]) -> None:
        self.cases = cases

    @cached_property
    def params(self) -> list[Tree]:
        """Of the heads, by the place of their objective."""

        @jax.jit
        def made(rng: jax.Array) -> list[Tree]:
            return [config.init(DIMS, rng) for _, config in self.cases]

        found: list[Tree] = jax.device_get(made(jax.random.key(3)))
        return found

    def heads(self, name: str, config: Any) -> Tree:
        """The heads of one of them, by receiver."""
        return self.params[self.cases.index((name, config))]

    @cached_property
    def _program(self) -> Any:
        def losses(heads: list[Tree], rows: Tree) -> Any:
            seen = context({"reader": reader()}, rows)
            found = [
                terms(*case, seen, {} if own is None else {case[0]: own})
                for case, own in zip(self.cases, heads, strict=True)
            ]
            return [
                (mean(term), {k: mean(t) for k, t in watched.items()}) for term, watched in found
            ]

        return jax.jit(losses)

    @cached_property
    def _usual(self) -> Any:
        return self._of(data())

    def _of(self, rows: Tree) -> Any:
        return jax.device_get(self._program(self.params, rows))

    def run(self, name: str, config: Any, rows: Tree | None = None) -> tuple[float, Tree]:
        """Loss and watched values of one of them."""
        found = self._usual if rows is None else self._of(rows)
        loss, watched = found[self.cases.index((name, config))]
        return float(loss), watched
