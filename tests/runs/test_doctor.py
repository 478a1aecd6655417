"""The doctor: what it looks at, what it says, and that it says it before a run."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from safetensors.numpy import load_file, save_file

from lw_jax.config.parse import read
from lw_jax.errors import UserError
from lw_jax.runs import doctor
from lw_jax.runs.doctor import Finding, check, examine, report
from lw_jax.runs.memory import GIB, Need
from lw_jax.train import optimiser
from tests.config.conftest import Write


def findings(path: Path, *flags: str, memory: bool = False) -> list[Finding]:
    pairs = [tuple(flag.split("=", 1)) for flag in flags]
    return examine(read(path, pairs), memory=memory)  # type: ignore[arg-type]


def errors(path: Path, *flags: str, memory: bool = False) -> dict[str, str]:
    return {f.key: f.text for f in findings(path, *flags, memory=memory) if f.level == "error"}


def test_a_sound_config(write: Write) -> None:
    found = findings(write(), memory=True)
    assert {f.level for f in found} == {"ok"}
    said = {f.key: f.text for f in found}
    assert "llama, 2 layers of width 16, vocabulary 300" in said["sender.path"]
    assert said["bridge.source"] == "2 taps of width 16"
    assert "labels of" in said["receivers.reader"]
    assert "MiB frozen weights" in said["stages.fit.train"]
    out = io.StringIO()
    assert report(found, Console(file=out, width=120)) == 0
    assert "ready to run" in out.getvalue()


def test_relay_needs_room_for_the_whole_sender(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, key = write(), "stages.report.evaluate"
    relay = f"{key}.methods=[latent, relay]"
    assert key not in {f.key for f in findings(path, memory=True)}
    found = next(f for f in findings(path, relay, memory=True) if f.key == key)
    weights = Path(read(path, []).sender.path) / "model.safetensors"
    size = sum(4 * tensor.size for tensor in load_file(weights).values())
    assert found.level == "ok"
    assert f"relay: {size / 2**20:.1f} MiB whole sender + " in found.text
    monkeypatch.setattr(doctor, "device_memory", lambda: size)  # fits alone, not beside the others
    found = next(f for f in findings(path, relay, memory=True) if f.key == key)
    assert found.level == "error"
    assert "leave relay out" in found.text


def test_candidates_that_no_row_has_for_an_answer(write: Write) -> None:
    path, key = write(), "stages.report.evaluate"
    found = errors(path, f"{key}.candidates=[yes, no]")
    assert found[key].startswith("candidates: yes, no; the answer of row facts-eval-")
    with pytest.raises(UserError, match=rf"^{key}: candidates: yes, no; the answer of row "):
        check(read(path, [(f"{key}.candidates", "[yes, no]")]))


def test_wrong_shapes_are_found_before_the_run(write: Write, tmp_path: Path) -> None:
    """From the headers of the weight files: three tensors are named, and the rest counted."""
    path = write()
    model = shutil.copytree(read(path, []).sender.path, tmp_path / "model")  # type: ignore[union-attr]
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"intermediate_size": 7}))
    found = errors(path, f"sender.path={model}")
    assert set(found) == {"sender.path"}
    assert found["sender.path"].count("has shape") == 3
    assert found["sender.path"].endswith("; and 3 more")


def test_texts_that_are_not_laid_out_as_they_are(write: Write, tmp_path: Path) -> None:
    """Tokenizers that lose the case: of the sender, which is only read, and of the receiver."""
    path = write()
    config, places = read(path, []), {}
    for name, model in (("sender", config.sender), ("reader", config.receivers["reader"])):
        assert model is not None
        places[name] = shutil.copytree(model.path, tmp_path / name)
        state = json.loads((places[name] / "tokenizer.json").read_text())
        (places[name] / "tokenizer.json").write_text(
            json.dumps(state | {"normalizer": {"type": "Lowercase"}})
        )
    found = errors(
        path, f"sender.path={places['sender']}", f"receivers.reader.path={places['reader']}"
    )
    assert found.keys() == {"bridge.source", "receivers.reader"}
    assert "'Context: " in found["bridge.source"]
    assert "is laid out as 'context: " in found["bridge.source"]
    assert found["receivers.reader"].startswith("receivers.reader: ")


def test_weights_that_are_not_finite_are_found(write: Write, tmp_path: Path) -> None:
    path = write()
    model = shutil.copytree(read(path, []).receivers["reader"].path, tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(tensors, model / "model.safetensors")
    found = errors(path, f"receivers.reader.path={model}", "mesh.data=3", memory=True)
    assert "layers.1.mlp.up_proj.weight: 1 of its" in found["receivers.reader.path"]


def test_several_errors_are_shown_at_once(write: Write) -> None:
    flags = ("sender.path=no/where", "mesh.data=3")
    found = errors(write(), *flags)
    assert set(found) >= {
        "sender.path",
        "stages.fit.train.batch_size",
        "stages.report.evaluate.batch_size",
    }
    out = io.StringIO()
    assert report(findings(write(), *flags), Console(file=out, width=120)) == 2
    assert "3 errors" in out.getvalue()  # a sender that cannot be opened is one of them
    with pytest.raises(UserError, match=r"stages.fit.train.batch_size: 8 rows"):
        check(read(write(), [("mesh.data", "3")]))


def edited(source: str, directory: Path, **changes: Any) -> str:
    """A copy of a model directory with keys of its config.json changed."""
    shutil.copytree(source, directory)
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return str(directory)


def test_a_tokenizer_of_another_model(write: Write, models: dict[str, str], tmp_path: Path) -> None:
    directory = Path(edited(models["receiver"], tmp_path / "mixed"))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(models["sender"]) / file, directory / file)
    found = errors(write(), f"receivers.reader.path={directory}")
    assert "the tokenizer has ids up to 299" in found["receivers.reader.path"]


def test_a_model_without_its_weights(write: Write, models: dict[str, str], tmp_path: Path) -> None:
    directory = Path(edited(models["sender"], tmp_path / "empty"))
    (directory / "model.safetensors").unlink()
    found = errors(write(), f"sender.path={directory}")
    assert "weight files missing: model.safetensors" in found["sender.path"]


def test_texts_longer_than_a_model(write: Write, models: dict[str, str], tmp_path: Path) -> None:
    short = edited(models["sender"], tmp_path / "short", max_position_embeddings=16)
    found = [f for f in findings(write(), f"sender.path={short}") if f.level == "warning"]
    assert [f.key for f in found] == ["layout.max_tokens"]
    assert "sender was made for 16" in found[0].text


def test_heads_that_the_mesh_does_not_divide(write: Write) -> None:
    found = [f for f in findings(write(), "mesh.model=4") if f.level == "warning"]
    assert {f.key for f in found} == {"mesh.model"}
    assert "4 does not divide the 4 heads and 2 key/value heads" in found[0].text


def test_malformed_rows_are_counted(write: Write, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [{"question": f"What is {i} + 1?", "answer": f"x #### {i + 1}"} for i in range(60)]
    lines = [json.dumps(row) for row in rows]
    file.write_text("\n".join([*lines[:3], "{broken", *lines[3:]]) + "\n")
    data = f"data={{gsm8k: {{train: {file}, eval: null, eval_share: 0.3}}}}"
    found = findings(write(), data, "stages.fit.train.eval_every=0")
    warned = [f.text for f in found if f.level == "warning"]
    assert warned
    assert all("1 malformed rows left out" in text and "rows.jsonl:4" in text for text in warned)


def test_a_stage_of_missing_levels(write: Write) -> None:
    found = errors(
        write(),
        "data={gsm8k: {train: x.jsonl, eval: null}}",
        "stages.fit.train.curriculum=[{level: 1, share: 1}]",
    )
    assert "data" in found


def test_memory_is_compared_with_the_device() -> None:
    need = Need(frozen=30 * GIB, state=2 * GIB, work=4 * GIB, room=40 * GIB)
    assert need.total == 36 * GIB
    assert "30.0 GiB frozen weights" in str(need)
    assert "36.0 GiB of 40.0 GiB a device" in str(need)


def test_a_leaf_that_the_optimiser_does_not_know_is_a_line(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimiser, "RULES", ())
    key = "stages.fit.train"
    found = findings(write(), f"{key}.optimiser.name=muon", memory=True)
    (wrong,) = [f for f in found if f.level == "error"]
    assert wrong.key == key
    assert wrong.text.startswith("optimiser: no rule covers the parameter bridge/compressor/")
    assert "optimizer_rules" in wrong.text and "\n" not in wrong.text
