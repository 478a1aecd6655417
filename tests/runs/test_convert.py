"""Models in other files become directories of safetensors that say the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from lw_jax.__main__ import main
from lw_jax.errors import UserError
from lw_jax.models.config import ModelConfig
from lw_jax.models.spec import open_model
from tests.tiny.models import write_model

torch = pytest.importorskip("torch")


def pickled(source: Path, out: Path, files: int) -> dict[str, np.ndarray]:
    """A directory with the same weights, pickled."""
    out.mkdir()
    for file in source.glob("*.json"):
        if "index" not in file.name:
            shutil.copyfile(file, out / file.name)
    held = {k: v for path in source.glob("*.safetensors") for k, v in load_file(path).items()}
    names = sorted(held)
    for i in range(files):
        own = {name: torch.from_numpy(held[name].astype(np.float32)) for name in names[i::files]}
        torch.save(own, out / ("pytorch_model.bin" if files == 1 else f"pytorch_model-{i}.bin"))
    return held


@pytest.mark.parametrize("files", [1, 3])
def test_pickled_weights_become_safetensors(files: int, tmp_path: Path) -> None:
    held = pickled(write_model(tmp_path / "source", "llama"), tmp_path / "old", files)
    old, out = str(tmp_path / "old"), tmp_path / "new"
    assert main(["convert", old, str(out)]) == 0
    found = {k: v for path in out.glob("*.safetensors") for k, v in load_file(path).items()}
    assert found.keys() == held.keys()
    for name, value in held.items():
        np.testing.assert_array_equal(found[name], value.astype(np.float32))
    for folder in (tmp_path / "source", out):  # all may be read by whom any other new file may be
        (folder / "any").touch()
        assert len({one.stat().st_mode for one in folder.iterdir() if one.is_file()}) == 1
    open_model("sender", ModelConfig(str(out))).check_files()
    assert (out / "model.safetensors.index.json").is_file() == (files > 1)


def test_what_a_trainer_leaves_beside_the_weights_is_left_out(tmp_path: Path) -> None:
    held = pickled(write_model(tmp_path / "source", "llama"), tmp_path / "old", 1)
    torch.save({"lr": 1}, tmp_path / "old/training_args.bin")
    torch.save({"state": torch.zeros(2)}, tmp_path / "old/optimizer.pt")
    assert main(["convert", str(tmp_path / "old"), str(tmp_path / "new")]) == 0
    assert load_file(tmp_path / "new/model.safetensors").keys() == held.keys()


def test_a_head_that_is_not_the_embeddings_is_not_left_out_unsaid(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = tmp_path / "old"
    held = pickled(write_model(tmp_path / "source", "llama"), old, 1)
    config = json.loads((old / "config.json").read_text()) | {"tie_word_embeddings": True}
    (old / "config.json").write_text(json.dumps(config))
    assert main(["convert", str(old), str(tmp_path / "new")]) == 0
    assert load_file(tmp_path / "new/model.safetensors").keys() == held.keys()
    with pytest.raises(UserError, match=r"lm_head.weight is another matrix"):
        open_model("sender", ModelConfig(str(tmp_path / "new"))).check_weights()


@pytest.mark.parametrize("content", [b"", b"\x80\x04junk", b"PK\x03\x04junk"])
def test_a_damaged_pickle_is_one_line(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pickled(write_model(tmp_path / "source", "llama"), tmp_path / "old", 1)
    (tmp_path / "old/pytorch_model.bin").write_bytes(content)
    assert main(["convert", str(tmp_path / "old"), str(tmp_path / "new")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no archive as torch.save writes it; copy it again" in line
    assert not (tmp_path / "new").exists()


def test_what_is_no_model_is_refused_and_nothing_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held = tmp_path / "held"
    pickled(write_model(tmp_path / "source", "llama"), held, 1)

    class Harm:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "harm",))

    cases = {
        str(tmp_path / "nowhere"): "no such file or directory",
        str(tmp_path / "source"): "neither a GGUF file nor a directory with pickled weights",
    }
    for model, words in cases.items():
        assert main(["convert", model, str(tmp_path / "out")]) == 2
        assert words in capsys.readouterr().err
    for value in (Harm(), {"a": 1}, []):
        torch.save(value, held / "pytorch_model.bin")
        assert main(["convert", str(held), str(tmp_path / "out")]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "harm").exists()
    (held / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    torch.save({"a": torch.zeros(1)}, held / "pytorch_model.bin")
    assert main(["convert", str(held), str(tmp_path / "out")]) == 2
    assert {p.name for p in tmp_path.iterdir()} == {"source", "held"}
    assert main(["convert", str(held), str(held)]) == 2
    assert "is there already" in capsys.readouterr().err.splitlines()[-1]
