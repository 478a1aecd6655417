"""How loud soft tokens are: the conditionings, their starts, and what is noted for the alarms."""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest

from lw_jax.errors import UserError
from lw_jax.models.dims import ModelDims
from lw_jax.readers import soft_tokens
from lw_jax.types import Latent

DIMS = ModelDims(8, 2, 2, 4, embed_rms=0.02)
SLOTS = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)


def given(loud: float = 1.0, **options: Any) -> tuple[dict[str, Any], np.ndarray, dict[str, Any]]:
    """Parameters, soft tokens and notes for slots at RMS `loud`."""
    module = soft_tokens.Config(**options).build(DIMS)
    mask = np.asarray([[True, True, True], [True, True, False]])
    latent = Latent(jax.device_put(SLOTS * np.float32(loud)), mask)

    @jax.jit
    def run(rng: Any) -> Any:
        params = module.init(rng, latent).get("params", {})
        delivery, sown = module.apply({"params": params}, latent, mutable=["intermediates"])
        return params, delivery.embeds, sown.get("intermediates", {})

    params, embeds, intermediates = jax.device_get(run(jax.random.key(0)))
    return params, embeds, intermediates


def rms(x: np.ndarray) -> np.ndarray:
    return np.sqrt((x**2).mean(-1))


def test_the_default_has_the_parameters_of_bridges_that_were_shipped() -> None:
    params, embeds, intermediates = given()
    assert sorted(params) == ["in_norm", "log_scale", "out"]
    z = SLOTS / rms(SLOTS)[..., None]
    x = z @ params["out"]["kernel"]
    np.testing.assert_allclose(embeds, x / rms(x)[..., None] * 0.02, rtol=1e-4)
    assert set(intermediates) == {"scale"}
    np.testing.assert_allclose(intermediates["scale"], 1.0)


@pytest.mark.parametrize("layers", [1, 3])
def test_a_plain_mlp_has_as_many_layers_as_asked(layers: int) -> None:
    plain = {"hidden": "plain_mlp", "input_norm": False, "conditioning": "none", "mlp_ratio": 2}
    params, embeds, _ = given(mlp_layers=layers, **plain)
    assert sorted(params) == [*(f"hidden_{i}" for i in range(layers - 1)), "out"]
    z = SLOTS
    for i in range(layers - 1):
        assert params[f"hidden_{i}"]["kernel"].shape == (z.shape[-1], 16)
        z = np.asarray(jax.jit(nn.gelu)(z @ params[f"hidden_{i}"]["kernel"]))
    np.testing.assert_allclose(embeds, z @ params["out"]["kernel"], rtol=1e-4, atol=1e-5)
    assert params["out"]["bias"].shape == (8,)  # centred slots do not know the embeddings' mean


def test_without_a_conditioning_slots_pass_as_they_are() -> None:
    params, embeds, _ = given(33.0, hidden="none", input_norm=False, conditioning="none")
    assert params == {}
    np.testing.assert_array_equal(embeds, SLOTS * np.float32(33.0))


def test_a_scale_alone_bounds_nothing() -> None:
    plain = {"hidden": "none", "input_norm": False, "conditioning": "scale"}
    params, embeds, intermediates = given(33.0, **plain)
    assert list(params) == ["log_scale"]
    np.testing.assert_allclose(embeds, SLOTS * np.float32(33.0) * 0.02, rtol=1e-5)
    assert "saturation" not in intermediates


def test_tanh_is_bounded_by_its_scale_and_saturates() -> None:
    plain = {"hidden": "none", "input_norm": False, "conditioning": "tanh"}
    _, quiet, intermediates = given(0.1, **plain)
    np.testing.assert_allclose(quiet, np.tanh(SLOTS * np.float32(0.1)) * 0.02, rtol=1e-4)
    assert intermediates["saturation"] == 0
    _, loud, intermediates = given(30.0, **plain, init_scale=0.5)
    assert np.abs(loud).max() <= 0.5 + 1e-6
    beyond = np.abs(np.tanh(SLOTS * np.float32(30.0))) > soft_tokens.SATURATED
    real = np.concatenate([beyond[0], beyond[1, :2]])
    np.testing.assert_allclose(intermediates["saturation"], real.mean(), rtol=1e-5)
    assert intermediates["saturation"] > 0.9


def test_layer_norm_stands_before_tanh() -> None:
    plain = {"hidden": "none", "input_norm": False}
    params, normed, intermediates = given(50.0, **plain, conditioning="layer_norm")
    assert sorted(params) == ["out_norm"]
    assert intermediates == {}
    np.testing.assert_allclose(normed.mean(-1), 0.0, atol=1e-5)
    np.testing.assert_allclose(rms(normed), 1.0, rtol=1e-3)
    params, bounded, intermediates = given(50.0, **plain, conditioning="layer_norm_tanh")
    assert sorted(params) == ["log_scale", "out_norm"]
    np.testing.assert_allclose(bounded, np.tanh(normed) * 0.02, rtol=1e-3, atol=1e-6)
    assert intermediates["saturation"] < 0.2


