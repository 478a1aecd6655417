"""YAML and flags to a checked config: what is taken, what is refused, and in which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lw_jax.config import parse
from lw_jax.config.schema import Config
from lw_jax.errors import UserError
from tests.config.conftest import Write


def read(write: Write, *flags: str, **changes: Any) -> Config:
    pairs = [tuple(flag.split("=", 1)) for flag in flags]
    return parse.read(write(**changes), pairs)  # type: ignore[arg-type]


def test_flags_override_every_kind_of_field(write: Write) -> None:
    config = read(
        write,
        "bridge.latent_dim=16",
        "stages.fit.train.steps=10",
        "stages.fit.train.optimiser.lr=1e-4",
        "receivers.reader.path=elsewhere",
        "receivers.reader.quant=int8",
        "stages.report.evaluate.methods=[text, latent]",
        'stages.fit.train.curriculum=[{"level": 1, "share": 1}]',
        "sender=null",
        "layout.primer=007",
    )
    fit, report = config.stages["fit"].train, config.stages["report"].evaluate
    assert config.bridge is not None
    assert fit is not None
    assert report is not None
    assert config.bridge.latent_dim == 16
    assert (fit.steps, fit.optimiser.lr) == (10, 1e-4)
    assert config.receivers["reader"].path == "elsewhere"
    assert config.receivers["reader"].quant == "int8"
    assert report.methods == ("text", "latent")
    assert fit.curriculum[0].share == 1.0
    assert config.sender is None
    assert config.layout.primer == "007"


def test_a_flag_adds_an_objective_and_switches_a_variant(write: Write) -> None:
    config = read(write, "objectives.kd.weight=0.25")
    assert config.objectives.kd.weight == 0.25
    config = read(write, "bridge.compressor.perceiver=null", "bridge.compressor.window.size=4")
    assert config.bridge is not None
    assert config.bridge.compressor.perceiver is None
    assert config.bridge.compressor.window.size == 4


def test_a_later_flag_wins(write: Write) -> None:
    assert read(write, "seed=1", "seed=2").seed == 2


def test_files_are_put_over_a_file_in_order_and_flags_over_them(
    write: Write, tmp_path: Path
) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("seed: 5\nreceivers: {reader: {dtype: bfloat16}}\nbridge: {latent_dim: 16}")
    second.write_text("bridge: {latent_dim: 32, compressor: {perceiver: {slots: 2}}}")
    path = write()
    config = parse.read(path, [("bridge.compressor.perceiver.slots", "3")], [first, second])
    below = parse.read(path)
    assert (config.seed, config.receivers["reader"].dtype) == (5, "bfloat16")
    assert config.receivers["reader"].path == below.receivers["reader"].path
    assert config.bridge is not None
    assert below.bridge is not None
    assert config.bridge.latent_dim == 32
    assert config.bridge.compressor.perceiver.slots == 3
    assert config.bridge.compressor.perceiver.width == below.bridge.compressor.perceiver.width


@pytest.mark.parametrize(
    "flag", ["rivals.rival=runs/x", "rivals={rival: runs/x}", "beside.rival=runs/x"]
)
def test_a_flag_adds_a_name_of_a_plain_value(write: Write, flag: str) -> None:
    report = read(write, f"stages.report.evaluate.{flag}").stages["report"].evaluate
    assert report is not None
    assert report.rivals == {"rival": "runs/x"}


def test_a_null_over_a_stage_or_a_receiver_leaves_it_out(write: Write, tmp_path: Path) -> None:
    over = tmp_path / "over.yaml"
    over.write_text("receivers: {reader: null, other: {path: there}}\nstages: {report: null}")
    config = parse.read(write(), over=[over])
    assert [(name, model.path) for name, model in config.receivers.items()] == [("other", "there")]
    assert list(config.stages) == ["fit"]


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("stages.report.evaluate.rivals.text=x", "rivals.text: a line's name has letters"),
        ("stages.new.train.steps=3", "no 'new' there, and a flag cannot add one; the config has"),
        (
            "receivers.new.path=x",
            "no 'new' there, and a flag cannot add one; the config has",
        ),
        ("stages={}", "--stages.NAME.KEY"),
        ("bridge.latent_dmi=3", "did you mean bridge.latent_dim?"),
        ("steps=3", "did you mean stages.fit.train.steps?"),
        (
            "batch_size=3",
            "did you mean stages.fit.train.batch_size or stages.report.evaluate.batch_size?",
        ),
        ("stages.fit.train.step=3", "did you mean stages.fit.train.steps?"),
        ("bridge.compressor.percever.slots=3", "did you mean bridge.compressor.perceiver.slots?"),
        ("bridge.latent_dim=wide", 'bridge.latent_dim: expected a whole number; got "wide"'),
        ("bridge.latent_dim=3.5", "bridge.latent_dim: expected a whole number; got 3.5"),
        ("bridge.latent_dim=true", "bridge.latent_dim: expected a whole number; got true"),
        ("bridge.latent_dim=0", "bridge.latent_dim: expected at least 1; got 0"),
        ("bridge=null", "bridge: missing; a train, calibrate or evaluate stage needs it"),
        ("seed.x=1", "--seed.x: unknown key"),
        ("sender.quant=int5", 'sender.quant: expected one of none, int8, nf4, float8; got "int5"'),
        ("bridge.compressor.window.size=4", "bridge.compressor: perceiver and window are set"),
        ("stages.fit.evaluate.rows=4", "stages.fit: train and evaluate are set; set exactly one"),
        ("objectives.answer_ce=null", "objectives: none is set, and stages.fit.train needs one"),
        ("stages.fit.train.accumulate=3", "stages.fit.train.accumulate: 3 does not divide"),
        ("stages.fit.train.curriculum=[{level: 1, share: 0.5}]", "the shares must add up to 1"),
        (
            "stages.fit.train.curriculum=[{level: 1, sare: 1}]",
            "curriculum.0.sare: unknown key",
        ),
        (
            "stages.fit.train.curriculum=[{share: 1, ratio: 2}]",
            "stages.fit.train.curriculum.0.ratio: bridge.compressor.perceiver has one number",
        ),
        (
            "stages.report.evaluate.ratio=2",
            "stages.report.evaluate.ratio: bridge.compressor.perceiver has one number of slots",
        ),
        (
            "stages.fit.train.curriculum=[{level: 1}]",
            "curriculum.0.share: missing; expected a",
        ),
        ("stages.report.evaluate.methods=[txt]", "stages.report.evaluate.methods: unknown 'txt'"),
        ("layout.anchor=Answer: ", "layout.anchor: 'Answer: ' ends in white space"),
        ("layout.question=why?", "layout.question: must contain {question}"),
        ("name=a/b", "name: it names a directory"),
        ("seed=[1", "--seed, line 1: not valid YAML"),
    ],
)
def test_bad_flags(write: Write, flag: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        read(write, flag)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"colour": 3}, "colour: unknown key"),
        ({"bridge.latent_dmi": 3}, "bridge.latent_dmi: unknown key; did you mean latent_dim?"),
        ({"stages.fit.trian": {}}, "stages.fit.trian: unknown key; did you mean train?"),
        ({"objectives.kd": {"wait": 1}}, "objectives.kd.wait: unknown key; did you mean weight?"),
        ({"bridge.latent_dim": None}, "bridge.latent_dim: missing; expected a whole number"),
        ({"name": None}, "name: missing; expected text"),
        ({"name": 3}, "name: expected text; got 3"),
        ({"stages": {}}, "stages: none is given"),
        ({"stages": ["fit"]}, "stages: expected a mapping of names to their settings; got"),
        ({"receivers": {}}, "receivers: none is given"),
        ({"receivers.sender": {"path": "x"}}, "receivers.sender: the name is taken"),
        ({"stages.a b": {"calibrate": {}}}, "stages.a b: a name has letters"),
        ({"data": None}, "data: missing"),
        ({"stages.fit.train.data": {"topics": None}}, "stages.fit.train.data: none is set; set"),
        ({"stages.fit.train.data": {"facts": {}, "topics": {}}}, "facts and topics are set; set"),
        ({"bridge.reader": {}}, "bridge.reader: none is set; set one or several of"),
        ({"bridge": 3}, "bridge: expected a mapping with keys of latent_dim"),
        (
            {"bridge.compressor.perceiver": {"slots": 4, "width": None, "rotary": True}},
            "bridge.compressor.perceiver: rotary: turns channels in pairs, and 8 channels in 8",
        ),
    ],
)
def test_bad_files(write: Write, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        read(write, **changes)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_resolved_config_reads_back_as_itself(write: Write, tmp_path: Any) -> None:
    config = read(write, "objectives.kd.weight=0.1", "stages.fit.train.optimiser.lr=3e-5")
    text = parse.to_yaml(config)
    (tmp_path / "again.yaml").write_text(text)
    again = parse.read(tmp_path / "again.yaml")
    assert again == config
    assert parse.to_yaml(again) == text
    assert "window" not in text  # variants that are not set do not clutter it
    assert "temperature: 0.0" in text  # defaults are there


def test_differences_name_the_dotted_keys(write: Write) -> None:
    old = read(write)
    new = read(write, "seed=7", "objectives.kd.weight=0.5", "stages.fit.train.log_every=1")
    found = parse.differences(old, new)
    assert found["seed"] == (42, 7)
    assert found["stages.fit.train.log_every"] == (20, 1)
    assert found["objectives.kd.weight"] == (None, 0.5)
    assert parse.differences(old, old) == {}


def test_keys_with_their_old_names_are_read_and_said(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = parse.to_dict(read(write))
    raw["layout"]["beside_text"] = raw["layout"].pop("with_text")
    evaluate = raw["stages"]["report"]["evaluate"]
    evaluate["beside"] = evaluate.pop("rivals") | {"other": "runs/x"}
    report = parse.from_dict(raw).stages["report"].evaluate
    assert report is not None and report.rivals == {"other": "runs/x"}
    assert not capsys.readouterr().err  # what a run has written is read without a word
    assert parse.with_flags(raw, [("layout.beside_text", "true")]).layout.with_text
    assert sorted(capsys.readouterr().err.splitlines()) == [
        "note: layout.beside_text is called layout.with_text now",
        "note: stages.report.evaluate.beside is called stages.report.evaluate.rivals now",
    ]
    evaluate["rivals"] = {}
    with pytest.raises(UserError, match=r"evaluate\.beside: unknown key"):
        parse.from_dict(raw)
