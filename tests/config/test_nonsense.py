"""What each field allows and all together do not: steps that train nothing, things given twice."""

from __future__ import annotations

import pytest

from lw_jax.config import parse
from lw_jax.errors import UserError
from tests.config.fields import BASE

TRAIN, SCHEDULE = "stages.fit.train", "stages.fit.train.optimiser.schedule"
OBJECTIVE = "objectives.answer_ce"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            f"{OBJECTIVE}.weight=0",
            f"objectives: answer_ce is of weight 0 or without a gradient, so {TRAIN} would train",
        ),
        (
            f"{OBJECTIVE}.weight=0 objectives.kd.weight=0",
            "objectives: answer_ce, kd are all of weight 0",
        ),
        (f"{OBJECTIVE}.weight=0 objectives.code_unique.weight=1", "would train nothing"),
        (f"{TRAIN}.objectives.kd.weight=0", f"{TRAIN}.objectives: kd is of weight 0"),
        (f"{TRAIN}.optimiser.lr=0", f"{TRAIN}.optimiser.lr: expected above 1e-12; got 0"),
        (f"{TRAIN}.optimiser.lr=1e-50", f"{TRAIN}.optimiser.lr: expected above 1e-12; got 1e-50"),
        (f"{OBJECTIVE}.weight=1e-300", "objectives: answer_ce is of weight 0 or without"),
        (f"{TRAIN}.optimiser.lr=1e30", f"{TRAIN}.optimiser.lr: expected at most 10; got 1e+30"),
        (f"{TRAIN}.ema=1", f"{TRAIN}.ema: expected at most 0.999999; got 1"),
        (f"{SCHEDULE}.start=2", f"{SCHEDULE}.start: the learning rate is 0 in all 2 steps"),
        (f"{SCHEDULE}.start=9", f"{SCHEDULE}.start: the learning rate is 0 in all 2 steps"),
        (f"{SCHEDULE}.ramp=-1", f"{SCHEDULE}.ramp: expected at least 0; got -1"),
        (f"{SCHEDULE}.final=2", f"{SCHEDULE}.final: expected at most 1; got 2"),
        (f"{SCHEDULE}.stop=0", f"{SCHEDULE}.stop: 0 is not after start 0"),
        (f"{OBJECTIVE}.schedule.start=2", "objectives: answer_ce is off in all 2 steps"),
        (
            f"{OBJECTIVE}.schedule.stop=3 {OBJECTIVE}.schedule.start=3",
            f"{OBJECTIVE}.schedule.stop: 3 is not after start 3",
        ),
        (
            f"{TRAIN}.text_batches.steps=2 {OBJECTIVE}.schedule.on=latent "
            "objectives.text_ce.weight=0 objectives.text_ce.schedule.on=text "
            f"{OBJECTIVE}.schedule.stop=1",
            "objectives: answer_ce is off in all 2 steps",
        ),
        (
            f"{TRAIN}.latent_keep.start=0 {TRAIN}.latent_keep.end=0",
            f"{TRAIN}.latent_keep.end: at 0 every slot",
        ),
        (
            f"{OBJECTIVE}.first=2 {OBJECTIVE}.first_tokens=2 {OBJECTIVE}.first_weight=0",
            f"{OBJECTIVE}.first_weight: at 0 none of the first 2 tokens counts",
        ),
        ("bridge.reader.lora.alpha=0", "bridge.reader.lora.alpha: expected above 0; got 0"),
        ("bridge.reader.latent_adapters.gate=0", "gate: at 0 a block never learns"),
        (
            f'{TRAIN}.train_only=["("]',
            f"{TRAIN}.train_only.0: '(' is no regular",
        ),
        (f'{TRAIN}.train_only=["a","[z"]', f"{TRAIN}.train_only.1: '[z' is no regular expression"),
        (f"{TRAIN}.eval_rows=1", f"{TRAIN}.eval_rows: the quick evaluation needs 2 or more"),
        ("bridge.source.hidden_states.layers=[1,1]", "hidden_states.layers: 1 is given twice"),
        ("stages.report.evaluate.methods=[text,text]", "evaluate.methods: 'text' is given twice"),
        ("objectives.kd.tau=0", "objectives.kd.tau: expected at least 0.01; got 0"),
        (
            "bridge.compressor.perceiver.dropout=2",
            "dropout: expected at most 0.99; got 2",
        ),
        ("bridge.compressor.perceiver.depth=-1", "perceiver.depth: expected at least 0; got -1"),
        ("bridge.compressor.perceiver.mlp_ratio=0", "mlp_ratio: expected at least 1; got 0"),
        ("bridge.compressor.perceiver.slots=100000", "slots: expected at most 16,384; got 100000"),
        ("bridge.compressor.perceiver.heads=300", "heads: 300 are more than the width 256"),
        (
            "bridge.reader.soft_tokens.dropout=5",
            "dropout: expected at most 0.99; got 5",
        ),
        ("bridge.reader.deep_prefix.length=0", "deep_prefix.length: expected at least 1; got 0"),
        ("layout.question={question}_{foo}", "layout.question: {foo} is no field of it"),
        ("layout.question={question}_{}", "layout.question: {} is no field of it"),
        ("layout.question={question!r}", "layout.question: {question!r} is no field of it"),
        ("layout.question={question:>9}", "layout.question: {question:>9} is no field of it"),
        ("layout.question={question.real}", "layout.question: {question.real} is no field of it"),
        ("layout.question={{question}}", "layout.question: must contain {question}"),
        ("layout.question=A{_{question}", "layout.question: 'A{_{question}': "),
        ("layout.question=}_{question}", "layout.question: '}_{question}': Single '}'"),
        ("layout.max_tokens=0", "layout.max_tokens: expected at least 1; got 0"),
        ("layout.max_tokens=-5", "layout.max_tokens: expected at least 1; got -5"),
        (f"{TRAIN}.workers=1000", f"{TRAIN}.workers: expected at most 256; got 1000"),
        ("seed=-1", "seed: expected at least 0; got -1"),
        ("seed=99999999999999999999", "seed: expected at most 2,147,483,647; got 999"),
        (f"{TRAIN}.steps=9223372036854775808", f"{TRAIN}.steps: expected at most 1,000,000,000"),
        (f"{TRAIN}.batch_size=1e29", f"{TRAIN}.batch_size: expected at most 1,048,576; got 99"),
        (f"{OBJECTIVE}.weight=.nan", f"{OBJECTIVE}.weight: expected a finite number; got nan"),
        (f"{OBJECTIVE}.weight=-1", f"{OBJECTIVE}.weight: expected at least 0; got -1"),
        ("mesh.data=0", "mesh.data: expected at least 1, or -1 for the rest; got 0"),
        ("seed.=1", "--seed.: unknown key; a key looks like bridge.latent_dim"),
        ("seed.x=1", "--seed.x: unknown key; seed has none below it"),
        (".seed=1", "--.seed: unknown key"),
    ],
)
def test_nonsense_gets_one_line(flags: str, said: str) -> None:
    pairs = [tuple(flag.split("=", 1)) for flag in flags.split(" ")]
    with pytest.raises(UserError) as caught:
        parse.with_flags({**BASE, "seed": 1}, pairs)  # type: ignore[arg-type]
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "flags",
    [
        f"{OBJECTIVE}.weight=0 objectives.kd.weight=1",
        f"{OBJECTIVE}.schedule.start=1",
        "layout.question={{{question}}}:",
        f"{OBJECTIVE}.schedule.stop=1",
        f"{SCHEDULE}.start=1",
        f"{TRAIN}.optimiser.clip=0",
        f"{TRAIN}.optimiser.name=muon {TRAIN}.optimiser.adam_lr=0",
        f"{TRAIN}.latent_keep.start=0 {TRAIN}.latent_keep.ramp=1",
        f"{TRAIN}.steps=1000000 {TRAIN}.batch_size=100000",
        "bridge.latent_dim=8192",
        "stages.report.evaluate.rows=0",
        f"{TRAIN}.text_batches.steps=2 objectives.text_ce.schedule.on=text",
    ],
)
def test_what_makes_sense_is_taken(flags: str) -> None:
    pairs = [tuple(flag.split("=", 1)) for flag in flags.split(" ")]
    parse.with_flags(BASE, pairs)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["no", "No"], "'no' and 'No' are one answer to the exact match of stages.report.evaluate"),
        (["+", "-"], "'+' and '-' are one answer"),
        (["x", "the", "a"], "'the' and 'a' are one answer"),
        (["1.5", "15"], "'1.5' and '15' are one answer"),
    ],
)
def test_labels_that_exact_match_cannot_tell_apart(labels: list[str], said: str) -> None:
    data = {"classification": {"train": "x.jsonl", "labels": labels}}
    with pytest.raises(UserError, match=r"^data\.classification\.labels: ") as caught:
        parse.from_dict({**BASE, "data": data})
    assert said in str(caught.value)
    data["classification"]["labels"] = ["A", "B", "no"]
    parse.from_dict({**BASE, "data": data})
