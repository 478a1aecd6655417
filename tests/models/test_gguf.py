"""GGUF files: weights, config and tokens of the Hugging Face directory that they were made of."""

import json
import os
from pathlib import Path
from typing import Any

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from lw_jax.errors import UserError
from lw_jax.models import gguf as reading
from lw_jax.models.arch import Llama3Scaling
from lw_jax.models.checkpoint import WEIGHTS, open_checkpoint, read_arch, small_files
from lw_jax.models.load import load_params
from lw_jax.models.tokenizer import load_tokenizer
from tests.models import parity
from tests.real_data import real_file
from tests.tiny.gguf_file import write_gguf

gguf = pytest.importorskip("gguf")

ZOO = Path(__file__).parents[2] / "zoo" / "tiny-llama"
TEXTS = [
    "Nadia Rovek keeps 12 goats in the barn.\nQuestion:",
    "  two  spaces\t1234567 3.14 don't",
    "naïve 日本 👩‍👩‍👧 end ",
    "",
]


def write(path: Path, family: str, kind: str = "F32", **changes: Any) -> Path:
    """A GGUF file of a golden checkpoint."""
    return write_gguf(path, parity.GOLDEN / family, kind, **changes)


def params(path: Path, **options: Any) -> Any:
    found = open_checkpoint(path, options.get("layers"), options.get("head", True))
    return load_params(found, parity.one_device(), dtype=jnp.float32, **options)


@pytest.mark.parametrize("family", ["llama", "llama2", "mistral", "qwen2", "qwen2_tied", "qwen3"])
def test_weights_and_config_are_those_of_the_directory(family, tmp_path):
    """With fewer key/value heads than heads, biases, norms of the heads, tied and untied."""
    path = write(tmp_path / "model.gguf", family)
    arch, whole = read_arch(parity.GOLDEN / family), params(parity.GOLDEN / family)
    found = read_arch(small_files(tmp_path))
    for field in "width layers heads kv_heads head_dim mlp_width vocab_size tied".split():
        assert getattr(found, field) == getattr(arch, field), field
    assert found.rope.theta == arch.rope.theta
    chex.assert_trees_all_equal(params(path), whole)
    cut = params(path, layers=2, head=False)
    chex.assert_trees_all_equal(cut["layers"]["q"], whole["layers"]["q"][:2])
    assert "head" not in cut


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_1", "Q5_0"])
def test_quantised_weights_are_what_the_package_makes_of_them(kind, tmp_path):
    path = write(tmp_path / "model.gguf", "qwen2", kind)
    exact = load_file(parity.GOLDEN / "qwen2" / WEIGHTS)["model.layers.1.mlp.up_proj.weight"]
    stored = gguf.GGMLQuantizationType[kind]
    expected = gguf.quants.dequantize(gguf.quants.quantize(exact, stored), stored)
    found = reading.open_gguf(path).get_tensor("model.layers.1.mlp.up_proj.weight")
    np.testing.assert_array_equal(found, expected)
    assert np.abs(found - exact).max() > 0
    assert kind in reading.open_gguf(path).stored


