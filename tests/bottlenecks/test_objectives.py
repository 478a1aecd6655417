"""Objectives on codes: values by hand, and where their gradients go."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from lw_jax.bottlenecks import fsq, integer, vq
from lw_jax.errors import UserError
from lw_jax.objectives import code_entropy, code_unique, code_variance
from lw_jax.objectives import vq as vq_loss
from lw_jax.objectives.base import mean
from lw_jax.objectives.common.context import Context
from lw_jax.types import Latent, Taps
from tests.tiny.bottlenecks import Given, Part, draw, latent, usage

ROWS, SLOTS, WIDTH = 4, 5, 6
VALID = np.array([True, True, False, True])
MASK = np.ones((ROWS, SLOTS), bool)
MASK[1, 3:] = False
REAL = MASK & VALID[:, None]


def context(part: Part, params: Any, given: Latent) -> Context:
    """What an objective sees of a batch that this bottleneck makes."""
    ids = np.zeros((ROWS, 1), np.int32)
    views = {"source": Taps(np.zeros((1, ROWS, 1, 1)), ids == 0, ids)}
    batch = {"valid": VALID}
    made = Given(*part(given, params))
    return Context(made, params, None, batch, views, jax.random.key(0))  # type: ignore[arg-type]


def value_and_grads(config: Any, part: Part, x: np.ndarray) -> tuple[float, Any, Any]:
    """The objective's mean, and its gradients to the bottleneck's parameters and to the slots."""

    def loss(params: Any, x: Any) -> Any:
        return mean(config.terms(context(part, params, latent(x, MASK)), "r").loss)

    value, (own, into) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(part.params, x)
    return float(value), jax.device_get(own), np.asarray(into)


def test_codes_move_to_their_slots_and_slots_to_their_codes() -> None:
    part, x = Part(vq.Config(7), WIDTH), draw(ROWS, SLOTS, WIDTH)
    value, own, into = value_and_grads(vq_loss.Config(beta=0.5), part, x)
    book = np.asarray(part.params["codebook"])
    nearest = np.square(x[:, :, None] - book).sum(-1).argmin(-1)
    apart = x - book[nearest]
    assert value == pytest.approx(1.5 * np.square(apart)[REAL].mean(), rel=1e-5)
    scale = 2 / WIDTH / REAL.sum()
    np.testing.assert_allclose(into, 0.5 * scale * apart * REAL[..., None], atol=1e-6)
    expected = np.zeros_like(book)
    np.add.at(expected, nearest[REAL], -scale * apart[REAL])
    np.testing.assert_allclose(own["codebook"], expected, atol=1e-6)
    assert not own["idle"].any()


def test_entropy_of_the_codes() -> None:
    config = code_entropy.Config()
    part, x = Part(vq.Config(7, "cosine"), WIDTH), draw(ROWS, SLOTS, WIDTH)
    value, own, into = value_and_grads(config, part, x)
    _, intermediates = part(latent(x, MASK))
    soft = np.exp(-np.asarray(intermediates["distances"], np.float64) / config.temperature)
    shares = (soft / soft.sum(-1, keepdims=True))[REAL].mean(0)
    assert value == pytest.approx(np.log(7) + (shares * np.log(shares)).sum(), rel=1e-4)
    assert np.abs(own["codebook"]).max() > 1e-4
    assert np.abs(into[REAL]).max() > 1e-4
    assert not into[~REAL].any()
    one_code = np.broadcast_to(np.asarray(part.params["codebook"])[2], x.shape)
    assert value_and_grads(config, part, one_code)[0] > value + 0.5


def test_the_entropy_has_a_gradient_where_a_code_is_out_of_reach() -> None:
    """Its share underflows to 0, where x log x has no slope."""
    part, x = Part(vq.Config(7), WIDTH), 30 + draw(ROWS, SLOTS, WIDTH)
    value, own, into = value_and_grads(code_entropy.Config(), part, x)
    assert value == pytest.approx(np.log(7), rel=1e-3)
    assert np.isfinite(into).all() and np.isfinite(own["codebook"]).all()


def test_variance_of_the_codes() -> None:
    part, x = Part(fsq.Config((8, 5, 4)), WIDTH), draw(ROWS, SLOTS, WIDTH, std=2.0)
    value, own, into = value_and_grads(code_variance.Config(), part, x)
    codes = np.asarray(part(latent(x, MASK))[1]["codes"])[REAL]
    scaled = (codes - [4, 2, 2]) / [4, 2, 2]
    assert value == pytest.approx(-np.log(scaled.var(0) + 1e-6).mean(), rel=1e-5)
    assert np.abs(own["down"]["kernel"]).max() > 1e-3
    assert np.abs(into[REAL]).max() > 1e-3
    assert not into[~REAL].any()


def test_the_variance_of_rounded_codes_cannot_undo_a_collapse() -> None:
    part = Part(fsq.Config((8, 5, 4)), WIDTH)
    alike = 1 + draw(ROWS, SLOTS, WIDTH, std=1e-3)
    part.params["down"]["bias"] = part.params["down"]["bias"] + 0.05
    stuck, own, into = value_and_grads(code_variance.Config(), part, alike)
    assert stuck == pytest.approx(-np.log(1e-6))
    assert not into.any()
    assert not any(leaf.any() for leaf in jax.tree.leaves(own))
    _, own, into = value_and_grads(code_variance.Config(rounded=False), part, alike)
    assert np.abs(into).max() > 1
    assert np.abs(own["down"]["kernel"]).max() > 0


@pytest.mark.parametrize("config", [fsq.Config((3, 3)), vq.Config(4)], ids=["fsq", "vq"])
def test_a_count_of_codes_has_no_gradient(config: Any) -> None:
    """Fault 9: expressible, exact, and of no effect."""
    part, x = Part(config, WIDTH), draw(ROWS, SLOTS, WIDTH)
    value, own, into = value_and_grads(code_unique.Config(weight=1e6), part, x)
    different = len(np.unique(np.asarray(part(latent(x, MASK))[1]["codes"])[REAL], axis=0))
    assert value == pytest.approx(-np.log(different / REAL.sum()), rel=1e-5)
    assert value > 0.3
    assert not into.any()
    assert not any(leaf.any() for leaf in jax.tree.leaves(own))


@pytest.mark.parametrize(
    ("objective", "named"),
    [
        (vq_loss, "with a codebook"),
        (code_entropy, "with a codebook"),
        (code_variance, "that rounds each number to levels"),
        (code_unique, "with codes"),
    ],
)
def test_objectives_of_codes_that_the_bottleneck_does_not_have(objective: Any, named: str) -> None:
    part = Part(integer.Config(), WIDTH)
    seen = context(part, {}, latent(draw(ROWS, SLOTS, WIDTH)))
    with pytest.raises(UserError, match=rf"has no \w+; set a bottleneck {named}"):
        objective.Config().terms(seen, "r")


def test_of_no_slot_there_is_no_figure() -> None:
    """Every row is left out, or every slot masked: terms of nothing, which are finite."""
    part, x = Part(fsq.Config((3, 3)), WIDTH), draw(ROWS, SLOTS, WIDTH)
    of_codes = Part(vq.Config(4), WIDTH)
    nothing = latent(x, np.zeros_like(MASK))
    for own, config in (
        (part, code_variance.Config()),
        (part, code_unique.Config()),
        (of_codes, code_entropy.Config()),
        (of_codes, vq_loss.Config()),
    ):
        run = jax.jit(
            lambda own=own, c=config: c.terms(context(own, own.params, nothing), "r").loss
        )
        term = run()
        assert (float(term.total), float(term.count)) == (0.0, 0.0), config
    assert float(part(nothing)[1]["saturation"]) == 0.0
    said = usage(part(nothing)[1])
    assert {name: float(value) for name, value in said.items()} == pytest.approx(
        {"usage": 0.0, "perplexity": 1.0, "distinct": 0.0}
    )
