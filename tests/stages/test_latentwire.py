"""LatentWire's configs from end to end on the models that ship, a few steps each."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from lw_jax.config.parse import read
from lw_jax.launch import main
from lw_jax.utils.registry import chosen
from tests.tiny.encoder import write_encoder

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs" / "latentwire"
RECEIVERS = ("mistral", "qwen")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Articles in SQuAD's format, two passages each."""
    rng = random.Random(0)

    def passage(place: str) -> dict[str, Any]:
        year, height = rng.randint(1000, 1999), rng.randint(10, 99)
        asked = [("When was it built?", f"{year}"), ("How tall is it?", f"{height} metres")]
        questions = [
            {"question": f"{question[:-1]} in {place}?", "answers": [{"text": answer}]}
            for question, answer in asked
        ]
        return {
            "context": f"The tower of {place} was built in {year}. It is {height} metres tall.",
            "qas": questions,
        }

    articles = [
        {"title": f"T{i}", "paragraphs": [passage(f"{x}{i}") for x in ("Ur", "Ys")]}
        for i in range(12)
    ]
    path = tmp_path_factory.mktemp("squad") / "rows.json"
    path.write_text(json.dumps({"data": articles}))
    return path


@pytest.mark.slow
@pytest.mark.timeout(1800)  # compiles for a long time on slow cores
@pytest.mark.parametrize("name", ["smoke", "hero", "default", "final_plan"])
def test_it_runs_from_end_to_end(
    name: str, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)  # the configs name the models from there
    path = CONFIGS / f"{name}.yaml"
    config = read(path)
    trained = {n: stage.train for n, stage in config.stages.items() if stage.train is not None}
    (report,) = set(config.stages) - set(trained)
    flags = [
        f"--data.squad.train={rows}",
        "--data.squad.eval=null",
        "--data.squad.eval_share=0.3",
        "--data.squad.validation_share=0.3",
        "--mesh.data=1",
        f"--stages.{report}.evaluate.rows=4",
        f"--stages.{report}.evaluate.batch_size=4",
        f"--stages.{report}.evaluate.bootstrap=50",
    ]
    for stage, train in trained.items():
        steps = 20 if name == "final_plan" else 2
        values = {"steps": steps, "log_every": 1, "eval_every": steps, "eval_rows": 4, "workers": 0}
        values |= {"batch_size": 2 * train.accumulate}
        if train.text_batches is not None:
            values |= {"text_batches.steps": 2}
        flags += [f"--stages.{stage}.train.{key}={value}" for key, value in values.items()]
    assert main(["--config", str(path), f"--run_dir={tmp_path / 'run'}", *flags]) == 0

    lines = list(map(json.loads, (tmp_path / "run" / "diagnostics.jsonl").read_text().splitlines()))
    for stage, train in trained.items():
        seen = {key for line in lines if line["stage"] == stage for key in line}
        for objective in chosen(train.objectives or config.objectives):
            assert f"share/{objective}" in seen
            assert {f"loss/{receiver}/{objective}" for receiver in RECEIVERS} <= seen
        norms = [line["grad_norm"] for line in lines if line["stage"] == stage and "loss" in line]
        assert max(norms) < 1e5
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    for receiver in RECEIVERS:
        assert {"text", "latent", "deranged", "mean"} <= set(metrics["receivers"][receiver])


SMALL = sorted(
    str(path.relative_to(CONFIGS).with_suffix(""))
    for path in (*CONFIGS.rglob("smokes/*.yaml"), *CONFIGS.rglob("suite/*.yaml"))
)


def with_template(name: str, folder: Path) -> Path:
    """A model that ships, whose tokenizer has a chat template."""
    shutil.copytree(ROOT / "zoo" / name, folder / name)
    about = folder / name / "tokenizer_config.json"
    turn = "{{ bos_token }}{% for m in messages %}User: {{ m.content }}\n{% endfor %}"
    template = turn + "{% if add_generation_prompt %}Reply:{% endif %}"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"chat_template": template}))
    return folder / name


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", [*SMALL, "interlingua", "phase_1b", "phase_1b_annealed"])
def test_a_run_of_one_feature_ends_in_its_report(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few steps; the sentence encoder is a random one, and models with a chat template are those
    that ship, with one of ours."""
    monkeypatch.chdir(ROOT)
    path = CONFIGS / f"{name}.yaml"
    config = read(path)
    flags = ["--mesh.data=1"]
    if config.sender is not None and "MiniLM" in config.sender.path:
        flags.append(f"--sender.path={write_encoder(tmp_path / 'encoder', positions=256)}")
    if name == "smokes/chat":
        flags.append(f"--sender.path={with_template('tiny-llama', tmp_path)}")
        flags.append(f"--receivers.qwen.path={with_template('tiny-qwen', tmp_path)}")
        flags.append("--bridge.source.hidden_states.layers=[0, 2, 4]")
    for stage, options in config.stages.items():
        ((kind, given),) = chosen(options).items()
        values: dict[str, Any] = {"rows": 4}
        if kind == "evaluate":
            values |= {"batch_size": 4, "bootstrap": 50}
        if kind == "calibrate":
            values = {"rows": 80, "batch_size": 16}
        if kind == "train":
            values = {"steps": 4, "log_every": 1, "eval_every": 4, "eval_rows": 4}
            values |= {"watch_every": 2, "batch_size": 4}
            if given.text_batches is not None:
                values |= {"text_batches.pure": 1, "text_batches.steps": 2}
        flags += [f"--stages.{stage}.{kind}.{key}={value}" for key, value in values.items()]
    run = tmp_path / "run"
    assert main(["--config", str(path), f"--run_dir={run}", *flags]) == 0
    metrics = json.loads((run / "metrics.json").read_text())
    for methods in metrics["receivers"].values():
        assert {"text", "latent", "deranged"} <= set(methods)
    lines = [json.loads(line) for line in (run / "diagnostics.jsonl").read_text().splitlines()]
    assert any(line["kind"] == "watch" for line in lines)
