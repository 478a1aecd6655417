"""The lists of runs between two real models: each is read, and all are trained alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jax
import pytest

from benchmarks import real_cells, real_runs, versions
from lw_jax.config.command import read_command
from lw_jax.config.parse import read
from lw_jax.config.schema import Config
from lw_jax.data.example import Example
from lw_jax.mesh import MeshConfig
from lw_jax.text.layout import asked_pair, split_joint
from lw_jax.train.config import TrainConfig
from tests.test_configs import arch_of, steps
from tests.tiny.receiver import text_tokenizer

HERE = Path("models")
VERSIONS = versions.between_models(Path("data"), HERE)


def resolved(flags: tuple[str, ...]) -> Config:
    """The config that a run's flags mean."""
    asked = read_command(list(flags))
    return read(asked.target, asked.flags, asked.over)


def training(config: Config) -> TrainConfig | None:
    """Its train stage; None: it is evaluated alone."""
    stage = config.stages.get("fit")
    return None if stage is None else stage.train


def test_every_version_is_there_once_and_the_most_telling_first() -> None:
    files = {p.stem for p in versions.CONFIGS.glob("*.yaml") if not p.is_symlink()}
    assert {*versions.REAL_ORDER} == {*files, "wire"}
    assert len(versions.REAL_ORDER) == len(files) + 1
    assert versions.REAL_ORDER.index("v03_1") < versions.REAL_ORDER.index("v04")


@pytest.mark.parametrize("job", VERSIONS, ids=lambda job: job.name)
def test_a_version_is_trained_as_long_as_all_on_the_same_rows(job: versions.Job) -> None:
    config, first = resolved(job.flags), resolved(VERSIONS[0].flags)
    assert config.name == job.name
    assert (config.data, config.seed, config.sender) == (first.data, first.seed, first.sender)
    assert config.receivers == first.receivers and [*config.receivers] == ["qwen"]
    assert config.bridge is not None
    wide = arch_of("qwen2.5-coder-0.5b-instruct.gguf").width
    todays = "_default_" in job.name or "_wire_" in job.name
    assert config.bridge.latent_dim == (640 if todays else wide)
    own, other = training(config), training(first)
    assert (own is None) == (job.after is not None)
    if own is not None and other is not None:
        kept = ("objectives", "optimiser", "ema")  # what a version is
        assert replace(own, **{k: getattr(other, k) for k in kept}) == other
    report, theirs = config.stages["report"].evaluate, first.stages["report"].evaluate
    assert report is not None and theirs is not None
    kept = ("layout", "decode", "init_from")
    assert replace(report, **{k: getattr(theirs, k) for k in kept}) == theirs
    least = 320 if config.layout.target == "question_answer" else 200
    assert report.decode.max_new_tokens == least


@pytest.mark.parametrize("job", VERSIONS, ids=lambda job: job.name)
def test_a_version_is_laid_out_for_a_receiver_without_bos(job: versions.Job) -> None:
    """Qwen's family has none, so no layout asks for it after the message."""
    config = resolved(job.flags)
    report = config.stages["report"].evaluate
    assert report is not None
    tokenizer = replace(text_tokenizer(), bos_id=None)
    example = Example("i", "c", "Ann has 3 pens. How many pens?", "", ("She has 3.\n#### 3",))
    for layout in (config.layout, report.layout or config.layout):
        (asked,) = split_joint(layout, tokenizer, [asked_pair(layout, example)])
        assert asked is not None and asked.answer[-1] == tokenizer.eos_id


def test_todays_default_is_the_same_wire_in_other_sizes() -> None:
    small = read(versions.CONFIGS / "default.yaml").bridge
    sized = resolved(VERSIONS[0].flags).bridge
    assert small is not None and sized is not None
    blocks, own = small.reader.latent_adapters, sized.reader.latent_adapters
    resampler, mine = small.compressor.perceiver, sized.compressor.perceiver
    assert replace(own, layers=blocks.layers, head_dim=blocks.head_dim) == blocks
    assert replace(mine, width=resampler.width, heads=resampler.heads) == resampler
    assert replace(sized.reader, latent_adapters=blocks) == small.reader
    assert (sized.bottleneck, len(sized.source.hidden_states.layers)) == (small.bottleneck, 5)


@pytest.mark.slow
@pytest.mark.parametrize("job", VERSIONS, ids=lambda job: job.name)
def test_the_parts_of_a_version_between_real_models_fit(job: versions.Job) -> None:
    for step in steps(resolved(job.flags), MeshConfig(data=1)):
        _, metrics = jax.eval_shape(step.step, *step.arguments)
        assert metrics["loss"].shape == ()


@pytest.mark.parametrize("name", [n for n in real_cells.FAILED if n != "wire"])
def test_a_setting_that_failed_is_one_change(name: str) -> None:
    given = (HERE, Path("data"), "encoder")
    base = resolved(real_cells.flags_of("wire", *given))
    config = resolved(real_cells.flags_of(name, *given))
    own, other = training(config), training(base)
    assert own is not None and other is not None
    assert (other.steps, other.eval_every) == (240, 60)
    if name == "latent_keep_1":
        assert own.latent_keep is not None and own.latent_keep.ramp == own.steps
    assert config != base
    changed = {
        "first_token_12": replace(config, objectives=base.objectives),
        "k_token": replace(config, objectives=base.objectives),
        "mse_anchor": replace(config, objectives=base.objectives),
        "tanh": replace(config, bridge=base.bridge),
        "rms_33": replace(config, bridge=base.bridge),
        "latent_keep_1": replace(config, stages=base.stages),
    }
    assert changed[name] == base
    assert replace(own, latent_keep=None) == other


RUNS = {job.name: job for job in real_runs.jobs(Path("data"), HERE)}


def test_a_bridge_between_real_models_is_one_change_and_waits_for_its_ends() -> None:
    """At equal steps, on the same rows; its teacher and rivals are runs of the list."""
    base = resolved(RUNS["real_mixed_short"].flags)
    for name in real_runs.BRIDGES:
        job = RUNS[f"real_{name}"]
        config = resolved(job.flags)
        assert config.name == job.name
        own, other = config.stages["mix"].train, base.stages["mix"].train
        report = config.stages["report"].evaluate
        assert own is not None and other is not None and report is not None
        taught = ("teacher", "teacher_prompt", "prompt_from")
        assert replace(own, **{key: getattr(other, key) for key in taught}) == other
        assert (own.steps, config.seed, config.data) == (2200, base.seed, base.data)
        needed = {own.teacher, own.prompt_from, *report.rivals.values()} - {None}
        before = [job.after]
        while before[-1] is not None:
            before.append(RUNS[before[-1]].after)
        assert {f"runs/{run}" for run in before if run} >= needed
        changed = (config.bridge, config.sender, own) != (base.bridge, base.sender, other)
        assert changed == (name != "mixed_short")


def test_tuned_receivers_are_trained_on_the_rows_of_the_bridges() -> None:
    bridge = resolved(RUNS["real_mixed_short"].flags)
    for rival, (count, _) in real_runs.TUNED.items():
        config = resolved(RUNS[f"real_{rival}"].flags)
        own = config.stages["questions"].train
        assert own is not None and (own.steps, own.together) == (count, 160)
        assert (config.name, config.data) == (f"real_{rival}", bridge.data)
        assert [*config.stages] == ["questions", "own_report"]
