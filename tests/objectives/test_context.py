"""What the objectives of a step share, and figures that few rows or quiet states make."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lw_jax.models import head
from lw_jax.objectives import (
    affine_l2,
    bag_of_words,
    info_nce,
    k_token_ce,
    kd,
    scale_l2,
    slot_alignment,
    text_ce,
)
from lw_jax.objectives.base import Term, mean
from lw_jax.objectives.common import targets
from lw_jax.objectives.common.context import Context, Pass
from lw_jax.receiver.read import Reading
from lw_jax.types import Delivery
from tests.tiny import objectives as world
from tests.tiny.receiver import model

LABELS, LENGTHS = (world.data()["batch"][f"r/answer/{k}"] for k in ("ids", "lengths"))
REAL = np.arange(LABELS.shape[1])[None] < LENGTHS[:, None]


def states(seed: int) -> np.ndarray:
    shape = (*LABELS.shape, world.WIDTH)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@jax.jit
def logits(hidden: Any) -> Any:
    receiver = model()
    return head.logits(receiver.arch, receiver.params, hidden)


def log_p(hidden: np.ndarray, tau: float = 1.0) -> np.ndarray:
    """Log-probabilities [N, A, V] at a temperature."""
    z = np.asarray(logits(hidden.reshape(-1, world.WIDTH))) / tau
    return (z - np.log(np.exp(z).sum(-1, keepdims=True))).reshape(*LABELS.shape, -1)


def given(rows: world.Tree, read: dict[Pass, np.ndarray], **more: Any) -> Context:
    """A context whose passes have been run: their states by hand."""
    seen = dataclasses.replace(world.context({"reader": world.reader()}, rows), **more)
    for asked, hidden in read.items():
        seen.readings["r", asked] = Reading(hidden, REAL, LABELS, None, None)  # type: ignore[arg-type]
    return seen


def value(config: Any, rows: world.Tree, read: dict[Pass, np.ndarray]) -> float:
    """Of an objective's one term."""

    @jax.jit
    def loss(states: Any) -> Any:
        term = config.terms(given(rows, dict(zip(read, states, strict=True))), "r").loss
        assert isinstance(term, Term)
        return mean(term)

    return float(loss(tuple(read.values())))


def some_valid() -> world.Tree:
    """Rows of which one question of context 0 does not count, and context 2 as a whole."""
    rows = world.data()
    rows["batch"]["valid"][[1, 4, 5]] = False
    return rows


def test_a_context_counts_while_one_of_its_questions_does() -> None:
    seen = world.context({"reader": world.reader()}, some_valid())
    wanted = np.ones(world.CONTEXTS, bool)
    wanted[2] = False
    np.testing.assert_array_equal(seen.valid_contexts, wanted)
    slots = np.ones((world.CONTEXTS, 3), bool)
    slots[0, 1:] = slots[5] = False
    wanted[5] = False
    np.testing.assert_array_equal(targets.counted(seen, jnp.asarray(slots)), wanted)


