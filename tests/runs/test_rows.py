"""What is said of rows before a run: too long, leaked, left out; by the doctor and by stages."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from rich.console import Console

from lw_jax.config.parse import read, to_yaml
from lw_jax.config.schema import Config
from lw_jax.data.example import Example, Remark
from lw_jax.data.load import load_rows
from lw_jax.errors import UserError
from lw_jax.evaluate import report
from lw_jax.evaluate.metrics.base import Prediction
from lw_jax.mesh import make_mesh
from lw_jax.runs import doctor, rows, streams
from lw_jax.runs.session import Session, open_pipeline
from lw_jax.text.collate import has_row
from lw_jax.train.config import Level
from tests.config.conftest import Write

SHORT, LONG = "Bo has 3 cats.", "Bo has 3 cats. " * 12


def write_rows(path: Path, texts: list[str], **more: Any) -> str:
    lines = [
        json.dumps({"context": f"{n} {text}", "question": "How many?", "answer": n, **more})
        for n, text in enumerate(texts)
    ]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def data(train: str, held_out: str | None = None, **more: Any) -> tuple[str, str]:
    given = {"train": train, "eval": held_out, "validation_share": 0.2, **more}
    return "data", json.dumps({"jsonl": given})


def found(path: Path, *flags: tuple[str, str]) -> list[tuple[str, str]]:
    """Level and text of what the doctor finds."""
    return [(f.level, f.text) for f in doctor.examine(read(path, list(flags)), memory=False)]


def test_all_contexts_too_long_is_an_error_of_the_doctor(write: Write) -> None:
    path, flag = write(), ("layout.max_tokens", "3")
    wrong = [text for level, text in found(path, flag) if level == "error"]
    assert len(wrong) == 3  # to train, to validate, to evaluate
    assert all("longer than layout.max_tokens=3: raise it" in text for text in wrong)
    with pytest.raises(UserError, match=r"^stages.fit: all of 100,000,000 .*max_tokens=3"):
        doctor.check(read(path, [flag]))


def test_questions_and_answers_that_a_receiver_was_not_made_for_are_said(
    write: Write, tmp_path: Path
) -> None:
    file = Path(write_rows(tmp_path / "rows.jsonl", [SHORT] * 40))
    held_out = write_rows(tmp_path / "eval.jsonl", ["Another " + SHORT] * 9)
    path, flag = write(), data(str(file), held_out)
    assert not [text for _, text in found(path, flag) if "was made for" in text]
    file.write_text(file.read_text().replace("How many?", "How many? " * 2000))
    said = [text for level, text in found(path, flag) if level == "warning"]
    assert len(said) == 1
    assert said[0].startswith("questions and answers have up to ")
    assert "the message included: give shorter ones" in said[0]


def test_one_context_to_evaluate_is_an_error_before_anything_is_trained(
    write: Write, tmp_path: Path
) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [SHORT] * 40)
    one = Path(write_rows(tmp_path / "one.jsonl", ["Other " + SHORT]))
    one.write_text(one.read_text() + one.read_text().replace("How many?", "Which?"))
    path, flag = write(), data(file, str(one))
    wrong = [text for level, text in found(path, flag) if level == "error"]
    assert wrong == [
        "1 context to evaluate, and deranged gives each the latent of another; give two or more"
    ]
    few = ("stages.report.evaluate.rows", "1")
    wrong = [text for level, text in found(path, few) if level == "error"]
    assert wrong and wrong[0].startswith("stages.report.evaluate.rows: 1 row to evaluate, and der")
    alone = ("stages.report.evaluate.methods", "[text]")
    assert not [1 for level, _ in found(path, flag, alone) if level == "error"]


@pytest.mark.parametrize(("long", "level"), [(2, "ok"), (8, "warning")])
def test_how_many_contexts_are_too_long_is_said(
    long: int, level: str, write: Write, tmp_path: Path
) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [LONG] * long + [SHORT] * (32 - long))
    held_out = write_rows(tmp_path / "eval.jsonl", ["Another " + SHORT] * 9)
    flags = [
        data(file, held_out),
        ("layout.max_tokens", "40"),
        ("stages.fit.train.eval_every", "0"),
    ]
    said = [one for one in found(write(), *flags) if "longer than" in one[1]]
    rows_to_train = len(load_rows(read(write(), [flags[0]]).data, "train", 42))
    ((given, text),) = said
    assert given == level
    assert f"of {rows_to_train} contexts to train are longer than layout.max_tokens=40" in text


def test_a_level_of_the_curriculum_that_is_all_too_long(write: Write) -> None:
    flags = [
        ("layout.max_tokens", "40"),
        ("stages.fit.train.curriculum", "[{level: 1, share: 0.5}, {level: 24, share: 0.5}]"),
    ]
    wrong = [text for level, text in found(write(), *flags) if level == "error"]
    assert len(wrong) == 1 and "contexts of level 24 to train are longer" in wrong[0]


def test_leaks_duplicates_and_rows_left_out_are_found_by_the_doctor(
    write: Write, tmp_path: Path
) -> None:
    file = Path(write_rows(tmp_path / "rows.jsonl", [SHORT] * 30))
    other = tmp_path / "crlf.jsonl"
    other.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    path = write()
    said = [text for level, text in found(path, data(str(file), str(other))) if level == "warning"]
    assert len(said) == 1
    assert (
        said[0].startswith("evaluation rows of stages.report are training rows of stages.fit: 2")
        and "of 30 contexts" in said[0]
    )
    file.write_text(file.read_text() * 2)
    said = [text for _, text in found(path, data(str(file))) if "twice" in text]
    assert said and "count twice" in said[0]
    nested = [
        {"context": f"Text {n}.", "question": "Q?", "answers": {"text": ["Text"] * (n % 3)}}
        for n in range(60)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in nested))
    squad = {"squad": {"train": str(file), "eval": None, "validation_share": 0.2}}
    said = [text for _, text in found(path, ("data", json.dumps(squad))) if "unanswer" in text]
    assert said and "data.squad.unanswerable=TEXT keeps them" in said[0]


def test_rows_of_an_evaluation_of_its_own_are_held_against_those_of_training(
    write: Write, tmp_path: Path
) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [SHORT] * 40)
    clean = write_rows(tmp_path / "clean.jsonl", ["Clean " + SHORT] * 9)
    flags = [
        data(file, clean),
        ("stages.report.evaluate.data", json.dumps({"jsonl": {"train": "none", "eval": file}})),
    ]
    said = [text for level, text in found(write(), *flags) if level == "warning"]
    assert said and "evaluation rows of stages.report" in said[0]
    assert not [1 for level, _ in found(write(), flags[0]) if level == "warning"]
    part = "The red goat of the old mill ate 4 hats today."
    file = write_rows(tmp_path / "part.jsonl", [part] * 9)
    whole = write_rows(tmp_path / "whole.jsonl", [f"{n} {part}" for n in range(40)])
    parts = [text for level, text in found(write(), data(whole, file)) if level == "warning"]
    assert len(parts) == 1
    assert parts[0].startswith(
        "evaluation rows of stages.report are parts of training rows of stages.fit: "
    )
    wholes = [text for level, text in found(write(), data(file, whole)) if level == "warning"]
    assert len(wholes) == 1
    assert wholes[0].startswith(
        "evaluation rows of stages.report hold the whole text of training rows of stages.fit: "
    )


@pytest.mark.parametrize(
    "where",
    [
        "stages.report.evaluate.init_from",
        "stages.report.evaluate.rivals",
        "stages.fit.train.init_from",
        "stages.fit.train.teacher",
        "stages.fit.train.prompt_from",
    ],
)
def test_rows_of_other_runs_that_a_run_needs_are_held_against_the_evaluation(
    where: str, write: Write, tmp_path: Path
) -> None:
    """Those that it starts from, learns from or compares with; and what these started from."""
    file = write_rows(tmp_path / "rows.jsonl", [SHORT] * 40)
    clean = write_rows(tmp_path / "clean.jsonl", ["Clean " + SHORT] * 9)
    older, before = tmp_path / "older", tmp_path / "before"
    for home, *flags in (
        (older, data(file, clean)),
        (before, data(clean, clean + "x"), ("stages.fit.train.init_from", str(older))),
    ):
        home.mkdir()
        (home / "config.yaml").write_text(to_yaml(read(write(), flags)))
    held_out = ("stages.report.evaluate.data", json.dumps({"jsonl": {"train": "n", "eval": file}}))
    given = json.dumps({"tuned": str(before)}) if where.endswith("rivals") else str(before)
    config = read(write(), [held_out, (where, given)])
    evaluation = load_rows(config.stages["report"].evaluate.data, "eval", 0)  # type: ignore[union-attr]
    (said,) = rows.leaks(config, "report", evaluation)
    assert said.level == "warning"
    assert f"report are training rows of {older}, stages.fit: 35 of 40 contexts" in said.text
    Path(file).rename(tmp_path / "moved.jsonl")
    said = rows.leaks(config, "report", evaluation)[-1]
    text = f"rows that {older} was trained on cannot be read here, and were not compared"
    assert (said.level, said.text) == ("ok", text)


def test_training_rows_are_kept_apart_from_those_of_evaluations(
    write: Write, tmp_path: Path
) -> None:
    def kept(*flags: tuple[str, str]) -> Any:
        config = read(write(), [*flags, ("stages.fit.train.apart", "true")])
        cfg = config.stages["fit"].train
        assert cfg is not None
        return rows.training_rows(config, cfg, config.data, None)

    part = "The red goat of the old mill ate 4 hats today."
    file = write_rows(tmp_path / "held_out.jsonl", [f"{part} Then it slept for 9 hours."] * 9)
    own = tmp_path / "own.jsonl"
    same, held, inside = f"0 {part} Then it slept for 9 hours.", "So: 3 ", part
    texts = [same.upper(), f"{held}{part} Then it slept for 9 hours! Indeed.", inside]
    other = [f"The blue goat of the new mill ate {n} hats today." for n in range(40)]
    lines = [{"context": t, "question": "What?", "answer": "hats"} for t in texts + other]
    own.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found_rows = kept(data(str(own), file))
    assert {g[0].context for g in found_rows.groups} < set(other) and len(found_rows) > 20
    assert any("train.apart=false keeps them" in remark.text for remark in found_rows.remarks)
    flags = [data(str(own), file), ("stages.fit.train.apart", "true")]
    said = [text for level, text in found(write(), *flags) if level == "warning"]
    assert not [text for text in said if "evaluation rows of" in text]
    again = write_rows(tmp_path / "again.jsonl", [f"{part} Then it slept for 9 hours."] * 9)
    with pytest.raises(UserError, match=r"every training context is, holds or stands in"):
        kept(data(again, file))
    with pytest.raises(UserError, match=r"^train.apart: rows of data.facts are not held"):
        kept()


def test_a_stage_of_its_own_rows_is_held_against_the_evaluation_of_the_run(
    write: Write, tmp_path: Path
) -> None:
    """Whose rows have articles, as a method of it needs, and the stage's have none."""
    text = "The red goat of the old mill ate 4 hats today."
    held = write_rows(tmp_path / "held.jsonl", [text] * 9, article="goats")
    train = write_rows(tmp_path / "train.jsonl", [SHORT] * 40, article="cats")
    own = write_rows(tmp_path / "own.jsonl", [text] * 9 + [LONG] * 40)
    jsonl = {"train": own, "eval": None, "eval_share": 0, "validation_share": 0.2}
    flags = [
        data(train, held, article_field="article"),
        ("stages.fit.train.data", json.dumps({"jsonl": jsonl})),
        ("stages.fit.train.apart", "true"),
        ("stages.report.evaluate.methods", "[latent, deranged_near]"),
    ]
    config = read(write(), flags)
    cfg = config.stages["fit"].train
    assert cfg is not None
    (by_level,) = streams.task_rows(config.of_stage(cfg), cfg).values()
    (kept,) = by_level.values()
    assert len(kept) > 20 and not any(text in kept[i][0].context for i in range(len(kept)))


