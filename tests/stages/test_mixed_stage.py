"""One stage mixes reading text back with questions, taught by a tuned receiver."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from lw_jax.config.parse import from_dict, to_yaml
from lw_jax.config.schema import Config
from lw_jax.data.facts import FactsRows
from lw_jax.errors import UserError
from lw_jax.mesh import make_mesh
from lw_jax.objectives import kd
from lw_jax.objectives.config import ObjectivesConfig
from lw_jax.runs import doctor, teacher
from lw_jax.runs.directory import CONFIG, Run
from lw_jax.runs.session import open_pipeline
from lw_jax.runs.trained import load_trained
from lw_jax.stages import train
from lw_jax.train.plan import all_terms, context_of, plan_at
from tests.tiny.evaluation import RECEIVER
from tests.tiny.run import make_models, make_run, raw_config


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_models(tmp_path_factory.mktemp("models"))


def tuned(models: dict[str, Path], home: Path, lora: bool = False, **layout: Any) -> Run:
    """A receiver that reads the text, with three soft tokens of its own before it, or LoRA."""
    raw = raw_config(models, home)
    raw["layout"] = {"with_text": True} | layout
    raw["bridge"] |= {
        "latent_dim": 24,
        "compressor": {"constant": {"slots": 3}},
        "reader": {"soft_tokens": {"hidden": "none", "input_norm": False, "conditioning": "scale"}},
    }
    if lora:
        raw["bridge"]["compressor"] = {"constant": {"slots": 0}}
        raw["bridge"]["reader"] = {"lora": {"r": 2, "alpha": 2.0}}
    run = make_run(from_dict(raw), Console(file=io.StringIO()))
    open_pipeline(run.config, run.mesh, run.run_dir)  # measures its receiver
    return run


def mixed(models: dict[str, Path], home: Path, taught_by: Path, **changes: Any) -> Config:
    facts = FactsRows("train", 0, 2, 12)
    prose = home.parent / "prose.jsonl"
    prose.write_text("\n".join(json.dumps({"context": facts[i][0].context}) for i in range(12)))
    raw = raw_config(models, home)
    raw["bridge"]["compressor"] = {
        "windows": {"ratios": [2, 4], "width": 16, "heads": 2, "encoder_layers": 1, "depth": 1}
    }
    raw["bridge"]["reader"]["soft_prompt"] = {"tokens": 3, "unit": 4.0}
    back = {"jsonl": {"train": str(prose), "question_field": None, "answer_field": None}}
    raw["stages"] = {
        "mix": {
            "train": {
                "steps": 4,
                "batch_size": 4,
                "eval_every": 0,
                "log_every": 1,
                "teacher": str(taught_by),
                "teacher_prompt": True,
                "tasks": {
                    "read_back": {
                        "data": back,
                        "layout": {"question": "", "anchor": "\nRepeat:"},
                        "batch_size": 2,
                    },
                    "questions": {
                        "questions": 2,
                        "together": 256,
                        "objectives": {"answer_ce": {"weight": 0.5}, "kd": {"weight": 0.5}},
                    },
                },
                "curriculum": [
                    {"share": 0.5, "ratio": 2, "mix": {"read_back": 1}},
                    {"share": 0.5, "ratio": 4, "mix": {"questions": 1, "read_back": 1}},
                ],
            }
            | changes
        }
    }
    return from_dict(raw)


@pytest.mark.slow
def test_every_step_has_its_task_and_the_bridge_begins_as_its_teacher(
    models: dict[str, Path], tmp_path: Path
) -> None:
    other = tuned(models, tmp_path / "tuned")
    config = mixed(models, tmp_path / "mixed", other.run_dir)
    doctor.check(config)
    home = tmp_path / "mixed"
    home.mkdir()
    (home / CONFIG).write_text(to_yaml(config))
    run = Run(config, home, make_mesh(config.mesh), Console(file=io.StringIO()), home)
    cfg = config.stages["mix"].train
    assert cfg is not None
    train.run(run, "mix", cfg)
    lines = [
        json.loads(line) for line in (run.run_dir / "diagnostics.jsonl").read_text().splitlines()
    ]
    steps = [line for line in lines if line.get("kind", "train") == "train" and "loss" in line]
    taught = [f"loss/{RECEIVER}/kd" in line for line in steps]
    assert taught == [False, False, True, False]

    pipeline = open_pipeline(config, run.mesh)
    teachers = teacher.load(str(other.run_dir), pipeline)
    params = load_trained(config, run.run_dir, pipeline).params
    prompt = params["readers"][RECEIVER]["soft_prompt"]["prompt_tokens"]
    begun = teacher.with_prompts(params, pipeline.bridge, teachers)
    given = begun["readers"][RECEIVER]["soft_prompt"]["prompt_tokens"]
    start = np.asarray(given) * 4.0 * pipeline.bridge.dims.receivers[RECEIVER].embed_rms
    embeds = teachers[RECEIVER].delivery.embeds
    assert embeds is not None
    np.testing.assert_allclose(start, embeds[0], rtol=1e-5)
    moved = np.abs(np.asarray(prompt) - np.asarray(given))
    assert 0 < moved.max() < 0.01  # four steps of Adam later

    _its_kl_is_zero_for_itself(other, teachers)
    with pytest.raises(UserError, match="is no tuned receiver"):
        teacher.load(str(run.run_dir), pipeline)


@pytest.mark.slow
def test_the_soft_prompt_begins_as_that_of_a_run_that_does_not_teach(
    models: dict[str, Path], tmp_path: Path
) -> None:
    """The teacher is tuned by LoRA, and has no soft tokens."""
    prompts = tuned(models, tmp_path / "tuned")
    taught = tuned(models, tmp_path / "lora", lora=True)
    home = tmp_path / "mixed"
    home.mkdir()
    own = {"teacher_prompt": False, "prompt_from": str(prompts.run_dir)}
    config = mixed(models, home, taught.run_dir, **own)
    doctor.check(config)
    (home / CONFIG).write_text(to_yaml(config))
    run = Run(config, home, make_mesh(config.mesh), Console(file=io.StringIO()), home)
    cfg = config.stages["mix"].train
    assert cfg is not None
    train.run(run, "mix", cfg)
    pipeline = open_pipeline(config, run.mesh)
    given = teacher.load(str(prompts.run_dir), pipeline)[RECEIVER].delivery.embeds
    assert given is not None
    params = load_trained(config, home, pipeline).params
    prompt = np.asarray(params["readers"][RECEIVER]["soft_prompt"]["prompt_tokens"])
    start = np.asarray(given[0]) / (4.0 * pipeline.bridge.dims.receivers[RECEIVER].embed_rms)
    assert 0 < np.abs(prompt - start).max() < 0.01
    none = teacher.load(str(taught.run_dir), pipeline)
    with pytest.raises(UserError, match=r"prompt_from: the tuned receiver .* has 0 soft tokens"):
        teacher.with_prompts(params, pipeline.bridge, none, "prompt_from")


def test_where_the_soft_prompt_begins_is_said_once(models: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="prompt_from: teacher_prompt says where"):
        mixed(models, tmp_path / "mixed", tmp_path / "none", prompt_from=str(tmp_path))
    config = mixed(
        models, tmp_path / "mixed", tmp_path, teacher=None, teacher_prompt=False, prompt_from="no"
    )
    with pytest.raises(UserError, match=r"stages.mix.train.prompt_from: no has no checkpoints"):
        doctor.check(config)


@pytest.mark.slow
def test_what_the_teacher_says_is_kept_for_later_epochs(
    models: dict[str, Path], tmp_path: Path
) -> None:
    """The losses are those of a stage that asks it anew in every step."""
    other = tuned(models, tmp_path / "tuned")
    told = {}
    for name, reuse in (("asked", None), ("kept", {"sender": False, "memory_gb": 0.1})):
        home = tmp_path / name
        home.mkdir()
        raw = raw_config(models, home)
        raw["data"] = {"facts": {"levels": [2], "size": 8, "eval_size": 8, "questions": 1}}
        raw["objectives"] = {"answer_ce": {"weight": 0.5}, "kd": {"weight": 0.5}}
        own = {"steps": 6, "batch_size": 4, "eval_every": 0, "log_every": 1, "questions": 1}
        raw["stages"] = {"fit": {"train": own | {"teacher": str(other.run_dir), "reuse": reuse}}}
        config = from_dict(raw)
        (home / CONFIG).write_text(to_yaml(config))
        run = Run(config, home, make_mesh(config.mesh), Console(file=io.StringIO()), home)
        train.run(run, "fit", config.stages["fit"].train)  # type: ignore[arg-type]
        lines = (home / "diagnostics.jsonl").read_text().splitlines()
        told[name] = [line for line in map(json.loads, lines) if "loss" in line]
    assert [line["reused"] for line in told["kept"]] == [0.0] * 2 + [1.0] * 4
    for line, again in zip(told["asked"], told["kept"], strict=True):
        assert line["loss"] == pytest.approx(again["loss"], abs=1e-5)
        assert line[f"loss/{RECEIVER}/kd"] > 1e-3
    (file,) = (tmp_path / "kept" / "reuse").glob("*.sqlite")
    assert file.name.startswith(f"{RECEIVER}-tuned-")


def _its_kl_is_zero_for_itself(other: Run, teachers: Any) -> None:
    """The tuned receiver that learns from itself has nothing to learn; from the bare one it has."""
    own = open_pipeline(other.config, other.mesh)
    rows = FactsRows("train", 0, 2, 4)
    groups = [rows[i][:1] for i in range(4)]
    batch = {key: jnp.asarray(x) for key, x in own.collate(groups)(groups).items()}
    params = load_trained(other.config, other.run_dir, own).params
    plan = plan_at(ObjectivesConfig(kd=kd.Config()), 0)

    @jax.jit
    def divergence(frozen: Any) -> Any:
        seen = context_of(own.bridge, params, frozen, batch, jax.random.key(0), False)
        (term,) = all_terms(plan, seen, {})[0].values()
        return term.total / term.count

    assert abs(float(divergence(own.frozen.replace(teachers=teachers)))) < 1e-5
    assert float(divergence(own.frozen)) > 1e-2


def test_rows_are_read_while_the_models_are(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = mixed(
        models, tmp_path / "mixed", tmp_path / "none", teacher=None, teacher_prompt=False
    )
    both = threading.Barrier(2, timeout=60)

    def met(work: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: (both.wait(), work(*args, **kwargs))[1]

    monkeypatch.setattr(train, "task_rows", met(train.task_rows))
    monkeypatch.setattr(train, "open_pipeline", met(train.open_pipeline))
    (tmp_path / "prose.jsonl").unlink()
    run = make_run(config, Console(file=io.StringIO()))
    with pytest.raises(UserError, match="no such file"):  # what goes wrong there is said
        train.run(run, "mix", config.stages["mix"].train)  # type: ignore[arg-type]
    assert not both.broken


def test_rows_are_measured_while_the_parameters_are_made(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = mixed(
        models, tmp_path / "mixed", tmp_path / "none", teacher=None, teacher_prompt=False
    )
    both = threading.Barrier(2, timeout=60)

    def wrong(*args: Any) -> None:
        both.wait()
        raise UserError("too few slots")

    monkeypatch.setattr(train, "parts_of", lambda *args: both.wait())
    monkeypatch.setattr(train, "start_params", wrong)
    run = make_run(config, Console(file=io.StringIO()))
    with pytest.raises(UserError, match="too few slots"):
        train.run(run, "mix", config.stages["mix"].train)  # type: ignore[arg-type]
    assert not both.broken


def test_a_teacher_of_other_questions_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    other = tuned(models, tmp_path / "tuned", anchor="\nReply:")
    config = mixed(models, tmp_path / "mixed", other.run_dir)
    with pytest.raises(UserError, match=r"another layout \(tasks.questions\): anchor differ"):
        teacher.check_layout(str(other.run_dir), "questions", config.layout)
