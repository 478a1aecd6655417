"""The sentence encoder equals transformers' PyTorch, however its files spell it.

See docs/design.md section 2.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from safetensors.numpy import load_file, save_file

from lw_jax.errors import UserError
from lw_jax.models import encoder
from lw_jax.models.checkpoint import INDEX, WEIGHTS, open_checkpoint
from lw_jax.models.config import ModelConfig
from lw_jax.models.encoder_arch import EncoderArch, arch_from_hf
from lw_jax.models.frozen import FrozenEncoder
from lw_jax.models.load import load_params
from lw_jax.models.spec import FrozenSpec, open_model
from lw_jax.sources import sentence_encoder
from lw_jax.types import SourceTokens
from tests.models import parity
from tests.tiny.encoder import write_encoder

GOLDEN = Path(__file__).parent / "golden_encoders" / "bert"
LENGTHS = parity.LENGTHS
LAYERS = (0, 1, 2, 3)
NORM = ("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")

golden = load_file(GOLDEN / "golden.safetensors")


@partial(jax.jit, static_argnums=0)
def states(arch: EncoderArch, params: Any, ids: Any, lengths: Any) -> jax.Array:
    """[n, B, T, D] after every layer."""
    with jax.default_matmul_precision("highest"):
        taps = encoder.run(arch, params, ids, lengths, taps=LAYERS).taps
    assert taps is not None
    return taps


def opened(name: str, folder: Path) -> FrozenSpec:
    return open_model(name, ModelConfig(str(folder), dtype="float32"))


def load(folder: Path, **options: Any) -> Any:
    found = open_checkpoint(folder, options.get("layers"))
    return load_params(found, parity.one_device(), dtype=jnp.float32, **options)


@pytest.fixture(scope="module")
def arch() -> EncoderArch:
    found = open_checkpoint(GOLDEN).arch
    assert isinstance(found, EncoderArch)
    return found


@pytest.fixture(scope="module")
def params() -> Any:
    return load(GOLDEN)


def difference(ours: Any, theirs: Any) -> float:
    real = np.arange(theirs.shape[-2])[None] < LENGTHS[:, None]
    return float(np.abs(np.asarray(ours) - theirs)[:, real].max())


def test_equals_golden(arch, params):
    ours = states(arch, params, golden["ids"], LENGTHS)
    for layer in LAYERS:
        assert difference(ours[layer][None], golden["states"][layer][None]) <= parity.TOLERANCE


def mutations(arch: EncoderArch, params: Any) -> Iterator[tuple[str, EncoderArch, Any, Any]]:
    yield "tanh form of GELU", replace(arch, activation="gelu_new"), params, LENGTHS
    yield "another activation", replace(arch, activation="relu"), params, LENGTHS
    yield "wrong eps", replace(arch, norm_eps=1e-12), params, LENGTHS
    yield "heads apart", arch, _heads_mixed(params), LENGTHS
    yield "padding is read", arch, params, np.full_like(LENGTHS, golden["ids"].shape[1])
    position = jnp.roll(params["position"], 1, axis=0)
    yield "positions from 1", arch, {**params, "position": position}, LENGTHS
    yield "type 1", arch, {**params, "type": params["type"][::-1]}, LENGTHS
    top = {name: _plain(name, x) for name, x in params.items() if name != "layers"}
    yield "norm of the embeddings", arch, {**params, **top}, LENGTHS
    for name, x in params["layers"].items():
        # A bias of the keys moves all scores of a query alike, which the softmax takes out.
        if ("norm" in name or "bias" in name) and name != "k_bias":
            layers = {**params["layers"], name: _plain(name, x)}
            yield name, arch, {**params, "layers": layers}, LENGTHS


def _plain(name: str, x: jax.Array) -> jax.Array:
    if name.endswith("bias"):
        return jnp.zeros_like(x)
    return jnp.ones_like(x) if name.endswith("norm") else x


def _heads_mixed(params: Any) -> Any:
    """Queries split as [h, H] instead of [H, h]."""
    q = params["layers"]["q"]
    mixed = jnp.swapaxes(q.reshape(*q.shape[:2], q.shape[3], q.shape[2]), 2, 3)
    return {**params, "layers": {**params["layers"], "q": mixed}}


def test_every_mutation_moves_the_states(arch, params):
    for fault, other, changed, lengths in mutations(arch, params):
        moved = difference(states(other, changed, golden["ids"], lengths), golden["states"])
        assert moved > parity.MUST_MOVE, fault


def test_a_row_does_not_depend_on_what_is_beside_it(arch, params):
    """Neither on how far it is filled up, with what, nor on the other rows."""
    ids, length = golden["ids"][1:], LENGTHS[1:]
    alone = states(arch, params, ids[:, : length[0]], length)
    other = np.random.default_rng(1).integers(0, arch.vocab_size, (3, 31)).astype(np.int32)
    other[1, : length[0]] = ids[0, : length[0]]
    among = states(arch, params, other, np.array([31, length[0], 0], np.int32))
    assert np.isfinite(np.asarray(among)).all()
    np.testing.assert_allclose(among[:, 1, : length[0]], alone[:, 0], atol=parity.TOLERANCE)


def test_sharded_load_equals_one_device(arch, params):
    mesh = jax.make_mesh((2, 4), ("data", "tensor"), (AxisType.Auto,) * 2)
    spread = load_params(open_checkpoint(GOLDEN), mesh, dtype=jnp.float32)
    shards = {name: x.sharding.shard_shape(x.shape) for name, x in spread["layers"].items()}
    assert shards["q"] == (3, 32, 1, 8)
    assert shards["o"] == (3, 1, 8, 32)
    assert shards["up"] == (3, 32, 12)
    assert shards["up_bias"] == (3, 12)
    assert shards["down_bias"] == (3, 32)
    assert spread["position"].sharding.is_fully_replicated
    ours = states(arch, spread, golden["ids"], LENGTHS)
    assert difference(ours, golden["states"]) <= parity.TOLERANCE


def rename(folder: Path, change: Callable[[str], str], **more: Any) -> None:
    tensors = {change(name): x for name, x in load_file(folder / WEIGHTS).items()}
    save_file(tensors | more, folder / WEIGHTS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the checkpoint, to be changed."""
    return shutil.copytree(GOLDEN, tmp_path / "bert")


