"""Checkpoints: streamed onto a mesh, cut at a layer, stored in few bits; faults in one line."""

import json
import shutil
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from safetensors.numpy import load_file, save_file

from lw_jax.errors import UserError
from lw_jax.models import load as loading
from lw_jax.models.checkpoint import INDEX, WEIGHTS, fingerprint, open_checkpoint
from lw_jax.models.config import ModelConfig
from lw_jax.models.load import check_headers, check_weights, load_params
from lw_jax.models.params import abstract, shapes
from lw_jax.utils.hub import forget
from tests.models import parity


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the llama checkpoint, to be damaged."""
    shutil.copytree(parity.GOLDEN / "llama", tmp_path / "llama")
    return tmp_path / "llama"


def split(folder: Path) -> None:
    """The same checkpoint in three shards with an index."""
    tensors = load_file(folder / WEIGHTS)
    names = sorted(tensors)
    places = {}
    for shard in range(3):
        file = f"model-{shard}.safetensors"
        own = [n for n in names if (f"layers.{shard}." in n) or (shard == 0 and "layers" not in n)]
        save_file({name: tensors[name] for name in own}, folder / file)
        places |= dict.fromkeys(own, file)
    (folder / WEIGHTS).unlink()
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))


def load(folder: Path, dtype=jnp.float32, **options):
    found = open_checkpoint(folder, options.get("layers"), options.get("head", True))
    return load_params(found, parity.one_device(), dtype=dtype, **options)


def test_shards_equal_one_file(folder):
    whole = load(folder)
    split(folder)
    chex.assert_trees_all_equal(load(folder), whole)


def test_one_file_counts_more_than_an_index_that_is_left_beside_it(folder):
    """As in transformers."""
    whole = load_file(folder / WEIGHTS)
    split(folder)
    save_file({name: x + 1 for name, x in whole.items()}, folder / WEIGHTS)
    want = whole["model.norm.weight"] + 1
    np.testing.assert_array_equal(load(folder)["final_norm"], want)
    assert set(open_checkpoint(folder).files.values()) == {folder / WEIGHTS}


@pytest.mark.parametrize("sharded", [False, True])
def test_a_tied_head_is_no_other_matrix(sharded, folder):
    """transformers does not tie what differs, so the config would be another model's."""
    config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / WEIGHTS)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].astype(np.float64)
    save_file(tensors, folder / WEIGHTS)
    if sharded:
        split(folder)
        index = json.loads((folder / INDEX).read_text())
        save_file({"lm_head.weight": tensors["lm_head.weight"]}, folder / "head.safetensors")
        index["weight_map"]["lm_head.weight"] = "head.safetensors"
        kept = {k: v for k, v in load_file(folder / "model-0.safetensors").items() if k[0] != "l"}
        save_file(kept, folder / "model-0.safetensors")
        (folder / INDEX).write_text(json.dumps(index))
    assert load(folder)["embed"].shape
    check_weights(open_checkpoint(folder))
    file = folder / ("head.safetensors" if sharded else WEIGHTS)
    other = load_file(file)
    other["lm_head.weight"][-1, -1] += 1
    save_file(other, file)
    found = open_checkpoint(folder)
    for read in (lambda: check_weights(found), lambda: load(folder)):
        with pytest.raises(UserError, match=r"lm_head.weight is another matrix than model.embed"):
            read()
    assert load(folder, head=False)["embed"].shape


def test_an_adapter_beside_weights_is_not_left_out_unsaid(folder):
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "some/base"}')
    with pytest.raises(UserError, match=r"a PEFT adapter; merge .*some/base.*take adapter_config"):
        open_checkpoint(folder)


def test_sender_reads_only_the_layers_it_taps(folder):
    whole = load(folder)
    split(folder)
    (folder / "model-2.safetensors").write_bytes(b"never read")
    cut = load(folder, layers=2, head=False)
    chex.assert_trees_all_equal_shapes_and_dtypes(
        cut, shapes(abstract(open_checkpoint(folder, 2, False).arch, layers=2, head=False))
    )
    chex.assert_trees_all_equal(cut["layers"], jax.tree.map(lambda x: x[:2], whole["layers"]))


def test_host_holds_one_tensor_at_a_time(folder, monkeypatch):
    """What goes to the device is never larger than one tensor of the file."""
    largest = max(x.size for x in load_file(folder / WEIGHTS).values())
    sent = []
    real = loading._on_mesh
    monkeypatch.setattr(
        loading, "_on_mesh", lambda x, *where: sent.append(x.size) or real(x, *where)
    )
    for apart in (False, True):
        sent.clear()
        load(folder, apart=apart)
        assert len(sent) == 3 * 9 + 3
        assert max(sent) == largest


