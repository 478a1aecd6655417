"""Texts with labels: formats, label words, malformed rows by file and line, held-out texts."""

import json
from dataclasses import replace

import pyarrow.parquet
import pytest

from lw_jax.data import classification
from lw_jax.errors import UserError

LABELS = ("negative", "positive")
ROWS = [{"text": f"Film number {i} is  long.", "label": i % 2} for i in range(40)]


def write(path, rows):
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        body = "".join(f'"{row["text"]}",{row["label"]}\n' for row in rows)
        path.write_text("text,label\n" + body)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def config(train, **options):
    given = {"eval": None, "labels": LABELS, "question": "Sentiment?"} | options
    return classification.Config(train=train, **given)


def every(rows):
    return [example for i in range(len(rows)) for example in rows[i]]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_a_label_is_answered_in_its_word(tmp_path, suffix):
    held_out = write(tmp_path / f"eval{suffix}", ROWS)
    rows = config("none.jsonl", eval=held_out).rows("eval")
    assert [e.answers for e in every(rows)] == [(LABELS[i % 2],) for i in range(40)]
    assert every(rows)[1].context == "Film number 1 is long."
    assert {e.question for e in every(rows)} == {"Sentiment?"}
    assert not rows.malformed


def test_labels_by_name(tmp_path):
    named = [{"sentence": "How far?", "kind": "NUM"}, {"sentence": "Where?", "kind": "LOC"}]
    file = write(tmp_path / "eval.jsonl", named)
    options = {"text_field": "sentence", "label_field": "kind", "eval": file}
    cfg = config("none.jsonl", **options, labels=("number", "location"), values=("NUM", "LOC"))
    assert [e.answers[0] for e in every(cfg.rows("eval"))] == [
        "number",
        "location",
    ]
    own = replace(cfg, labels=("LOC", "NUM"), values=())  # the words themselves
    assert [e.answers[0] for e in every(own.rows("eval"))] == ["NUM", "LOC"]


def test_malformed_rows_are_named_by_file_and_line(tmp_path):
    file = tmp_path / "eval.jsonl"
    lines = [
        {"text": "Good.", "label": 1},
        {"text": "No label."},
        {"text": "Hidden.", "label": -1},
        {"text": " ", "label": 0},
        {"text": "True?", "label": True},
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines) + "{broken\n")
    rows = config("none.jsonl", eval=str(file)).rows("eval")
    expected = "label: expected one of 0, 1, negative, positive; got"
    assert len(rows) == 1
    assert rows.malformed == [
        f"{file}:2: {expected} nothing",
        f"{file}:3: {expected} -1",
        f"{file}:4: text: expected text, got ' '",
        f"{file}:5: {expected} True",
        f"{file}:6: not JSON (Expecting property name enclosed in double quotes at column 2)",
    ]


def test_malformed_lines_of_csv(tmp_path):
    file = tmp_path / "eval.csv"
    file.write_text('text,label\n"Two\nlines.",1\nshort\nlong,1,2\nGood.,0\n')
    rows = config("none.csv", eval=str(file)).rows("eval")
    assert [e.context for e in every(rows)] == ["Two lines.", "Good."]
    assert rows.malformed == [
        f"{file}:4: expected 2 fields, as in the first line",
        f"{file}:5: expected 2 fields, as in the first line",
    ]
    file.write_bytes(b"text,label\n\xff,1\n")
    with pytest.raises(UserError, match="not UTF-8"):
        config("none.csv", eval=str(file)).rows("eval")
    file.write_text('text,label\n"open,1\n')
    with pytest.raises(UserError, match=r"eval\.csv:2: not CSV"):
        config("none.csv", eval=str(file)).rows("eval")


def test_texts_of_the_evaluation_are_not_trained_on(tmp_path):
    train = write(tmp_path / "train.jsonl", [*ROWS, {"text": "FILM number 3 is long!", "label": 0}])
    held_out = write(tmp_path / "eval.jsonl", ROWS[:8])
    cfg = config(train, eval=held_out, validation_share=0.0)
    rows = cfg.rows("train")
    assert (len(rows), rows.skipped) == (32, 9)
    assert len(replace(cfg, decontaminate=False).rows("train")) == 40
    seen = {e.context for e in every(rows)}
    assert seen.isdisjoint(e.context for e in every(cfg.rows("eval")))


def test_one_file_is_split(tmp_path):
    cfg = config(write(tmp_path / "all.csv", ROWS), eval_share=0.3, validation_share=0.2)
    parts = [
        {e.context for e in every(cfg.rows(split))} for split in ("train", "validation", "eval")
    ]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 40


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": ()}, "^labels: expected two or more"),
        ({"labels": ("a", "a ")}, "^labels: expected two or more different"),
        ({"values": ("x",)}, "^values: expected a different one for each of the 2 labels"),
    ],
)
def test_labels_that_cannot_be_told_apart(options, message):
    with pytest.raises(UserError, match=message):
        config("none.jsonl", **options)
