"""Linear probes: what is linear in the states is found, and what is not there is not."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lw_jax.data.example import Example
from lw_jax.errors import UserError
from lw_jax.evaluate.config import ProbeConfig
from lw_jax.evaluate.figures import Asked
from lw_jax.evaluate.probe import fit_linear, probe
from lw_jax.mesh import MeshConfig, make_mesh
from lw_jax.text.collate import Collate, measure
from tests.tiny.evaluation import LAYOUT, RECEIVER, World, make_world

WORDS = ("cat", "dog")


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(4)


def pipeline(world: World) -> Any:
    """What a probe needs of a `Pipeline`."""
    readers = {RECEIVER: world.tokenizer}

    def collate(groups: Any) -> Collate:
        return Collate(
            LAYOUT, world.sender, readers, measure(LAYOUT, world.sender, readers, groups)
        )

    mesh = make_mesh(MeshConfig(data=1))
    frozen = world.ctx.frozen
    return SimpleNamespace(
        frozen=frozen, sender=frozen.sender, apart=None, collate=collate, mesh=mesh
    )


def labelled(count: int, seed: int, told: bool) -> list[Example]:
    """Texts of six words; the label is the word that most of them are, or nothing in them."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(count):
        label = int(rng.integers(2))
        of = rng.permutation([label] * 4 + [1 - label] * 2) if told else rng.integers(0, 2, 6)
        text = " ".join(WORDS[k] for k in of)
        found.append(Example(f"{i}", f"{seed}-{i}", text, "?", (("no", "yes")[label],)))
    return found


def test_a_label_that_is_told_is_found(world: World) -> None:
    train, rows = labelled(60, 0, told=True), labelled(30, 1, told=True)
    asked = Asked(rows, [], 0, 100)
    found = probe(pipeline(world), ProbeConfig(l2=(0.01,)), train, asked, 16)
    assert set(found) == {"sender", RECEIVER}
    for figures in found.values():
        assert figures["accuracy"] > 0.9
        assert figures["ci"][0] <= figures["accuracy"] <= figures["ci"][1]
        assert (figures["n"], figures["train_rows"]) == (30, 60)
        assert figures["classes"] == ["no", "yes"]


def test_all_rows_right_are_no_certainty(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lw_jax.evaluate.probe.exact_match", lambda *_: 1.0)
    train, rows = labelled(20, 0, told=True), labelled(30, 1, told=True)
    cfg = ProbeConfig(layers=(1,), l2=(0.01,))
    found = probe(pipeline(world), cfg, train, Asked(rows, [], 0, 100), 16)
    assert {figures["accuracy"] for figures in found.values()} == {1.0}
    for figures in found.values():
        assert figures["ci"] == pytest.approx([0.025 ** (1 / 30), 1.0])


def test_a_label_that_is_not_told_is_not_found(world: World) -> None:
    train, rows = labelled(60, 0, told=False), labelled(200, 1, told=False)
    cfg = ProbeConfig(layers=(1,), l2=(0.1,))
    found = probe(pipeline(world), cfg, train, Asked(rows, [], 0, 100), 16)
    assert {figures["layer"] for figures in found.values()} == {1}
    assert all(0.35 < figures["accuracy"] < 0.65 for figures in found.values())


def test_no_classes_no_probe(world: World) -> None:
    train = [replace(e, answers=(str(i),)) for i, e in enumerate(labelled(20, 0, told=True))]
    with pytest.raises(UserError, match="20 training rows have 20 different answers"):
        probe(pipeline(world), ProbeConfig(), train, Asked(train, [], 0, 10), 16)


def test_a_layer_that_is_not_there(world: World) -> None:
    train = labelled(20, 0, told=True)
    with pytest.raises(UserError, match=r"probe\.layers: 9 is beyond the 2 layers of sender"):
        probe(pipeline(world), ProbeConfig(layers=(9,)), train, Asked(train, [], 0, 10), 16)


def test_the_fit_is_the_minimum() -> None:
    """At the minimum the gradient of the regularised cross-entropy is zero."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(3.0, 2.0, (200, 4)), rng.integers(0, 3, 200)
    linear = fit_linear(x, y, 3, 0.1)
    z = (x - x.mean(0)) / x.std(0)
    logits = z @ linear.weights + linear.bias
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    slope = z.T @ (p - np.eye(3)[y]) / 200 + 0.1 * linear.weights
    np.testing.assert_allclose(slope, 0, atol=1e-4)
    np.testing.assert_array_equal(linear.predict(x), logits.argmax(1))
