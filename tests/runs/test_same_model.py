"""A bridge knows how its models were stored; it takes them stored otherwise where that is asked."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file, save_file

from lw_jax.api import Bridge
from lw_jax.config.parse import from_dict
from lw_jax.errors import UserError
from lw_jax.mesh import MeshConfig, make_mesh
from lw_jax.models.checkpoint import WEIGHTS
from lw_jax.models.config import ModelConfig
from lw_jax.models.spec import open_model
from lw_jax.models.stored import about, same_model
from lw_jax.runs.export import main as export
from lw_jax.runs.exported import about_bridge
from lw_jax.runs.session import open_pipeline
from lw_jax.runs.trained import check_frozen
from tests.tiny.evaluation import RECEIVER
from tests.tiny.gguf_file import write_gguf
from tests.tiny.run import make_models, make_run, raw_config

TEXT = "Nadia Rovek keeps 12 goats in the barn."


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Whose sender ends in a token that transformers adds to every GGUF vocabulary of bytes."""
    found = make_models(tmp_path_factory.mktemp("models"))
    for path in found["llama"].glob("*token*.json"):
        path.write_text(path.read_text().replace("</s>", "<|endoftext|>"))
    return found


@pytest.fixture(scope="module")
def bridge(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported bridge between the two, whose run is gone."""
    home = tmp_path_factory.mktemp("bridge")
    raw = raw_config(models, home / "run", methods=["latent"], rows=4)
    make_run(from_dict(raw), Console(file=io.StringIO()))
    assert export([str(home / "run"), str(home / "out")]) == 0
    return home / "out"


def stored(folder: Path, target: Path, change: Callable[[np.ndarray], np.ndarray]) -> Path:
    """A copy of a model whose tensors are stored otherwise."""
    shutil.copytree(folder, target)
    tensors = {name: change(x) for name, x in load_file(folder / WEIGHTS).items()}
    save_file(tensors, target / WEIGHTS, metadata={"format": "pt"})
    return target


def as_float32(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float32)


def test_a_bridge_keeps_how_its_models_were_stored(bridge: Path) -> None:
    held = about_bridge(bridge)["models"]
    assert {name: one["stored"] for name, one in held.items()} == {
        "sender": "safetensors BF16, run in float32",
        RECEIVER: "safetensors BF16, run in float32",
    }


def test_models_stored_otherwise_are_refused_and_taken_where_that_is_asked_for(
    models: dict[str, Path],
    bridge: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The same numbers in other files say the same."""
    moved = {RECEIVER: stored(models["mistral"], tmp_path / "mistral", as_float32)}
    said = r"reader: stored as safetensors F32, run in float32, the bridge was trained with safete"
    for given in ({}, {"fingerprint": "exact"}):
        with pytest.raises(UserError, match=said):
            Bridge.load(bridge, receivers=moved, **given)
    capsys.readouterr()
    other = Bridge.load(bridge, receivers=moved, fingerprint="same_model")
    lines = [x for x in capsys.readouterr().out.splitlines() if x.startswith("warning:")]
    assert len(lines) == 1 and "trained with safetensors BF16, run in float32; measure" in lines[0]
    own = Bridge.load(bridge)
    packet = own.encode(TEXT)
    assert other.encode(TEXT) == packet
    assert other.answer(packet, "What?") == own.answer(packet, "What?")
    with pytest.raises(UserError, match="fingerprint"):
        Bridge.load(bridge, fingerprint="any")  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_sender_in_a_gguf_file(models: dict[str, Path], bridge: Path, tmp_path: Path) -> None:
    """In another format and other bits; the sending end alone."""
    pytest.importorskip("gguf")
    file = write_gguf(tmp_path / "model.gguf", models["llama"], "Q8_0")
    with pytest.raises(UserError, match=r"sender: stored as gguf .*, run in float32, the bridge"):
        Bridge.load(bridge, role="sender", sender=file)
    taken = Bridge.load(bridge, role="sender", sender=file, fingerprint="same_model")
    assert taken.encode(TEXT)


def examined(models: dict[str, Path], bridge: Path, fingerprint: str, **changes: Any) -> None:
    """Whether a run's models are those of the bridge."""
    raw = raw_config(models, bridge / "none") | {"fingerprint": fingerprint}
    raw["receivers"][RECEIVER] |= changes
    config = from_dict(raw)
    pipeline = open_pipeline(config, make_mesh(MeshConfig(data=1)))
    check_frozen(about_bridge(bridge), pipeline, bridge)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "words"),
    [({"dtype": "bfloat16"}, "run in bfloat16"), ({"quant": "int8"}, "run in int8 and float32")],
)
def test_other_bits_of_the_same_files_count(
    models: dict[str, Path], bridge: Path, changes: dict[str, str], words: str
) -> None:
    examined(models, bridge, "exact")
    with pytest.raises(UserError, match=rf"reader: stored as safetensors BF16, {words}, the bridg"):
        examined(models, bridge, "exact", **changes)
    examined(models, bridge, "same_model", **changes)


def test_another_model_is_never_the_same(
    models: dict[str, Path], bridge: Path, tmp_path: Path
) -> None:
    """Another vocabulary, another shape, random weights."""
    file = models["mistral"] / "tokenizer.json"
    other = tmp_path / "mistral"
    shutil.copytree(models["mistral"], other)
    state = json.loads(file.read_text())
    vocab = state["model"]["vocab"]
    vocab["1"], vocab["4"] = vocab["4"], vocab["1"]
    (other / "tokenizer.json").write_text(json.dumps(state))
    for kind in ("exact", "same_model"):
        with pytest.raises(UserError, match="other receivers than reader with these weights"):
            Bridge.load(bridge, receivers={RECEIVER: other}, fingerprint=kind)  # type: ignore[arg-type]
    held = about_bridge(bridge)["models"]["sender"]
    drawn = ModelConfig(str(models["llama"]), dtype="float32", random_weights=1)
    assert not same_model(held, about(open_model("sender", drawn), 1, False))
    config = json.loads((models["llama"] / "config.json").read_text())
    odd = tmp_path / "odd"
    shutil.copytree(models["llama"], odd)
    (odd / "config.json").write_text(json.dumps(config | {"rope_theta": 5e5}))
    assert not same_model(held, about(open_model("sender", ModelConfig(str(odd))), 1, False))
    half = stored(models["llama"], tmp_path / "half", lambda x: x.astype(ml_dtypes.bfloat16))
    assert same_model(held, about(open_model("sender", ModelConfig(str(half))), 1, False))
