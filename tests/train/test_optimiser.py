"""The group of every leaf, and Muon on stacked leaves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lw_jax.bridge.bridge import Bridge
from lw_jax.bridge.config import BridgeConfig
from lw_jax.compressors import perceiver
from lw_jax.config.parse import build
from lw_jax.errors import UserError
from lw_jax.models import params as frozen_params
from lw_jax.models.dims import BridgeDims, ModelDims
from lw_jax.objectives import gist
from lw_jax.objectives.config import ObjectivesConfig
from lw_jax.readers import soft_tokens
from lw_jax.train.optimiser import (
    AXES,
    Rule,
    dimension_numbers,
    groups,
    make_optimiser,
    rules_of,
)
from lw_jax.train.optimiser_config import OptimiserConfig
from lw_jax.utils.schedule import Schedule
from tests.tiny.arch import decoder

ARCH = decoder("qwen2", 20, 16, 3, 4, 2, 4, 24, qkv_bias=True, qk_norm=True)
CONSTANT = Schedule()
MUON = OptimiserConfig(name="muon", lr=0.02, clip=0.0, schedule=CONSTANT)
MATRICES = {"q", "k", "v", "o", "gate", "up", "down"}


def random_like(shapes: Any, seed: int) -> Any:
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(
        tree, [rng.standard_normal(x.shape).astype(np.float32) for x in leaves]
    )


def decoder_params(seed: int = 0) -> Any:
    return random_like(frozen_params.shapes(frozen_params.abstract(ARCH)), seed)


DIMS = BridgeDims(20, 2, 8, {"a": ModelDims(24, 3, 2, 4)})


def bridge_config(compressor: Any, reader: Any) -> BridgeConfig:
    found: BridgeConfig = build(
        BridgeConfig,
        {
            "latent_dim": 8,
            "source": {"hidden_states": {"layers": [0, 1], "mix": "gated"}},
            "compressor": compressor,
            "reader": reader,
        },
    )
    return found


def bridge_shapes(compressor: Any, reader: Any) -> Any:
    bridge = Bridge(bridge_config(compressor, reader), DIMS)
    return jax.eval_shape(bridge.init, jax.random.key(0))


def update(config: OptimiserConfig, params: Any, grads: Any) -> Any:
    optimiser = make_optimiser(config, params, 100)
    step = jax.jit(lambda grads, params: optimiser.update(grads, optimiser.init(params), params)[0])
    return jax.device_get(step(grads, params))


@pytest.mark.parametrize("tied", [False, True])
def test_every_leaf_of_a_decoder(tied: bool) -> None:
    found = groups(frozen_params.shapes(frozen_params.abstract(replace(ARCH, tied=tied))))
    assert set(found.values()) == {"muon", "adam"}
    for path, group in found.items():
        assert group == ("muon" if path.removeprefix("layers/") in MATRICES else "adam"), path


PERCEIVER = {"perceiver": {"slots": 4, "width": 16, "heads": 4, "encoder_layers": 2}}
WINDOW = {"window": {"size": 2, "width": 16, "heads": 4, "encoder_layers": 1}}


@pytest.mark.parametrize(
    ("compressor", "reader"),
    [
        (PERCEIVER, {"soft_tokens": {"hidden": "mlp"}, "deep_prefix": {"length": 3, "heads": 4}}),
        (WINDOW, {"soft_tokens": {}, "coprocessor": {}}),
    ],
)
def test_every_leaf_of_a_bridge(compressor: Any, reader: Any) -> None:
    """Exactly the kernels, and the per-layer heads of a reader, are matrices."""
    found = groups(bridge_shapes(compressor, reader))
    for path, group in found.items():
        name = path.rsplit("/", 1)[-1]
        assert group == ("muon" if name in {"kernel", "k", "v"} else "adam"), path
    adam = {path for path, group in found.items() if group == "adam"}
    assert "source/gates" in adam
    assert any(path.endswith("queries") for path in adam) == (compressor is PERCEIVER)
    assert any(path.endswith("norm/scale") for path in adam)


def test_a_leaf_that_no_rule_covers_is_an_error() -> None:
    """If it has more axes than a matrix, and the optimiser must know which are the matrix."""
    stack = {"wire": {"whatever": jnp.zeros((3, 4, 5))}}
    line = (
        r"^optimiser: no rule covers the parameter wire/whatever \(3, 4, 5\), .*optimizer_rules of "
        r"its Config, as in \{'whatever': 'matrix'\}, one of matrix, heads_out, heads_in, adam$"
    )
    decayed = replace(MUON, name="adamw", weight_decay=0.1)
    with pytest.raises(UserError, match=line):
        groups(stack)
    for config in (MUON, decayed):
        with pytest.raises(UserError, match=line):
            make_optimiser(config, stack, 10)
    plain = update(replace(decayed, weight_decay=0.0), stack, stack)
    assert plain["wire"]["whatever"].shape == (3, 4, 5)


def test_a_leaf_of_two_axes_is_a_matrix_unless_a_rule_says_otherwise() -> None:
    params = {"wire": {"whatever": jnp.ones((3, 4)), "vector": jnp.ones(3)}}
    assert groups(params) == {"wire/whatever": "muon", "wire/vector": "adam"}
    assert groups(params, [Rule("what", "adam")])["wire/whatever"] == "adam"
    assert groups(params, [Rule("^whatever$", "adam", "wire")])["wire/whatever"] == "adam"
    assert groups(params, [Rule("whatever", "adam", "wir")])["wire/whatever"] == "muon"
    merged = dimension_numbers(params, [Rule("what", "heads_in")])  # without axes for the heads
    assert merged["wire"]["whatever"] == AXES["matrix"]


def test_parts_of_a_bridge_have_rules_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    bridge = Bridge(bridge_config(PERCEIVER, {"soft_tokens": {}}), DIMS)
    params = {"bridge": {"compressor": {"table": jnp.ones((2, 3, 4))}}}
    assert rules_of(bridge) == ()
    monkeypatch.setattr(perceiver.Config, "optimizer_rules", {"^table$": "heads_in"})
    monkeypatch.setattr(soft_tokens.Config, "optimizer_rules", {"^table$": "adam"})
    rules = rules_of(bridge)
    assert [rule.part for rule in rules] == ["bridge/compressor", "bridge/readers/a/soft_tokens"]
    assert groups(params, rules) == {"bridge/compressor/table": "muon"}
    axes = dimension_numbers(params, rules)["bridge"]["compressor"]["table"]
    assert axes == AXES["heads_in"]
    other = {"bridge": {"readers": {"a": {"soft_tokens": {"table": jnp.ones((2, 3, 4))}}}}}
    assert set(groups(other, rules).values()) == {"adam"}
    for rule, message in (
        (
            {"table": "rows"},
            "'table' has 'rows'; expected one of matrix, heads_out, heads_in, adam",
        ),
        ({"ta(ble": "adam"}, r"'ta\(ble' is no regular expression"),
    ):
        monkeypatch.setattr(perceiver.Config, "optimizer_rules", rule)
        with pytest.raises(UserError, match=f"^optimizer_rules of bridge/compressor: {message}"):
            rules_of(bridge)


def test_objectives_have_rules_for_their_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    bridge = Bridge(bridge_config(PERCEIVER, {"soft_tokens": {}}), DIMS)
    monkeypatch.setattr(gist.Config, "optimizer_rules", {"queries": "matrix"})
    rules = rules_of(bridge, ObjectivesConfig(gist=gist.Config()))
    assert groups({"heads": {"gist": {"a": {"queries": jnp.ones((3, 4))}}}}, rules) == {
        "heads/gist/a/queries": "muon"
    }


def reference_muon(gradient: np.ndarray, lr: float, beta: float = 0.95) -> np.ndarray:
    """The first Muon update of one matrix [in, out], in float64 (Jordan 2024)."""
    moment = (1 - beta) * gradient
    nesterov = beta * moment / (1 - beta**2) + (1 - beta) * gradient / (1 - beta)
    x = nesterov / np.linalg.norm(nesterov)
    transposed = x.shape[0] > x.shape[1]
    x = x.T if transposed else x
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    x = x.T if transposed else x
    return -lr * max(1.0, x.shape[1] / x.shape[0]) ** 0.5 * x


def test_muon_treats_each_layer_as_its_own_matrix() -> None:
    params, grads = decoder_params(0)["layers"], decoder_params(1)["layers"]
    found = update(MUON, {"layers": params}, {"layers": grads})["layers"]
    for name in sorted(MATRICES):
        gradient = np.asarray(grads[name], np.float64)
        layers = gradient.shape[0]
        fan_in = ARCH.heads * ARCH.head_dim if name == "o" else gradient.shape[1]
        for layer in range(layers):
            expected = reference_muon(gradient[layer].reshape(fan_in, -1), MUON.lr)
            got = np.asarray(found[name][layer]).reshape(fan_in, -1)
            np.testing.assert_allclose(got, expected, atol=2e-5, err_msg=f"{name} {layer}")
    # Adam's first step at a fifth of the rate, with Nesterov momentum (Dozat 2016)
    expected = -MUON.lr / 5 * (0.9 * 0.1 / (1 - 0.9**2) + 1) * np.sign(grads["attn_norm"])
    np.testing.assert_allclose(found["attn_norm"], expected, rtol=1e-3)


def test_a_stack_is_updated_as_its_unstacked_layers() -> None:
    shapes = bridge_shapes(PERCEIVER, {"soft_tokens": {}})["compressor"]["encoder"]["blocks"]
    params, grads = random_like(shapes, 0), random_like(shapes, 1)
    stacked = update(MUON, params, grads)
    one = update(MUON, *(jax.tree.map(lambda x: x[1], tree) for tree in (params, grads)))
    chex.assert_trees_all_close(jax.tree.map(lambda x: x[1], stacked), one, atol=1e-6)
    # the orthogonalised updates differ from layer to layer: no layer's gradient leaks into another
    grads_too = jax.tree.map(lambda x: np.concatenate([np.float32(7.0) * x[:1], x[1:]]), grads)
    again = update(MUON, params, grads_too)
    chex.assert_trees_all_close(jax.tree.map(lambda x: x[1], again), one, atol=1e-6)


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_weight_decay_is_on_matrices_only(name: Any) -> None:
    config = replace(MUON, name=name, weight_decay=0.1)
    params, grads = decoder_params(0), decoder_params(1)
    plain = update(replace(config, weight_decay=0.0), params, grads)
    decayed = update(config, params, grads)
    shrink = jax.tree.map(lambda a, b: a - b, decayed, plain)
    for path, group in groups(params).items():
        here, leaf = shrink, params
        for key in path.split("/"):
            here, leaf = here[key], leaf[key]
        expected = -config.lr * 0.1 * leaf if group == "muon" else np.zeros_like(leaf)
        np.testing.assert_allclose(here, expected, atol=1e-6, err_msg=path)


def test_rates_follow_the_schedule() -> None:
    config = replace(MUON, schedule=Schedule(shape="linear", ramp=4, final=0.5))
    params = {"x": {"kernel": jnp.eye(4)}}
    optimiser = make_optimiser(config, params, 20)
    step = jax.jit(optimiser.update)
    state, sizes = optimiser.init(params), []
    for _ in range(20):
        updates, state = step(params, state, params)  # a constant gradient
        sizes.append(float(jnp.abs(updates["x"]["kernel"]).max()))
    relative = np.array(sizes) / max(sizes)
    np.testing.assert_allclose(relative[:5], [0.25, 0.5, 0.75, 1.0, 1.0], rtol=1e-3)
    np.testing.assert_allclose(relative[12], 0.75, rtol=1e-3)


def test_what_is_no_matrix_has_a_rate_of_its_own() -> None:
    """Beside Muon Adam's rate is a fifth of the matrices', or the one that is given."""
    params = {"x": {"bias": jnp.zeros(4), "kernel": jnp.eye(4)}}

    def first(own: float | None) -> Any:
        optimiser = make_optimiser(replace(MUON, adam_lr=own), params, 20)
        grads = jax.tree.map(jnp.ones_like, params)
        return jax.jit(optimiser.update)(grads, optimiser.init(params), params)[0]["x"]

    fifth, given = first(None), first(0.03)
    np.testing.assert_allclose(given["bias"] / fifth["bias"], 0.03 / (MUON.lr / 5), rtol=1e-5)
    np.testing.assert_allclose(given["kernel"], fifth["kernel"])


def test_the_global_norm_is_clipped() -> None:
    """Seen in Adam's first moment: its first step does not depend on the norm."""
    params = {"x": {"bias": jnp.zeros(4)}}
    grads = {"x": {"bias": jnp.array([30.0, 0.0, 40.0, 1e-9])}}
    optimiser = make_optimiser(replace(MUON, name="adamw", clip=1.0), params, 10)
    _, state = jax.jit(optimiser.update)(grads, optimiser.init(params), params)
    first_moment = next(x for x in jax.tree.leaves(state) if x.shape == (4,))
    np.testing.assert_allclose(first_moment[:3], 0.1 * np.array([0.6, 0, 0.8]), rtol=1e-5)