def test_small_files_are_told_which_key_helps(write: Write, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [SHORT] * 6)
    wrong = [
        t for level, t in found(write(), data(file, validation_share=0.001)) if level == "error"
    ]
    assert any("data.jsonl.validation_share" in t and "eval_every: 0" in t for t in wrong)


def test_what_is_said_is_printed_once_and_an_error_is_raised() -> None:
    out = io.StringIO()
    said = [Remark("warning", "long"), None, Remark("ok", "[kept]"), Remark("warning", "long")]
    rows.report(Console(file=out, width=80), "data", said)
    assert out.getvalue() == "WARNING data: long\ndata: [kept]\n"
    with pytest.raises(UserError, match=r"^data: all$"):
        rows.report(Console(file=out), "data", [Remark("error", "all")])


def config_of(write: Write, tmp_path: Path, texts: list[str]) -> Config:
    file = write_rows(tmp_path / "rows.jsonl", texts)
    flags = [
        data(file, validation_share=0.4),
        ("layout.max_tokens", "40"),
        ("stages.fit.train.batch_size", "2"),
        ("stages.fit.train.questions", "2"),
    ]
    return read(write(), flags)


def test_a_stage_measures_evaluates_and_trains_on_the_rows_that_fit(
    write: Write, tmp_path: Path
) -> None:
    """One context in twenty fits: RMS are of tokens, and every batch has a row."""
    texts = [SHORT if n % 20 == 7 else LONG for n in range(400)]
    config = config_of(write, tmp_path, texts)
    mesh, session = make_mesh(config.mesh), Session()
    pipeline = open_pipeline(config, mesh, session=session)
    (measured,) = pipeline.bridge.dims.receivers.values()
    assert np.isfinite([measured.embed_rms, *measured.key_rms, *measured.value_rms]).all()

    cfg = config.stages["fit"].train
    assert cfg is not None
    groups = streams.validation(pipeline, config, cfg)
    assert 2 <= len(groups) <= cfg.eval_rows
    assert all(len(group[0].context) < 30 for group in groups)

    train = load_rows(config.data, "train", 1)
    made = streams.collate_of(pipeline, cfg, train)
    stream = streams.stream_of(pipeline, cfg, train, 1, "fit/0", made)
    batches = [stream.batch(step) for step in range(60)]
    assert all(has_row(batch) for batch in batches)
    assert sum(len(batch["valid"]) for batch in batches) == 60 * 4

    # phases of the same rows, which are measured once
    halves = dataclasses.replace(cfg, curriculum=(Level(share=0.5), Level(share=0.5)))
    read_before = streams.task_rows(config, halves)
    (part,) = streams.parts_of(pipeline, config, halves, "fit", {}, read_before).values()
    first, second = part.streams.values()
    assert first.collate is second.collate and first.indices(0) != second.indices(0)

    none = dataclasses.replace(config, layout=dataclasses.replace(config.layout, max_tokens=3))
    with pytest.raises(UserError, match=r"^layout.max_tokens: \d+ of \d+ contexts to train on are"):
        open_pipeline(none, mesh, session=session)
    jax.clear_caches()


def test_predictions_give_the_ids_of_the_file() -> None:
    said = Prediction("a", 0.1, 1, 0, True, True, 1, 1)
    own = Example("jsonl-1/2", "jsonl-1", "c", "q", ("a",), row_id="mine-7")
    examples = [own, dataclasses.replace(own, row_id="")]
    lines = list(report.predictions(examples, {"r": {"text": ([said, said], 0.1)}}))
    assert [line.get("row_id") for line in lines] == ["mine-7", None]