def legacy(name: str) -> str:
    for new, old in NORM:
        name = name.replace(new, old)
    return name


@pytest.mark.parametrize(
    "change",
    [lambda name: f"bert.{name}", legacy, lambda name: f"bert.{legacy(name)}"],
    ids=["prefix", "gamma and beta", "both"],
)
def test_names_are_read_in_every_spelling(change, folder, params):
    head = {
        "bert.embeddings.position_ids": np.arange(32)[None],
        "cls.predictions.bias": np.ones(96, np.float32),
    }
    rename(folder, change, **head)
    chex.assert_trees_all_equal(load(folder), params)


def test_layers_beyond_the_one_that_is_read_stay_in_the_file(folder, params):
    rename(folder, lambda name: f"bert.{name}")
    tensors = load_file(folder / WEIGHTS)
    late = {name: x for name, x in tensors.items() if "layer.2." in name or "pooler" in name}
    early = {name: x for name, x in tensors.items() if name not in late}
    save_file(early, folder / "first.safetensors")
    (folder / WEIGHTS).unlink()
    places = dict.fromkeys(early, "first.safetensors") | dict.fromkeys(late, "gone.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))
    cut = load(folder, layers=2)
    chex.assert_trees_all_equal(cut["layers"], jax.tree.map(lambda x: x[:2], params["layers"]))
    with pytest.raises(UserError, match=r"weight files missing: gone\.safetensors"):
        load(folder)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ({"encoder.layer.1.extra": np.ones(2, np.float32)}, "encoder.layer.1.extra is unexpected"),
        ({"bert.embeddings.LayerNorm.weight": np.ones(32)}, "LayerNorm.weight is unexpected"),
        ({"encoder.layer.0.output.dense.bias": None}, "layer.0.output.dense.bias is missing"),
        (
            {"embeddings.token_type_embeddings.weight": np.ones((3, 32), np.float32)},
            r"has shape \(3, 32\), config.json implies \(2, 32\)",
        ),
    ],
)
def test_bad_checkpoint_gives_one_line(damage, says, folder):
    tensors = load_file(folder / WEIGHTS) | damage
    save_file({name: x for name, x in tensors.items() if x is not None}, folder / WEIGHTS)
    with pytest.raises(UserError, match=says) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def hub(**changes: Any) -> dict[str, Any]:
    config = json.loads((GOLDEN / "hub_config.json").read_text())
    return {key: value for key, value in (config | changes).items() if value != "absent"}


def test_both_spellings_of_the_config_are_one_arch(arch):
    assert arch_from_hf(hub()) == arch
    assert arch == EncoderArch(
        "bert",
        vocab_size=96,
        width=32,
        layers=3,
        heads=4,
        mlp_width=48,
        norm_eps=0.05,
        activation="gelu",
        max_positions=32,
        types=2,
    )
    absent = dict.fromkeys(("layer_norm_eps", "max_position_embeddings", "hidden_act"), "absent")
    defaults = arch_from_hf(hub(**absent))
    assert defaults == replace(arch, norm_eps=1e-12, max_positions=512)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"hidden_act": "swiglu"}, "hidden_act is 'swiglu'; supported: 'gelu'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ({"is_decoder": True}, "is_decoder would change the model"),
        ({"add_cross_attention": True}, "add_cross_attention would change"),
        ({"embedding_size": 16}, "embedding_size would change"),
        ({"architectures": ["BertForTokenClassification"]}, "architecture 'BertForTokenC"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"num_attention_heads": 5}, "5 attention heads do not divide the width 32"),
        ({"hidden_size": "absent"}, "hidden_size must be a number"),
        ({"model_type": "roberta"}, "model_type 'roberta' is not supported; known: .*and bert"),
    ],
)
def test_what_would_change_the_maths_is_refused(changes, says):
    with pytest.raises(UserError, match=says) as caught:
        arch_from_hf(hub(**changes))
    assert "\n" not in str(caught.value)