@pytest.mark.parametrize(
    ("name", "quant"),
    [
        ("llama", None),
        ("qwen2", None),
        ("llama", "nf4"),
        pytest.param("llama", "int8", marks=pytest.mark.slow),
    ],
)
def test_sharded_load_equals_one_device(name, quant):
    mesh = jax.make_mesh((2, 4), ("data", "tensor"), (AxisType.Auto,) * 2)
    found = open_checkpoint(parity.GOLDEN / name)
    arch, ids = found.arch, parity.load_file(parity.GOLDEN / name / "golden.safetensors")["ids"]
    one = load_params(found, parity.one_device(), dtype=jnp.float32, quant=quant)
    spread = load_params(found, mesh, dtype=jnp.float32, quant=quant)
    layers = spread["layers"]

    def shard(x):
        x = x.codes if quant and not isinstance(x, jax.Array) else x
        return x.sharding.shard_shape(x.shape)

    rows = arch.width // 2 if quant == "nf4" else arch.width
    h = arch.head_dim
    assert shard(layers["q"]) == (3, rows, 1, h)
    assert shard(layers["k"]) == (3, rows, 2, h)  # 2 key/value heads cannot be split 4 ways
    assert shard(layers["gate"]) == (3, rows, 12)
    assert shard(layers["attn_norm"]) == (3, arch.width)
    assert shard(spread["embed"]) == (24, arch.width)
    if quant is None:
        assert shard(layers["o"]) == (3, 1, h, arch.width)
        assert shard(layers["down"]) == (3, 12, arch.width)
    if arch.qkv_bias:
        assert shard(layers["q_bias"]) == (3, 1, h)
    logits = [parity.logits_of(arch, p, ids, parity.LENGTHS) for p in (one, spread)]
    np.testing.assert_allclose(logits[0], logits[1], atol=1e-4)


def test_bf16_is_the_default_and_float16_files_are_read(folder):
    half = {name: x.astype(np.float16) for name, x in load_file(folder / WEIGHTS).items()}
    save_file(half, folder / WEIGHTS)
    loaded = load_params(open_checkpoint(folder), parity.one_device())
    assert {x.dtype for x in jax.tree.leaves(loaded)} == {jnp.dtype(jnp.bfloat16)}


def test_fingerprint_sees_weights_and_arch_and_not_the_place(folder, tmp_path):
    def of(path: Path) -> str:
        found = open_checkpoint(path)
        return fingerprint(found.arch, found.files.values())

    first = of(folder)
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    assert of(moved) == first
    tensors = load_file(moved / WEIGHTS)
    tensors["model.norm.weight"][0] += 1e-3
    save_file(tensors, moved / WEIGHTS)
    assert of(moved) != first
    config = json.loads((folder / "config.json").read_text()) | {"rms_norm_eps": 1e-5}
    (folder / "config.json").write_text(json.dumps(config))
    assert of(folder) != first


def change(folder: Path, **tensors) -> None:
    kept = load_file(folder / WEIGHTS) | tensors
    save_file({name: x for name, x in kept.items() if x is not None}, folder / WEIGHTS)


def several(folder: Path) -> None:
    change(
        folder,
        **{
            "model.norm.weight": None,
            "model.layers.1.mlp.up_proj.weight": np.zeros((4, 4), np.float32),
            "model.layers.2.mlp.up_proj.weight": np.zeros((48, 32), np.int8),
            "model.layers.3.mlp.up_proj.weight": np.zeros((48, 32), np.float32),
        },
    )


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04")


