"""The flow's terms in numpy, over a loss of the compressor that is made by hand."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lw_jax.compressors.dit import FlowLoss
from lw_jax.objectives import flow
from lw_jax.objectives.base import Term, Terms, mean
from tests.tiny import objectives as world
from tests.tiny.receiver import model

SLOTS = 4
"""Of the flow, fewer than an answer may have tokens."""


def drawn(rows: int, condition: int) -> dict[str, np.ndarray]:
    """A loss, another one under every condition."""
    draw = np.random.default_rng(condition)
    error, still = draw.random((2, rows, SLOTS)).astype(np.float32)
    mask = np.arange(SLOTS)[None] < 1 + np.arange(rows)[:, None] % SLOTS
    nll, cut = draw.random(rows).astype(np.float32), draw.random(rows) < 0.5
    return {"error": error, "mask": mask, "still": still, "length_nll": nll, "cut": cut}


def terms(rows: world.Tree, target: Any, length: bool = True) -> tuple[Any, list[Any]]:
    """The terms, and what the compressor's loss was asked for: views, target, key."""

    @jax.jit
    def made() -> Any:
        seen, asked = world.context({"reader": world.reader()}, rows), []

        class Generated(world.HandMade):
            def apply(self, params: Any, *given: Any, method: str, train: bool, rng: Any) -> Any:
                assert method == "compressor_loss"
                asked.append((*given, rng))
                loss = jax.tree.map(jnp.asarray, drawn(len(given[1].mask), len(asked)))
                return FlowLoss(**loss if length else loss | {"length_nll": None}), {}

        bridge = Generated(seen.latent)
        seen = dataclasses.replace(seen, bridge=bridge)  # type: ignore[arg-type]
        found = flow.Config(target=target).terms(seen, "r")
        assert found.cosine is None
        return found.loss, found.watched, found.shuffled, asked

    loss, watched, shuffled, asked = made()
    return Terms(loss, watched, None, shuffled), asked


def of_term(term: Any) -> float:
    assert isinstance(term, Term)
    return float(jax.jit(mean)(term))


@pytest.mark.parametrize(
    ("target", "part"), [("answer", "answer"), ("question", "ask"), ("context", "context")]
)
def test_terms_of_the_slots_that_count(
    target: Literal["answer", "question", "context"], part: str
) -> None:
    rows = world.data()
    valid = rows["batch"]["valid"]
    valid[[1, 4, 5]] = False  # one question of context 0, all of context 2
    found, asked = terms(rows, target)
    each = world.QUESTIONS
    if target == "context":
        valid, each = valid.reshape(-1, each).any(1), 1
    ids, lengths = (rows["batch"][f"r/{part}/{k}"] for k in ("ids", "lengths"))
    real = (np.arange(ids.shape[1])[None] < lengths[:, None]) & valid[:, None]
    for shift, (views, given, rng) in enumerate(asked):
        np.testing.assert_array_equal(given.mask, real)
        np.testing.assert_array_equal(given.ids, ids)
        np.testing.assert_array_equal(given.x, np.asarray(model().params["embed"])[ids])
        for name, axis in (("states", 1), ("mask", 0), ("ids", 0)):
            own = rows["real" if name == "mask" else name]
            wanted = np.repeat(np.roll(own, shift, axis), each, axis)
            np.testing.assert_array_equal(getattr(views["source"], name), wanted)
        # The same noise under both, and from one version to the next.
        key = jax.random.fold_in(jax.random.key(0), 64)
        assert jax.random.key_data(rng).tolist() == jax.random.key_data(key).tolist()
    loss, other = (drawn(len(ids), condition) for condition in (1, 2))
    counts = loss["mask"] & valid[:, None]
    assert set(found.loss) == {"", "length"} and len(asked) == 2
    assert of_term(found.loss[""]) == pytest.approx(loss["error"][counts].mean(), rel=1e-5)
    wanted = loss["length_nll"][valid].mean()
    assert of_term(found.loss["length"]) == pytest.approx(wanted, rel=1e-5)
    assert of_term(found.shuffled) == pytest.approx(other["error"][counts].mean(), rel=1e-5)
    wanted = loss["still"][counts].mean()
    assert of_term(found.watched["flow/zero"]) == pytest.approx(wanted, rel=1e-5)
    wanted = loss["cut"][valid].mean()
    assert of_term(found.watched["flow/cut"]) == pytest.approx(wanted, rel=1e-5)


def test_of_one_context_there_is_no_other_and_a_length_may_be_left_alone() -> None:
    rows = world.data()
    for name, axis in (("states", 1), ("real", 0), ("ids", 0), ("slots", 0), ("used", 0)):
        rows[name] = np.take(rows[name], [0], axis)
    for name, value in rows["batch"].items():
        rows["batch"][name] = value[: 1 if "context" in name else world.QUESTIONS]
    found, asked = terms(rows, "answer", length=False)
    assert set(found.loss) == {""} and found.shuffled is None and len(asked) == 1