def test_an_encoder_is_no_receiver(tmp_path):
    home = write_encoder(tmp_path / "encoder")
    found = opened("sender", home).load(parity.one_device(), layers=1)
    assert (found.arch.cls_id, found.arch.sep_id) == (2, 3)
    assert found.params["layers"]["q"].shape == (1, 16, 4, 4)
    with pytest.raises(UserError, match="a bert encoder reads and cannot write"):
        opened("reader", home)
    bare = write_encoder(tmp_path / "bare", special=False)
    with pytest.raises(UserError, match=r"has no \[CLS\] and \[SEP\]"):
        opened("sender", bare)


def test_layers_that_are_not_loaded(arch, params):
    ids = jnp.asarray(golden["ids"])
    with pytest.raises(UserError, match="cannot run 4 layers of the encoder: 3 are loaded"):
        encoder.run(arch, params, ids, LENGTHS, stop=4)
    with pytest.raises(UserError, match=r"taps \[3\] are not all between layers 0 and 2"):
        encoder.run(arch, params, ids, LENGTHS, stop=2, taps=(3,))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_equals_live_transformers(arch, tmp_path):
    """Other tokens than the golden ones, and the names of an encoder with a head on top."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    ids = np.random.default_rng(7).integers(0, arch.vocab_size, golden["ids"].shape)
    mask = np.arange(ids.shape[1])[None] < LENGTHS[:, None]
    model = transformers.BertForMaskedLM.from_pretrained(
        GOLDEN, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        theirs = model.bert(torch.tensor(ids), attention_mask=torch.tensor(mask).long())
    model.save_pretrained(tmp_path)
    assert any(name.startswith("bert.encoder") for name in load_file(tmp_path / WEIGHTS))
    ours = states(arch, load(tmp_path), ids.astype(np.int32), LENGTHS)
    assert difference(ours[-1:], theirs.last_hidden_state.numpy()[None]) <= parity.TOLERANCE


TEXTS = (
    "Ada keeps 7 goats in the barn.",
    "The tower of Ur was built in 1203; it is 41 metres tall, and café owners sleep there.",
    "A frozen sentence vector anchors what two models say of one text.",
)


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["none", "mean"])
def test_a_real_sentence_encoder_equals_transformers(pool: str) -> None:
    """LW_JAX_MINILM names a directory of all-MiniLM-L6-v2; ids, states and sentence vectors."""
    home = os.environ.get("LW_JAX_MINILM")
    if home is None:
        pytest.skip("LW_JAX_MINILM names no directory of all-MiniLM-L6-v2")
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    spec = opened("sender", Path(home))
    assert isinstance(spec.arch, EncoderArch)
    theirs = transformers.AutoTokenizer.from_pretrained(home)(list(TEXTS), padding=True)
    model = transformers.AutoModel.from_pretrained(home, dtype=torch.float32).eval()
    ids, real = (np.asarray(theirs[key]) for key in ("input_ids", "attention_mask"))
    with torch.no_grad():
        given = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(real)}
        expected = model(**given).last_hidden_state.numpy()
    tokenizer = spec.tokenizer
    for row, text in zip(ids * real, TEXTS, strict=True):
        own = [tokenizer.bos_id, *tokenizer.encode(text), *tokenizer.tail]
        assert own == row[: len(own)].tolist() and not row[len(own) :].any()
    frozen = spec.load(parity.one_device(), None, False)
    assert isinstance(frozen, FrozenEncoder)
    lengths = real.sum(axis=1).astype(np.int32)
    skip = np.ones(len(TEXTS), np.int32)
    tokens = SourceTokens(*(jnp.asarray(x, jnp.int32) for x in (ids, lengths, skip)))
    with jax.default_matmul_precision("highest"):
        taps = jax.jit(
            lambda f, t: sentence_encoder.Config(pool=pool).extract(f, t, None)  # type: ignore[arg-type]
        )(frozen, tokens)
    found = np.asarray(taps.states[0])
    if pool == "mean":
        weight = real[..., None] / real.sum(axis=1)[:, None, None]
        expected = np.broadcast_to((expected * weight).sum(axis=1, keepdims=True), found.shape)
    apart = np.abs(np.where(real[..., None] > 0, found - expected, 0)).max()
    assert apart <= 1e-4, apart