def test_llama_3_scaling_is_recovered_from_its_factors(tmp_path):
    from lw_jax.models.rope import angles

    file = write(tmp_path / "model.gguf", "llama")
    opened = reading.open_gguf(file)
    arch = read_arch(file)
    scaled = Llama3Scaling(32.0, 1.0, 4.0, 8192)
    theta = 500000.0
    steps = np.arange(arch.head_dim // 2) / (arch.head_dim // 2)
    plain = theta**-steps
    import dataclasses

    wanted = dataclasses.replace(
        arch, rope=dataclasses.replace(arch.rope, theta=theta, scaling=scaled)
    )
    cos, sin = angles(wanted, jnp.ones((1, 1), jnp.int32))
    turned = np.arctan2(np.asarray(sin), np.asarray(cos)).reshape(-1)[: len(plain)]
    factors = (plain / turned).astype(np.float32)
    found = opened._llama3({"rope_theta": theta}, factors)
    assert found["factor"] == pytest.approx(32.0, rel=1e-4)
    with pytest.raises(UserError, match="not the factors of a Llama 3 model"):
        opened._llama3({"rope_theta": theta}, factors + np.float32(0.5))


def tokenizer_file(path: Path) -> Path:
    """A GGUF file that holds the tokenizer of a model that ships."""
    held = json.loads((ZOO / "tokenizer.json").read_text())
    vocab = {**held["model"]["vocab"], **{t["content"]: t["id"] for t in held["added_tokens"]}}
    tokens = sorted(vocab, key=lambda token: vocab[token])
    special = {t["content"] for t in held["added_tokens"]}
    out = gguf.GGUFWriter(path, "llama")
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("qwen2")
    out.add_token_list(tokens)
    out.add_token_types([3 if token in special else 1 for token in tokens])
    merges = held["model"]["merges"]
    out.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    out.add_add_bos_token(True)
    out.add_chat_template("{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}")
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


def test_tokens_are_those_of_transformers(tmp_path):
    pytest.importorskip("torch")  # by which transformers reads the file
    from transformers.integrations.gguf import convert_gguf_tokenizer, get_gguf_tokenizer

    path = tokenizer_file(tmp_path / "model.gguf")
    ours = load_tokenizer(path)
    family, said, config = get_gguf_tokenizer(str(path))
    theirs, _ = convert_gguf_tokenizer(family, said)
    for text in TEXTS:
        ids = ours(text, add_special_tokens=False)["input_ids"]
        assert ids == theirs.encode(text, add_special_tokens=False).ids
        assert ours.decode(ids) == text
        assert ours(text)["input_ids"] == [1, *ids]  # as add_bos_token says
    assert config["eos_token"] == ours.eos_token == "</s>"
    chat = [{"role": "user", "content": "hello"}]
    assert ours.apply_chat_template(chat, tokenize=False) == "<s>hello</s>"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architecture": "gemma3"}, "architecture 'gemma3' are not supported; known: llama"),
        ({"rope__scaling__type": "yarn"}, "rope.scaling.type = 'yarn' would change the model"),
        ({"expert_count": 8}, "expert_count = 8 would change the model"),
        ({"rope__dimension_count": 4}, "rope.dimension_count = 4 would change the model"),
        ({"logit_scale": 0.5}, "logit_scale = 0.5 would change the model"),
        ({"block_count": None}, "num_hidden_layers"),
    ],
)
def test_what_would_change_the_model_is_refused(changes, said, tmp_path):
    path = write(tmp_path / "model.gguf", "qwen2", **changes)
    with pytest.raises(UserError, match=said) as error:
        read_arch(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_damaged_files_are_one_line(tmp_path):
    whole = write(tmp_path / "model.gguf", "qwen2").read_bytes()
    for name, data in {
        "empty": b"",
        "cut": whole[:2000],
        "short": whole[: len(whole) // 2],
        "text": b"not a model" * 9,
        "magic": b"GGUF" + b"\xff" * 60,
    }.items():
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(data)
        with pytest.raises(UserError, match=name) as error:
            params(path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("general.architecture", ["llama"], r"models of architecture \['llama'\] are not"),
        ("llama.embedding_length", "288", "hidden_size must be a number, found '288'"),
        ("llama.attention.head_count", [9, 9], r"num_attention_heads must be a number, found \[9"),
        ("tokenizer.ggml.bos_token_id", 99999, "bos_token_id = 99999 is no token's id; there are"),
        ("tokenizer.ggml.eos_token_id", [2], r"eos_token_id = \[2\] is no token's id"),
        ("tokenizer.ggml.padding_token_id", "x", "padding_token_id = 'x' is no token's id"),
        ("tokenizer.ggml.merges", [], "the tokenizer cannot be read: no 'scores'"),
    ],
)
def test_metadata_of_another_kind_is_one_line(key, value, said, tmp_path, monkeypatch):
    written = gguf.GGUFWriter.write_header_to_file

    def changed(out: Any, *given: Any) -> None:
        for held in out.kv_data:
            held.pop(key, None)
        add = {str: out.add_string, int: out.add_uint32, list: out.add_array}[type(value)]
        add(key, value)
        written(out, *given)

    monkeypatch.setattr(gguf.GGUFWriter, "write_header_to_file", changed)
    if key.startswith("tokenizer"):
        path = tokenizer_file(tmp_path / "model.gguf")
        read: Any = load_tokenizer
    else:
        path, read = write(tmp_path / "model.gguf", "llama"), read_arch
    with pytest.raises(UserError, match=said) as error:
        read(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_texts_that_are_no_utf8_are_one_line(tmp_path):
    whole = tokenizer_file(tmp_path / "model.gguf").read_bytes()
    for text in (b"ing", b"qwen2"):  # a token, and a text by itself
        path = tmp_path / "garbled.gguf"
        path.write_bytes(whole.replace(text, b"\xf5" + text[1:], 1))
        with pytest.raises(UserError, match="is no readable GGUF file: 'utf-8' codec"):
            load_tokenizer(path)
        path.unlink()


@pytest.mark.parametrize("endian", ["LITTLE", "BIG"])
def test_long_lists_are_those_of_the_package(endian, tmp_path):
    from lw_jax.models.gguf_reader import LONG, Reader, values

    path, order = tmp_path / "lists.gguf", gguf.GGUFEndian[endian]
    out = gguf.GGUFWriter(path, "llama", endianess=order)
    texts = [f"wörd {i}" if i % 7 else "" for i in range(LONG + 5)]
    out.add_array("long.strings", texts)
    out.add_array("long.floats", [i / 3 for i in range(LONG)])
    out.add_array("long.whole", list(range(LONG)))
    out.add_array("short.strings", texts[:9])
    out.add_string("after", "them")
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.close()
    theirs, ours = gguf.GGUFReader(path).fields, Reader(path).fields
    assert ours.keys() == theirs.keys() and "after" in ours
    for key, field in theirs.items():
        of = values if key.startswith(("long", "short")) else lambda one: one.contents()
        assert of(ours[key]) == field.contents(), key
        assert len(ours[key].data) == len(field.data)
    assert values(ours["long.strings"]) == texts
    if endian == "LITTLE":
        assert len(ours["long.strings"].parts) < 9 < len(theirs["long.strings"].parts)
        cut = path.read_bytes()
        (tmp_path / "cut.gguf").write_bytes(cut[: cut.index("wörd 900".encode())])
        for begun in ("wörd 900", "long.floats"):
            at = cut.index(begun.encode())
            (tmp_path / "cut.gguf").write_bytes(cut[: at + 100])
            with pytest.raises(ValueError, match=r"end|dtype"):
                Reader(tmp_path / "cut.gguf")


def test_a_missing_tensor_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / "model.gguf", "qwen2")
    opened = reading.open_gguf(path)
    monkeypatch.delitem(opened._tensors, "model.layers.1.mlp.up_proj.weight")
    with pytest.raises(UserError, match=r"layers.1.mlp.up_proj.weight is missing"):
        params(path)


def test_a_directory_names_its_one_file(tmp_path):
    with pytest.raises(UserError, match=r"no config\.json"):
        read_arch(small_files(tmp_path))
    path = write(tmp_path / "a.gguf", "qwen2")
    assert small_files(tmp_path) == path
    write(tmp_path / "b.gguf", "qwen2")
    with pytest.raises(UserError, match=r"2 GGUF files \(a.gguf, b.gguf\); name one"):
        small_files(tmp_path)


def test_without_the_package_its_name_is_said(tmp_path, monkeypatch):
    import sys

    path = write(tmp_path / "model.gguf", "qwen2")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match="need the package gguf"):
        reading.GGUF(path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct"])
def test_real_files_are_read_as_transformers_reads_them(name, capsys):
    """LW_JAX_GGUF names a directory with these files, LW_JAX_DATA one with real texts."""
    home = os.environ.get("LW_JAX_GGUF")
    if home is None:
        pytest.skip("LW_JAX_GGUF names no directory of real GGUF files")
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    path = Path(home) / f"{name}.gguf"
    lines = real_file("prose_levels.jsonl").read_text(encoding="utf-8").splitlines()[:2400]
    texts = [json.loads(line)["context"] for line in lines[:1000]] + TEXTS
    ours = load_tokenizer(path)
    theirs = transformers.AutoTokenizer.from_pretrained(home, gguf_file=path.name)
    for text in texts:
        assert ours(text)["input_ids"] == theirs(text)["input_ids"], text
    rows = [ours(json.loads(line)["context"])["input_ids"][:48] for line in lines[2000:]]
    ids = np.array([row for row in rows if len(row) == 48][:2], np.int32)
    full = np.full(2, 48, np.int32)
    found = np.asarray(parity.logits_of(read_arch(path), params(path), ids, full))
    model = transformers.AutoModelForCausalLM.from_pretrained(
        home, gguf_file=path.name, dtype=torch.float32
    )
    with torch.no_grad():
        single = model(torch.tensor(ids)).logits.numpy()
        exact = model.double()(torch.tensor(ids)).logits.numpy()
    apart = {
        "to transformers": np.abs(found - single).max(),
        "to float64": np.abs(found - exact).max(),
        "transformers' own to float64": np.abs(single - exact).max(),
    }
    with capsys.disabled():
        print(f"\n{name}: {len(texts)} texts; largest logit {np.abs(exact).max():.1f};", apart)
    # As near to the exact numbers as another float32 program is.
    assert apart["to float64"] <= 3 * apart["transformers' own to float64"]
