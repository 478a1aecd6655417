"""The doctor: what it looks at, what it says, and that it says it before a run."""

from __future__ import annotations

import io
import json
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from safetensors.numpy import load_file, save_file

from lw_jax.config.parse import read
from lw_jax.errors import UserError
from lw_jax.runs import check_stages, doctor, memory
from lw_jax.runs.doctor import Finding, check, examine, report
from lw_jax.runs.memory import GIB, Need, address_space, device_memory, host_memory
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
    need = Need(1, 1, 1, GIB)  # the step's, which has tests of its own
    monkeypatch.setattr(check_stages, "estimate", lambda step: need)
    assert key not in {f.key for f in findings(path, memory=True)}
    found = next(f for f in findings(path, relay, memory=True) if f.key == key)
    weights = Path(read(path, []).sender.path) / "model.safetensors"
    size = sum(4 * tensor.size for tensor in load_file(weights).values())
    assert found.level == "ok"
    assert f"relay: {size / 2**20:.1f} MiB whole sender + " in found.text
    # it fits alone, not beside the others
    monkeypatch.setattr(check_stages, "device_memory", lambda: size)
    found = next(f for f in findings(path, relay, memory=True) if f.key == key)
    assert found.level == "error"
    assert "leave relay out" in found.text


def test_limits_of_memory_are_known(
    write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An allocation that fails in XLA ends the process without a line, so it is said before."""
    whole, before = host_memory(), resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (whole - 1, before[1]))
    limit = address_space()
    resource.setrlimit(resource.RLIMIT_AS, before)
    assert limit == whole - 1
    assert address_space() in (None, before[0])
    group = tmp_path / "memory.max"
    monkeypatch.setattr(memory, "CONTROL_GROUP", (str(group), str(tmp_path / "none")))
    group.write_text("max\n")
    assert host_memory() >= whole
    group.write_text(f"{2**30}\n")
    assert host_memory() == 2**30
    assert device_memory() == 2**30 // 8
    monkeypatch.setattr(doctor, "address_space", lambda: 2**29)
    (found,) = (f for f in findings(write()) if f.key == "memory")
    assert found.level == "warning"
    assert found.text.startswith("a process may have 512.0 MiB of addresses here (ulimit -v), and")
    assert "the memory is 1.0 GiB" in found.text


def test_candidates_that_no_row_has_for_an_answer(write: Write) -> None:
    path, key = write(), "stages.report.evaluate"
    found = errors(path, f"{key}.candidates=[yes, no]")
    assert found[key].startswith("candidates: yes, no; the answer of row facts-eval-")
    with pytest.raises(UserError, match=rf"^{key}: candidates: yes, no; the answer of row "):
        check(read(path, [(f"{key}.candidates", "[yes, no]")]))


def test_gold_answers_that_decoding_cannot_write(write: Write) -> None:
    path, key = write(), "stages.report.evaluate.decode"
    (found,) = (f for f in findings(path, f"{key}.max_new_tokens=1") if f.key == key)
    assert found.level == "warning"
    assert "gold answers are longer than decode.max_new_tokens 1 (up to " in found.text
    assert "tokens of reader); raise it" in found.text
    assert not [f for f in findings(path, f"{key}.max_new_tokens=40") if f.key == key]


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
    assert found["receivers.reader"].startswith("its tokenizer")


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
    found = [f for f in findings(write(), "mesh.tensor=4") if f.level == "warning"]
    assert {f.key for f in found} == {"mesh.tensor"}
    assert "4 does not divide the 4 heads and 2 key/value heads" in found[0].text


def test_malformed_rows_are_counted(write: Write, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [{"question": f"What is {i} + 1?", "answer": f"x #### {i + 1}"} for i in range(60)]
    lines = [json.dumps(row) for row in rows]
    file.write_text("\n".join([*lines[:3], "{broken", *lines[3:]]) + "\n")
    data = f"data={{gsm8k: {{train: {file}, eval: null, eval_share: 0.3}}}}"
    found = findings(write(), data, "stages.fit.train.eval_every=0")
    warned = [f.text for f in found if f.level == "warning" and f.key == "data"]
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


ZOO = Path(__file__).parents[2] / "zoo"
FIT = "stages.fit.train"


def test_a_bridge_of_another_architecture(write: Write) -> None:
    start = f"{FIT}.init_from={ZOO / 'bridges' / 'facts'}"
    found = errors(write(), start)
    assert list(found) == [f"{FIT}.init_from"]
    assert "parameters were trained" in found[f"{FIT}.init_from"]
    assert "evaluate" not in found[f"{FIT}.init_from"]
    only = errors(write(), start, f"{FIT}.init_only=[foo]")
    assert "foo" in only[f"{FIT}.init_from"]
    with pytest.raises(UserError, match=rf"^{FIT}.init_from: component "):
        check(read(write(), [tuple(start.split("=", 1))]))  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        (f"{FIT}.train_only=[nothing_matches]", "train_only: 'nothing_matches' matches no"),
        (
            "bridge.reader.soft_tokens.hidden=none",
            "none hands slots of width 8 to a receiver of width 16",
        ),
        ("objectives.state_kd.layers=4", "layers: 4, and receiver 'reader' has 2"),
    ],
)
def test_what_does_not_fit_is_known_before_a_calibrate_stage(
    write: Write, flag: str, said: str
) -> None:
    path = write(
        stages={
            "measure": {"calibrate": {"rows": 8, "batch_size": 8}},
            "fit": {"train": {"steps": 4, "batch_size": 8, "eval_rows": 4}},
        }
    )
    with pytest.raises(UserError, match=f"^{FIT}: .*{said}"):
        check(read(path, [tuple(flag.split("=", 1))]))  # type: ignore[list-item]


def test_weights_of_another_shape(write: Write, models: dict[str, str], tmp_path: Path) -> None:
    for name, key in (("sender", "sender.path"), ("receiver", "receivers.reader.path")):
        other = edited(models[name], tmp_path / name, intermediate_size=48)
        text = "; ".join(errors(write(), f"{key}={other}").values())
        assert "has shape" in text and "config.json implies" in text


def test_run_directories(write: Write, tmp_path: Path) -> None:
    (tmp_path / "here" / "other").mkdir()
    (tmp_path / "here" / "other" / "thesis.tex").touch()
    before = sorted(tmp_path.rglob("*"))
    path = write()
    for where, said in (
        ("/proc/x/y", "cannot write in /proc/x/y"),
        (str(path), "is a file"),
        (f"{path}/run", "cannot write"),
        ("other", "is no run directory"),
        ("x" * 300, "File name too long"),
    ):
        found = examine(read(path, [("run_dir", where)]), memory=False, directory=True)
        texts = {f.key: f.text for f in found if f.level == "error"}
        assert list(texts) == ["run_dir"], where
        assert said in texts["run_dir"]
    fine = examine(read(path, [("run_dir", "a/b/c")]), memory=False, directory=True)
    assert {f.level for f in fine} == {"ok"}
    assert sorted(tmp_path.rglob("*")) == sorted([*before, path])


@pytest.mark.usefixtures("gpu_out_of_reach")
def test_a_gpu_that_jax_cannot_use_is_found_before_the_run(write: Write) -> None:
    path = write()
    found = examine(read(path), memory=False, directory=True)
    (wrong,) = [f for f in found if f.level == "error"]
    assert wrong.key == "device" and wrong.text.startswith("CUDA_VISIBLE_DEVICES is 0, and jax")
    fine = examine(read(path, [("device", "cpu")]), memory=False, directory=True)
    assert {f.level for f in fine} == {"ok"}


def test_one_cause_is_said_once(write: Write) -> None:
    found = findings(write(), "data={squad: {train: no.json, eval: no.json}}")
    (only,) = [f.text for f in found if f.level == "error"]
    assert only.startswith("no.json: no such file")


def test_taps_of_the_first_layers_alone(
    write: Write, models: dict[str, str], tmp_path: Path
) -> None:
    deep = edited(models["sender"], tmp_path / "deep", num_hidden_layers=8)
    flags = f"sender.path={deep}", "bridge.source.hidden_states.layers"
    warned = [f for f in findings(write(), flags[0], f"{flags[1]}=[1]") if f.level == "warning"]
    assert [f.key for f in warned] == ["bridge.source"]
    assert "the highest tap is after 1 of the sender's 8 layers" in warned[0].text
    assert all(f.level == "ok" for f in findings(write(), flags[0], f"{flags[1]}=[2]"))


def test_a_ramp_that_is_longer_than_its_stage(write: Write) -> None:
    for key in (f"{FIT}.optimiser", "objectives.answer_ce"):
        found = findings(write(), f"{key}.schedule.ramp=100")
        (warned,) = [f for f in found if f.level == "warning"]
        assert warned.key == f"{key}.schedule.ramp"
        assert warned.text.startswith("100 steps in a stage of 4: the factor rises to 0.04")


def test_more_questions_than_contexts_have(write: Write) -> None:
    found = findings(write(), f"{FIT}.questions=100")
    (warned,) = [f for f in found if f.level == "warning"]
    assert warned.key == f"{FIT}.questions"
    assert "has more than" in warned.text


def test_an_evaluation_without_a_trained_bridge(write: Write) -> None:
    path = write(stages={"report": {"evaluate": {"rows": 8, "batch_size": 8}}})
    assert "no train stage before it" in errors(path)["stages.report.evaluate"]
    assert errors(path, "stages.report.evaluate.methods=[text]") == {}


def test_a_bridge_that_is_too_large_is_what_is_said(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        check_stages, "estimate", lambda step: Need(GIB, 30 * GIB, 2 * GIB, 16 * GIB)
    )
    (found,) = [f for f in findings(write(), memory=True) if f.level == "error"]
    assert "lower latent_dim, slots, widths or depths" in found.text
    assert "quant" not in found.text


def test_a_report_breaks_no_word() -> None:
    key = "stages.a_stage_with_a_long_name.train.optimiser.schedule.ramp"
    words = "a message of several words that does not fit into one line of a narrow terminal"
    out = io.StringIO()
    report(
        [Finding("warning", key, words), Finding("ok", "mesh", words)], Console(file=out, width=90)
    )
    shown = out.getvalue().split()
    assert key in shown
    assert [word for word in words.split() if word not in shown] == []