def test_colour_starts_at_none() -> None:
    params, coloured, intermediates = given(colour=True)
    _, plain, _ = given()
    np.testing.assert_allclose(coloured, plain, rtol=1e-6)
    assert params["colour_gain"].shape == params["colour_bias"].shape == (8,)
    assert intermediates["colour"] == 0


def test_colour_is_how_far_gains_and_biases_lie_from_none() -> None:
    """And of no slot nothing is saturated."""
    gain, bias = np.random.default_rng(1).normal(size=(2, 8)).astype(np.float32)
    options = {"hidden": "none", "input_norm": False, "conditioning": "tanh", "init_scale": 1.0}
    reader = soft_tokens.Config(**options, colour=True).build(DIMS)  # type: ignore[arg-type]
    params = {"colour_gain": gain, "colour_bias": bias, "log_scale": np.float32(0)}
    latent = Latent(30 * SLOTS, np.zeros((2, 3), bool))  # type: ignore[arg-type]
    apply = jax.jit(partial(reader.apply, mutable=["intermediates"]))
    given, sown = apply({"params": params}, latent)
    np.testing.assert_allclose(given.embeds, np.tanh(30 * SLOTS) * gain + bias, rtol=1e-4)
    notes = sown["intermediates"]
    assert float(notes["colour"]) == pytest.approx(((gain - 1) ** 2 + bias**2).mean(), rel=1e-5)
    assert float(notes["saturation"]) == 0


@pytest.mark.parametrize("loud", [1.0, 1e-3])
def test_slots_are_made_as_loud_but_for_quiet_ones(loud: float) -> None:
    """A millionth is added to their mean square."""
    _, embeds, notes = given(loud, hidden="none", input_norm=False)
    x = SLOTS * np.float32(loud)
    wanted = 0.02 * x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(embeds, wanted, rtol=1e-4)
    assert notes["scale"] == pytest.approx(1)


def test_film_starts_at_none_and_then_modulates_by_the_real_slots() -> None:
    _, plain, _ = given(conditioning="none")
    params, same, _ = given(conditioning="none", film=True)
    np.testing.assert_allclose(same, plain, rtol=1e-5)
    rng = np.random.default_rng(3)
    film = {k: rng.normal(size=x.shape).astype(np.float32) for k, x in params["film"].items()}
    reader = soft_tokens.Config(conditioning="none", film=True).build(DIMS)
    mask = np.array([[True, True, True], [True, True, False]])

    @jax.jit
    def apply(p: Any, x: Any, mask: Any = mask) -> Any:
        return reader.apply({"params": p}, Latent(x, mask)).embeds  # type: ignore[union-attr]

    found = np.asarray(apply({**params, "film": film}, SLOTS))
    mean = np.stack([SLOTS[0].mean(0), SLOTS[1, :2].mean(0)])
    made = mean / rms(mean)[:, None] @ film["kernel"] + film["bias"]
    gain, bias = made[:, None, :8], made[:, None, 8:]
    np.testing.assert_allclose(found, plain * (1 + gain) + bias, rtol=1e-3, atol=1e-4)
    hidden = SLOTS.copy()
    hidden[1, 2] = 9.0  # not real: it may not modulate the others
    seen = np.asarray(apply({**params, "film": film}, hidden))
    np.testing.assert_allclose(seen[1, :2], found[1, :2], rtol=1e-5)
    none = apply({**params, "film": film}, SLOTS, np.zeros_like(mask))
    assert np.isfinite(none).all()  # of a row without a slot


def test_film_may_be_of_each_slot() -> None:
    _, plain, _ = given(conditioning="none")
    options = {"conditioning": "none", "film": True, "film_from": "slot"}
    params, same, _ = given(**options)
    np.testing.assert_allclose(same, plain, rtol=1e-5)
    rng = np.random.default_rng(3)
    film = {k: rng.normal(size=x.shape).astype(np.float32) for k, x in params["film"].items()}
    reader = soft_tokens.Config(**options).build(DIMS)  # type: ignore[arg-type]
    latent = Latent(SLOTS, np.ones((2, 3), bool))
    found = jax.jit(reader.apply)({"params": {**params, "film": film}}, latent).embeds  # type: ignore[union-attr]
    made = SLOTS / rms(SLOTS)[..., None] @ film["kernel"] + film["bias"]
    expected = plain * (1 + made[..., :8]) + made[..., 8:]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_options_that_do_not_fit() -> None:
    narrow = soft_tokens.Config(hidden="none").build(ModelDims(16, 2, 2, 4))
    with pytest.raises(UserError, match=r"set bridge\.latent_dim to 16"):
        narrow.init(jax.random.key(0), Latent(SLOTS, np.ones((2, 3), bool)))
    with pytest.raises(UserError, match="has no scale"):
        soft_tokens.Config(conditioning="layer_norm", init_scale=0.1)
    with pytest.raises(UserError, match="mlp_layers"):
        soft_tokens.Config(mlp_layers=0)
    with pytest.raises(UserError, match="init_scale"):
        soft_tokens.Config(init_scale=0.0)
