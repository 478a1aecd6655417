"""LoRA: the edited receiver is the one with the edits merged into its weights."""

from functools import cache
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lw_jax.bridge.module import merge
from lw_jax.errors import UserError
from lw_jax.layers.low_rank import LowRank
from lw_jax.models.decoder import LayerInputs, embed_tokens, run
from lw_jax.models.dims import ModelDims
from lw_jax.readers import lora
from lw_jax.train.optimiser import groups
from lw_jax.types import Delivery, Edits, Latent
from tests.tiny.arch import decoder, weights

ARCH = decoder(
    family="mistral",
    vocab_size=20,
    width=12,
    layers=3,
    heads=4,
    kv_heads=2,
    head_dim=6,
    mlp_width=16,
    bos_id=1,
    eos_ids=(2,),
    init_std=0.3,
)
DIMS = ModelDims(width=12, layers=3, kv_heads=2, head_dim=6, heads=4)
LATENT = Latent(np.zeros((2, 0, 6), np.float32), np.ones((2, 0), bool))
IDS = np.random.default_rng(0).integers(3, 20, (2, 6))
ALL = lora.Config(r=3, alpha=6.0, layers=2)


def fresh(config: lora.Config) -> tuple[LowRank, Any]:
    module = config.build(DIMS)
    return module, jax.device_get(jax.jit(module.init)(jax.random.key(1), LATENT))


def trained(params: Any) -> Any:
    """The ups, too, are no longer zero."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: x + np.float32(0.2 * rng.standard_normal(x.shape)), params)


def states_of(params: Any, edits: Edits) -> jax.Array:
    out = run(
        ARCH,
        params,
        embed_tokens(params, IDS),
        positions=np.broadcast_to(np.arange(6)[None], (2, 6)),
        lengths=np.asarray([6, 4]),
        delivery=LayerInputs(edits=edits),
    )
    return out.h


@jax.jit
def _states(params: Any, edits: Edits) -> jax.Array:
    return states_of(params, edits)


def states(params: Any, edits: Edits) -> np.ndarray:
    return np.asarray(_states(params, edits))


@cache
def frozen() -> Any:
    return weights(ARCH, 0)


def merged(edits: Any, scale: float) -> Any:
    """The frozen tree with scale * down @ up added to the projections of the first layers."""
    layers = dict(frozen()["layers"])
    for name, down in edits.a.items():
        change = scale * np.einsum("nir,nro->nio", down, edits.b[name])
        count = change.shape[0]
        layers[name] = np.array(layers[name])
        layers[name][:count] += change.reshape(count, *layers[name].shape[1:])
    return {**frozen(), "layers": layers}


def test_it_is_the_receiver_with_merged_weights() -> None:
    module, params = fresh(ALL)
    edits = jax.device_get(module.apply(trained(params), LATENT)).edits
    assert edits.lora.layers == (0, 1)
    edited, clean = states(frozen(), edits), states(frozen(), Edits())
    np.testing.assert_allclose(edited, states(merged(edits.lora, 2.0), Edits()), atol=1e-4)
    assert np.abs(edited - clean).max() > 0.1


def test_it_starts_as_the_clean_receiver() -> None:
    module, params = fresh(ALL)
    edits = module.apply(params, LATENT).edits  # type: ignore[union-attr]
    chex.assert_trees_all_equal(states(frozen(), edits), states(frozen(), Edits()))


def test_every_parameter_is_counted_optimised_and_moves_the_loss() -> None:
    module, params = fresh(ALL)
    given = trained(params)
    shapes = {name: x.shape for name, x in params["params"].items()}
    assert shapes == {
        "q_down": (2, 12, 3),
        "q_up": (2, 3, 24),
        "k_down": (2, 12, 3),
        "k_up": (2, 3, 12),
        "v_down": (2, 12, 3),
        "v_up": (2, 3, 12),
        "o_down": (2, 24, 3),
        "o_up": (2, 3, 12),
    }
    assert set(groups({"readers": {"a": {"lora": params["params"]}}}).values()) == {"muon"}

    @jax.jit
    @jax.grad
    def gradients(p: Any, own: Any) -> jax.Array:
        edits = module.apply(p, LATENT).edits  # type: ignore[union-attr]
        return jnp.sum(jnp.sin(states_of(own, edits)))

    grads = jax.device_get(gradients(given, frozen()))["params"]
    for name, grad in grads.items():
        assert (np.abs(grad).max(axis=(1, 2)) > 0).all(), name  # in every edited layer


def test_dropout_drops_input_features_in_training_alone() -> None:
    module, params = fresh(lora.Config(r=2, targets=("q",), dropout=0.5))
    plain = module.apply(params, LATENT).edits.lora.a["q"]  # type: ignore[union-attr]
    chex.assert_trees_all_equal(plain, params["params"]["q_down"])

    @jax.jit
    def training(params: Any, rng: jax.Array) -> jax.Array:
        made = module.apply(params, LATENT, True, rngs={"dropout": rng})
        return made.edits.lora.a["q"]  # type: ignore[union-attr]

    dropped = np.asarray(training(params, jax.random.key(3)))
    gone = (dropped == 0).all(axis=-1)
    assert 0.2 < gone.mean() < 0.8
    np.testing.assert_allclose(dropped[~gone], 2 * plain[~gone], rtol=1e-6)


def test_edits_of_several_readers_stand_together() -> None:
    module, params = fresh(ALL)
    own = module.apply(params, LATENT)
    deltas = Delivery(edits=Edits(k_delta=np.ones((3, 2, 1, 2, 6)), v_delta=np.zeros((1,))))
    both = merge([deltas, own, Delivery(embeds=np.zeros((2, 1, 12)))])  # type: ignore[list-item]
    assert both.edits is not None
    assert both.edits.lora is own.edits.lora  # type: ignore[union-attr]
    assert both.edits.k_delta is deltas.edits.k_delta  # type: ignore[union-attr]
    assert both.embeds is not None
    with pytest.raises(UserError, match="2 readers deliver `lora`"):
        merge([own, own])  # type: ignore[list-item]
    with pytest.raises(UserError, match="2 readers deliver `embeds`"):
        merge([Delivery(embeds=np.zeros((2, 1, 12)))] * 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 0}, "^r: expected at least 1"),
        ({"targets": ()}, "^targets: expected one or more"),
        ({"targets": ("q", "q")}, "^targets: expected different ones"),
        ({"dropout": 1.0}, "^dropout: expected at most 0.99"),
    ],
)
def test_bad_options(options: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        lora.Config(**options)


def test_more_layers_than_there_are() -> None:
    with pytest.raises(UserError, match=r"lora\.layers: 4 are more than the receiver's 3"):
        fresh(lora.Config(layers=4))
