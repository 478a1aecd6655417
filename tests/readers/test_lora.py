"""LoRA: the edited receiver is the one with the edits merged into its weights."""

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
from lw_jax.models.params import init
from lw_jax.readers import lora
from lw_jax.train.optimiser import groups
from lw_jax.types import Delivery, Edits, Latent
from tests.tiny.arch import decoder

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
LATENT = Latent(jnp.zeros((2, 0, 6)), jnp.ones((2, 0), bool))
IDS = jnp.asarray(np.random.default_rng(0).integers(3, 20, (2, 6)))
ALL = lora.Config(r=3, alpha=6.0, layers=2)


def fresh(config: lora.Config) -> tuple[LowRank, Any]:
    module = config.build(DIMS)
    return module, module.init(jax.random.key(1), LATENT)


def trained(params: Any) -> Any:
    """The ups, too, are no longer zero."""
    return jax.tree.map(
        lambda x: x + 0.2 * jax.random.normal(jax.random.key(x.size), x.shape), params
    )


def states(params: Any, edits: Edits) -> jax.Array:
    out = run(
        ARCH,
        params,
        embed_tokens(params, IDS),
        positions=jnp.broadcast_to(jnp.arange(6)[None], (2, 6)),
        lengths=jnp.asarray([6, 4]),
        delivery=LayerInputs(edits=edits),
    )
    return out.h


FROZEN = init(ARCH, jax.random.key(0))


def merged(edits: Any, scale: float) -> Any:
    """The frozen tree with scale * down @ up added to the projections of the first layers."""
    layers = dict(FROZEN["layers"])
    for name, down in edits.a.items():
        change = scale * jnp.einsum("nir,nro->nio", down, edits.b[name])
        count = change.shape[0]
        weight = layers[name]
        layers[name] = weight.at[:count].add(change.reshape(count, *weight.shape[1:]))
    return {**FROZEN, "layers": layers}


def test_it_is_the_receiver_with_merged_weights() -> None:
    module, params = fresh(ALL)
    edits = module.apply(trained(params), LATENT).edits  # type: ignore[union-attr]
    assert edits.lora.layers == (0, 1)
    edited, clean = states(FROZEN, edits), states(FROZEN, Edits())
    np.testing.assert_allclose(edited, states(merged(edits.lora, 2.0), Edits()), atol=1e-4)
    assert float(jnp.abs(edited - clean).max()) > 0.1


def test_it_starts_as_the_clean_receiver() -> None:
    module, params = fresh(ALL)
    edits = module.apply(params, LATENT).edits  # type: ignore[union-attr]
    chex.assert_trees_all_equal(states(FROZEN, edits), states(FROZEN, Edits()))


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

    def loss(p: Any) -> jax.Array:
        return jnp.sum(jnp.sin(states(FROZEN, module.apply(p, LATENT).edits)))  # type: ignore[union-attr]

    grads = jax.grad(loss)(given)["params"]
    for name, grad in grads.items():
        assert bool((jnp.abs(grad).max(axis=(1, 2)) > 0).all()), name  # in every edited layer


def test_dropout_drops_input_features_in_training_alone() -> None:
    module, params = fresh(lora.Config(r=2, targets=("q",), dropout=0.5))
    plain = module.apply(params, LATENT).edits.lora.a["q"]  # type: ignore[union-attr]
    chex.assert_trees_all_equal(plain, params["params"]["q_down"])
    rngs = {"dropout": jax.random.key(3)}
    dropped = module.apply(params, LATENT, True, rngs=rngs).edits.lora.a["q"]  # type: ignore[union-attr]
    gone = np.asarray((dropped == 0).all(axis=-1))
    assert 0.2 < gone.mean() < 0.8
    np.testing.assert_allclose(dropped[~gone], 2 * plain[~gone], rtol=1e-6)


def test_edits_of_several_readers_stand_together() -> None:
    module, params = fresh(ALL)
    own = module.apply(params, LATENT)
    deltas = Delivery(edits=Edits(k_delta=jnp.ones((3, 2, 1, 2, 6)), v_delta=jnp.zeros((1,))))
    both = merge([deltas, own, Delivery(embeds=jnp.zeros((2, 1, 12)))])  # type: ignore[list-item]
    assert both.edits is not None
    assert both.edits.lora is own.edits.lora  # type: ignore[union-attr]
    assert both.edits.k_delta is deltas.edits.k_delta  # type: ignore[union-attr]
    assert both.embeds is not None
    with pytest.raises(UserError, match="2 readers deliver `lora`"):
        merge([own, own])  # type: ignore[list-item]
    with pytest.raises(UserError, match="2 readers deliver `embeds`"):
        merge([Delivery(embeds=jnp.zeros((2, 1, 12)))] * 2)


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