def test_every_part_of_the_bridge_draws_by_a_key_of_its_own() -> None:
    """The same from one version to the next: 0 makes the latent, the receivers follow it."""
    one = world.DIMS.receivers["r"]
    dims = dataclasses.replace(world.DIMS, receivers={"r": one, "s": one})
    told = []

    class Told(world.HandMade):
        def apply(self, *given: Any, method: str, train: bool, rng: Any) -> Any:
            told.append(jax.random.key_data(rng).tolist())
            return super().apply(*given, method=method, train=train, rng=rng)

    seen = world.context(
        {"reader": world.reader()}, world.data(), {"r": world.RECEIVER, "s": world.RECEIVER}
    )
    bridge = Told(seen.bridge.latent, dims)  # type: ignore[attr-defined]
    seen = dataclasses.replace(seen, bridge=bridge)  # type: ignore[arg-type]
    assert set(seen.deliveries) == {"r", "s"}
    keys = [jax.random.fold_in(jax.random.key(0), i) for i in range(3)]
    assert told == [jax.random.key_data(key).tolist() for key in keys]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_answers_are_scored_slice_by_slice_as_at_once(
    dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slices of padding alone are left out, and none that has a token."""
    params = jax.tree.map(lambda x: np.asarray(x).astype(dtype), model().params)
    narrow = dataclasses.replace(model(), params=jax.device_put(params))
    read = {
        asked: states(i).astype(dtype)
        for i, asked in enumerate((Pass("latent"), Pass("text", gradient=False)))
    }

    def scores() -> Any:
        @jax.jit
        def made(states: Any) -> Any:
            seen = given(world.data(), dict(zip(read, states, strict=True)), tau=2.0)
            seen = dataclasses.replace(
                seen, frozen=dataclasses.replace(seen.frozen, receivers={"r": narrow})
            )
            scored, kl = seen.answers("r")
            assert (kl is None) == (dtype == "float32")
            return scored.nll, *([] if kl is None else [kl])

        return [np.asarray(x)[REAL] for x in made(tuple(read.values()))]

    whole = scores()
    monkeypatch.setattr(head, "LOGITS_AT_ONCE", 8 * narrow.arch.vocab_size)
    assert REAL.sum() < REAL.size - 16  # there is a slice to leave out
    for found, wanted in zip(scores(), whole, strict=True):
        assert wanted.min() > 0.01
        np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.mark.parametrize("first", [None, 2])
def test_the_divergence_of_tokens_that_count(first: int | None) -> None:
    student, teacher = states(1), states(2)
    read = {Pass("latent"): student, Pass("text", gradient=False): teacher}
    rows = some_valid()
    found = value(kd.Config(tau=2.0, first=first), rows, read)
    p, q = log_p(teacher, 2.0), log_p(student, 2.0)
    counts = REAL & rows["batch"]["valid"][:, None] & (np.arange(5) < (first or 5))[None]
    wanted = 4 * (np.exp(p) * (p - q)).sum(-1)[counts].mean()
    assert found == pytest.approx(wanted, rel=1e-4)


def test_an_answer_after_the_text_costs_what_its_own_tokens_do() -> None:
    rows, hidden = some_valid(), states(3)
    nll = -np.take_along_axis(log_p(hidden), LABELS[..., None], axis=-1)[..., 0]
    wanted = nll[REAL & rows["batch"]["valid"][:, None]].mean()
    found = value(text_ce.Config(), rows, {Pass("text", adapted=True): hidden})
    assert found == pytest.approx(wanted, rel=1e-5)


def test_figures_of_a_batch_count_once() -> None:
    """Else the mean over microbatches would be their sum."""
    held: list[Any] = [
        affine_l2.Config(),
        scale_l2.Config(of="colour"),
        scale_l2.Config(of="scale"),
    ]

    @jax.jit
    def figures(hidden: Any) -> Any:
        seen = given(world.data(), {Pass("latent"): hidden})
        watched = k_token_ce.Config(tokens=2).terms(seen, "r").watched["k_tokens"]
        sown = {
            "readers": {"r": {"soft_tokens": {"colour": jnp.float32(0.5), "scale": jnp.float32(3)}}}
        }
        seen.computed["given"] = {"r": (Delivery(jnp.ones((8, 3, 24))), sown)}
        return watched, [config.terms(seen, "r").loss for config in held]

    watched, found = jax.device_get(figures(states(1)))
    assert (watched.total, watched.count) == (2, 1)
    assert [(term.total, term.count) for term in found] == [(0.5, 1), (0.5, 1), (4.0, 1)]


def test_a_text_without_a_token_has_no_stretch_and_no_word() -> None:
    """A text that fills its row has, as one that ends before it."""
    rows = world.data()
    lengths = rows["batch"]["r/context/lengths"]
    lengths[:] = [7, 6, 6, 3, 4, 6, 0, 2]
    rows["used"][0, 1:] = False
    rows["real"][6] = False
    config: Any = slot_alignment.Config(distance="mse")
    loss, watched, _ = world.run("slot_alignment", config, rows)
    table, slots, errors = np.asarray(model().params["embed"]), rows["slots"] @ world.reader(), []
    for i, length in enumerate(lengths):
        words = table[rows["batch"]["r/context/ids"][i, :length]]
        parts = np.split(words, rows["used"][i].sum()) if length else []
        errors += [((slots[i, m] - part.mean(0)) ** 2).mean() for m, part in enumerate(parts)]
    assert len(errors) == 1 + 2 + 3 + 3 + 2 + 3 + 2
    np.testing.assert_allclose(loss, np.mean(errors), rtol=1e-5)
    found = world.run("bag_of_words", bag_of_words.Config(), rows)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((watched, found)))


def test_alike_contexts_are_not_told_apart() -> None:
    rows = world.data()
    rows["slots"][:] = rows["slots"][:1]
    rows["used"][:] = True
    _, watched, _ = world.run("info_nce", info_nce.Config(), rows)
    assert watched["r/info_nce_right"] == 0


@pytest.mark.parametrize("size", [1.0, 1e-3])
def test_quiet_states_of_the_source_are_made_as_loud_as_others(size: float) -> None:
    """To the root of a millionth, which is added to their mean square."""
    rows = world.data()
    rows["states"] *= np.float32(size)
    seen = world.context({"reader": world.reader()}, rows)
    found, mask = jax.jit(lambda: targets.source_states(seen, True))()
    square = (rows["states"].astype(np.float64) ** 2).mean(-1, keepdims=True)
    wanted = (rows["states"] / np.sqrt(square + 1e-6)).mean(0)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(mask, rows["real"])


@pytest.mark.parametrize("message", ["latent", "text"])
def test_nothing_is_read_at_the_end_of_an_answer(message: Any) -> None:
    """States that follow the message: of question and answer, all but those at the last token."""
    rows = world.data()["batch"]
    read, mask = jax.jit(lambda: targets.suffix_states(given(world.data(), {}), "r", message, 2))()
    counted = np.asarray(rows["r/ask/lengths"]) + np.asarray(rows["r/answer/lengths"]) - 1
    valid = np.asarray(rows["valid"], bool)
    assert read.shape == (2, *mask.shape, world.WIDTH)
    np.testing.assert_array_equal(np.asarray(mask.sum(axis=1)), np.where(valid, counted, 0))
    assert counted[valid].min() >= 1