def escaping(folder: Path) -> None:
    split(folder)
    index = json.loads((folder / INDEX).read_text())
    places = dict.fromkeys(index["weight_map"], "../model.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))


FAULTS = {
    "several": (
        several,
        [
            "model.norm.weight is missing",
            "layers.1.mlp.up_proj.weight has shape (4, 4), config.json implies (48, 32)",
            "layers.2.mlp.up_proj.weight is I8",
            "layers.3.mlp.up_proj.weight is unexpected",
        ],
    ),
    "pickled": (pickled, ["only pickled weights"]),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), ["weight files missing: model.safetensors"]),
    "torn": (lambda f: (f / WEIGHTS).write_bytes(b"\x10" * 40), ["no readable safetensors"]),
    "shard gone": (
        lambda f: (split(f), (f / "model-1.safetensors").unlink()),
        ["weight files missing: model-1.safetensors"],
    ),
    "escaping": (escaping, ["outside the model directory"]),
    "no config": (lambda f: (f / "config.json").unlink(), ["no config.json"]),
    "bad config": (
        lambda f: (f / "config.json").write_text("{"),
        ["config.json is damaged", "put it right"],
    ),
    "list": (lambda f: (f / "config.json").write_text("[]"), ["expected an object"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_checkpoint_gives_one_line(fault, folder):
    damage, says = FAULTS[fault]
    damage(folder)
    with pytest.raises(UserError) as caught:
        load(folder)
    message = str(caught.value)
    assert all(piece in message for piece in says), message
    assert "\n" not in message
    assert str(folder) in message


def test_many_faults_are_counted(folder):
    names = [name for name in load_file(folder / WEIGHTS) if "layers.1." in name]
    change(folder, **dict.fromkeys(names))
    with pytest.raises(UserError, match="and 4 more"):
        load(folder)


def test_unknown_model_is_named():
    with pytest.raises(UserError, match="no such directory here") as caught:
        open_checkpoint("nobody/no-such-model")
    assert "nobody/no-such-model" in str(caught.value)
    with pytest.raises(UserError, match="no such directory here"):
        open_checkpoint("/no/such/place")


def test_more_layers_than_there_are(folder):
    with pytest.raises(UserError, match="cannot load 4 of 3 layers"):
        load_params(open_checkpoint(folder), parity.one_device(), layers=4)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("dtype", "options"),
    [(np.float32, {}), (jnp.bfloat16, {"quant": "nf4"}), (np.float16, {"layers": 2}), (float, {})],
)
def test_weights_that_are_not_finite_are_refused_by_name(value, dtype, options, folder):
    name = "model.layers.1.mlp.up_proj.weight"
    tensor = load_file(folder / WEIGHTS)[name].astype(dtype)
    tensor[-1, -1] = value
    change(folder, **{name: tensor})
    with pytest.raises(UserError, match="1 of its 1536 weights are not finite") as caught:
        load(folder, **options)
    assert str(caught.value).startswith(f"{folder}: {name}: ")


def test_weights_that_overflow_the_dtype_are_refused(folder):
    name = "model.norm.weight"
    norm = load_file(folder / WEIGHTS)[name]
    norm[3] = np.finfo(np.float32).max
    change(folder, **{name: norm})
    load(folder)
    with pytest.raises(UserError, match=f"{name}: 1 of its 32 weights are not finite"):
        load(folder, dtype=jnp.bfloat16)
    change(folder, **{name: np.full(32, 1e300)})
    with pytest.raises(UserError, match=f"{name}: 32 of its 32"):
        load(folder)


def test_wrong_shapes_are_found_from_the_headers_alone(folder, monkeypatch):
    config = json.loads((folder / "config.json").read_text()) | {"intermediate_size": 40}
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(loading, "_read", lambda *_: pytest.fail("a weight was read"))
    with pytest.raises(UserError, match=r"\(48, 32\), config.json implies \(40, 32\)") as caught:
        check_headers(open_checkpoint(folder))
    assert str(caught.value).count("has shape") == 3
    assert str(caught.value).endswith("and 6 more")


def adapter(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')


def gguf(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "model-q4.gguf").write_bytes(b"GGUF")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (adapter, r"a PEFT adapter; merge it into its base model \('org/base'\) first"),
        (gguf, "is no readable GGUF file"),
        (pickled, r"convert them to model.safetensors.*python -c .*save_pretrained"),
    ],
)
def test_what_a_directory_holds_instead_is_named(damage, says, folder):
    damage(folder)
    with pytest.raises(UserError, match=says) as caught:
        open_checkpoint(folder)
    assert str(caught.value).startswith(str(folder))


@pytest.fixture
def hub(monkeypatch):
    """Questions that went to the hub, which answers none."""
    asked = []

    def snapshot_download(name, **how):
        asked.append((name, how["revision"], how["local_files_only"]))
        raise ConnectionError

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    forget()
    yield asked
    forget()


def test_a_file_and_a_path_are_never_looked_up_on_the_hub(folder, hub):
    file = folder / "model.gguf"
    file.write_bytes(b"GGUF...")
    with pytest.raises(UserError, match=r"model\.gguf: is no readable GGUF file"):
        open_checkpoint(file)
    with pytest.raises(UserError, match="is a file; give the model's"):
        open_checkpoint(folder / "config.json")
    for place in ("/no/such/place", "./none", "../none", "~/none", "x" * 5000, "a\0b"):
        with pytest.raises(UserError, match="no such directory here") as caught:
            open_checkpoint(place)
        assert len(str(caught.value)) < 300
    assert hub == []


def test_the_hub_is_asked_once(hub):
    for _ in range(3):
        with pytest.raises(UserError, match="hub cannot be reached"):
            open_checkpoint("org/model")
    with pytest.raises(UserError, match="hub cannot be reached"):
        open_checkpoint("org/another", revision="v2")
    # The second is looked for in the cache alone: the hub was out of reach.
    assert hub == [("org/model", None, False), ("org/another", "v2", True)]


def test_a_directory_has_no_revision(folder):
    with pytest.raises(UserError, match=r"revision: .* is a directory here"):
        open_checkpoint(folder, revision="main")
    for text in ("", " main", "a\nb", "x" * 2000):
        with pytest.raises(UserError, match="revision: expected "):
            ModelConfig("org/model", revision=text)
