"""A whole model directory: saved, loaded, its tokenizer, its ids."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lw_jax.errors import UserError
from lw_jax.models.config import ModelConfig
from lw_jax.models.params import init
from lw_jax.models.save import save_pretrained
from lw_jax.models.spec import FrozenSpec, open_model
from lw_jax.models.tokenizer import decode, encode, load_tokenizer
from tests.models import parity
from tests.tiny.arch import decoder

ARCH = decoder("llama", 300, 16, 2, 2, 1, 8, 24, bos_id=0, eos_ids=(1, 2), init_std=0.3)


def bpe(bos: str | None = "<s>", puts_bos: bool = True) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=["<s>", "</s>", "<eot>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(["Question: what is it? Answer: a test of tests"] * 4, trainer)
    if puts_bos:
        core.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token=bos, eos_token="</s>")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    params = jax.jit(init, static_argnums=0)(ARCH, jax.random.key(0))
    save_pretrained(path, ARCH, params, bpe())
    return path


def opened(folder: Path) -> FrozenSpec:
    return open_model("reader", ModelConfig(str(folder), dtype="float32"))


def test_saved_model_is_loaded_again(folder):
    spec = opened(folder)
    lm = spec.load(parity.one_device())
    want = jax.jit(init, static_argnums=0)(ARCH, jax.random.key(0))
    as_bf16 = jax.tree.map(lambda x: np.asarray(x).astype(jnp.bfloat16).astype(np.float32), want)
    jax.tree.map(np.testing.assert_array_equal, lm.params, as_bf16)
    assert lm.arch == spec.arch == ARCH
    assert len(spec.fingerprint()) == 32
    cut = spec.load(parity.one_device(), layers=1, head=False)
    assert spec.fingerprint(layers=1, head=False) == spec.fingerprint()
    assert sorted(cut.params) == ["embed", "layers"]
    assert cut.params["layers"]["q"].shape[0] == 1


def test_text_is_encoded_as_text(folder):
    tokenizer = load_tokenizer(folder)
    text = "Question: what </s> is\n  it? <s>"
    ids = encode(tokenizer, text)
    assert not {0, 1, 2} & set(ids)
    assert decode(tokenizer, ids) == text
    assert decode(tokenizer, [0, *ids, 1]) == text


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_the_tokenizer_is_what_transformers_takes_it_for(family, folder, tmp_path):
    """Whatever class its files name."""
    other = shutil.copytree(folder, tmp_path / "model")
    plain = "PreTrainedTokenizerFast", "TokenizersBackend"
    for name in (None, "LlamaTokenizer", *plain, "Qwen2Tokenizer"):
        changes = {"config": {"model_type": family}, "tokenizer_config": {"tokenizer_class": name}}
        for file, change in changes.items():
            said = json.loads((folder / f"{file}.json").read_text())
            (other / f"{file}.json").write_text(json.dumps(said | change))
        ours = load_tokenizer(other)
        theirs = AutoTokenizer.from_pretrained(str(other), local_files_only=True)
        assert type(ours) is type(theirs)
        assert ours.special_tokens_map == theirs.special_tokens_map
        assert ours.backend_tokenizer.to_str() == theirs.backend_tokenizer.to_str()


def test_a_plain_tokenizer_is_read_without_torch(folder):
    code = (
        "import sys\n"
        "from lw_jax.models.tokenizer import load_tokenizer\n"
        f"load_tokenizer({str(folder)!r})\n"
        "assert 'torch' not in sys.modules and 'transformers' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize("bos", [None, "<s>"])
def test_tokenizer_decides_on_bos(bos, folder, tmp_path):
    """Also one that names a BOS which it never puts before a text."""
    other = shutil.copytree(folder, tmp_path / "model")
    bpe(bos, puts_bos=False).save_pretrained(other)
    assert json.loads((other / "config.json").read_text())["bos_token_id"] == 0
    assert opened(other).arch.bos_id is None


def edited(folder: Path, change: Callable[[Any], None]) -> None:
    """Changes tokenizer.json."""
    whole = json.loads((folder / "tokenizer.json").read_text())
    change(whole)
    (folder / "tokenizer.json").write_text(json.dumps(whole))


def test_bos_is_what_the_tokenizer_puts_even_if_no_file_names_it(folder, tmp_path):
    """Its chat template may write it as well: then it is not put twice."""
    other = shutil.copytree(folder, tmp_path / "model")
    (other / "tokenizer_config.json").unlink()
    (other / "chat_template.jinja").write_text("<s>{{ messages[0]['content'] }}<eot>")
    spec = opened(other)
    assert (spec.arch.bos_id, spec.tokenizer.bos_id) == (0, 0)
    assert spec.tokenizer.chat == ("", "<eot>")
    assert spec.fingerprint() != opened(folder).fingerprint()


def two_bos(folder: Path) -> None:
    edited(
        folder, lambda t: t["post_processor"]["single"].insert(0, t["post_processor"]["single"][0])
    )


def far_id(folder: Path) -> None:
    """A token of the middle, so that there are no more tokens than embeddings."""
    edited(folder, lambda t: t["model"]["vocab"].update({list(t["model"]["vocab"])[9]: 5000}))


def same_id(folder: Path) -> None:
    edited(folder, lambda t: t["model"]["vocab"].update({list(t["model"]["vocab"])[9]: 10}))


def dropped_merges(folder: Path) -> None:
    edited(folder, lambda t: t["model"].update({"dropout": 0.1}))


def lost_link(folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    (folder / "generation_config.json").symlink_to("../blobs/gone")


def a_directory(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()
    (folder / "tokenizer_config.json").mkdir()


def a_list(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text("[]")


def panics(folder: Path) -> None:
    bad = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    edited(folder, lambda t: t.update({"normalizer": bad}))


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def torn_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


def few_embeddings(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"vocab_size": 200}
    (folder / "config.json").write_text(json.dumps(config))


def no_eos(folder: Path) -> None:
    for name in ("config.json", "generation_config.json"):
        value = json.loads((folder / name).read_text()) | {"eos_token_id": None}
        (folder / name).write_text(json.dumps(value))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["eos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (no_tokenizer, "no tokenizer.json"),
        (torn_tokenizer, "tokenizer cannot be read"),
        (few_embeddings, "embeds only 200 tokens"),
        (no_eos, "EOS"),
        (two_bos, r"puts 2 tokens before a text \(0, 0\)"),
        (far_id, "ids up to 5000, the model embeds only 300 tokens"),
        (same_id, "tokenizer.json: 2 tokens have the id 10"),
        (dropped_merges, "model.dropout is 0.1"),
        (lost_link, "generation_config.json is no file, or a link to one that is gone"),
        (a_directory, "tokenizer_config.json is no file"),
        (a_list, r"tokenizer_config.json is damaged \(expected an object, not \[\]\)"),
        (panics, "the tokenizer cannot be read: Precompiled"),
    ],
)
def test_bad_tokenizer_gives_one_line(damage, says, folder, tmp_path, capfd):
    damaged = shutil.copytree(folder, tmp_path / "model")
    damage(damaged)
    with pytest.raises(UserError, match=says) as caught:
        opened(damaged)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""
