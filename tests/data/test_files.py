"""Files of rows as users have them: packed, marked, several, and one absurd row among the good."""

from __future__ import annotations

import gzip
import json
import os
import time
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from lw_jax.data import (
    classification,
    files,
    gsm8k,
    hotpotqa,
    jsonl,
    load,
    overlap,
    records,
    squad,
)
from lw_jax.data.config import DataConfig
from lw_jax.data.example import Example
from lw_jax.data.source import ListRows
from lw_jax.errors import UserError

BOM = "\ufeff"
GOOD = [
    {"id": f"r{i}", "context": f"Text {i} é.", "question": "Which?", "answer": i} for i in (1, 2)
]


def read(*names: Any, **options: Any) -> ListRows:
    """The evaluation rows of some files."""
    given = tuple(map(str, names))
    return jsonl.Config(
        train="none.jsonl", eval=given[0] if len(given) == 1 else given, **options
    ).rows("eval")


def every(rows: Any) -> list[Example]:
    return [example for i in range(len(rows)) for example in rows[i]]


def texts(rows: Any) -> list[str]:
    return [example.context for example in every(rows)]


def body(kind: str, rows: list[dict[str, Any]] | None = None) -> str:
    """Rows as the text of a file."""
    rows = GOOD if rows is None else rows
    if kind in ("csv", "tsv"):
        mark = "," if kind == "csv" else "\t"
        lines = [list(rows[0]), *([str(v) for v in row.values()] for row in rows)]
        return "".join(mark.join(line) + "\n" for line in lines)
    if kind == "json":
        return json.dumps(rows, ensure_ascii=False)
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@pytest.mark.parametrize("kind", ["jsonl", "ndjson", "json", "csv", "tsv"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("mark", ["", BOM])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_marks_line_ends_and_gzip(
    kind: str, packed: bool, mark: str, end: str, tmp_path: Path
) -> None:
    file = tmp_path / f"rows.{kind}{'.gz' if packed else ''}"
    data = (mark + body(kind).replace("\n", end)).encode()
    file.write_bytes(gzip.compress(data) if packed else data)
    rows = read(file)
    assert texts(rows) == ["Text 1 é.", "Text 2 é."]
    assert [e.row_id for e in every(rows)] == ["r1", "r2"]
    assert [e.answers for e in every(rows)] == [("1",), ("2",)]
    assert not rows.malformed


def test_a_mark_amid_a_file_and_gzip_without_its_ending(tmp_path: Path) -> None:
    """Two files put one after the other, and a packed one under a plain name."""
    file = tmp_path / "rows.jsonl"
    first, second = body("jsonl", GOOD[:1]), body("jsonl", GOOD[1:])
    file.write_bytes(gzip.compress((BOM + first + BOM + second).encode()))
    assert len(texts(read(file))) == 2


@pytest.mark.parametrize("name", ["squad", "hotpotqa", "gsm8k", "classification"])
def test_every_data_set_reads_packed_and_marked_files(name: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl.gz"
    row = {
        "squad": {"context": "A b.", "question": "What?", "answers": {"text": ["b"]}},
        "hotpotqa": {
            "context": [["T", ["A b."]]],
            "supporting_facts": [["T", 0]],
            "question": "What?",
            "answer": "b",
        },
        "gsm8k": {"question": "How many?", "answer": "2\n#### 2"},
        "classification": {"text": "A b.", "label": 1},
    }[name]
    file.write_bytes(gzip.compress((BOM + json.dumps({"id": 7, **row}) + "\n").encode()))
    more = {"labels": ("no", "yes")} if name == "classification" else {}
    sets = {m.__name__.rpartition(".")[2]: m for m in (squad, hotpotqa, gsm8k, classification)}
    (example,) = every(sets[name].Config(train="none.jsonl", eval=str(file), **more).rows("eval"))
    assert example.row_id == "7"


def test_several_files_patterns_and_directories(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(3):
        row = GOOD[0] | {"context": f"Text {number}", "id": number}
        (folder / f"{number}.jsonl").write_text(body("jsonl", [row]))
    (folder / "README.md").write_text("Not rows.")
    (folder / ".hidden.jsonl").write_text("{broken")
    all_of_them = ["Text 0", "Text 1", "Text 2"]
    assert texts(read(folder / "*.jsonl")) == all_of_them
    assert texts(read(folder)) == all_of_them
    assert texts(read(folder / "2.jsonl", folder / "0.jsonl")) == ["Text 2", "Text 0"]
    twice = read(folder / "0.jsonl", folder / "?.jsonl", folder)
    assert texts(twice) == all_of_them  # each file once
    assert not twice.remarks


def errors(home: Path) -> Any:
    (home / "empty").mkdir()
    utf16 = home / "utf16.jsonl"
    utf16.write_bytes(body("jsonl").encode("utf-16"))
    unmarked = home / "unmarked.csv"
    unmarked.write_bytes(body("csv").encode("utf-16-le"))
    cut = home / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(body("jsonl", GOOD * 99).encode())[:-20])
    twice = home / "twice.csv"
    twice.write_text("context,question,answer,answer\na,b,c,d\n")
    table = home / "twice.parquet"
    columns = [pyarrow.array(["a"])] * 4
    pyarrow.parquet.write_table(
        pyarrow.table(columns, names=["context", "question", "answer", "answer"]), table
    )
    (home / "rows.txt").write_text("x")
    yield home / "no*.jsonl", "no*.jsonl: no file matches this pattern"
    yield home / "empty", "empty: no .jsonl, .ndjson, .json, .csv, .tsv, .parquet file directly"
    yield home / "none.jsonl.gz", "none.jsonl.gz: no such file; give a .jsonl"
    yield home / "rows.txt", "rows.txt: unknown format; expected one of .jsonl"
    yield utf16, "utf16.jsonl: UTF-16 or UTF-32 text; expected UTF-8"
    yield unmarked, "unmarked.csv: UTF-16 or UTF-32 text; expected UTF-8"
    yield cut, "cut.jsonl.gz: damaged gzip ("
    yield twice, "twice.csv:1: the column 'answer' stands twice"
    yield table, "twice.parquet: the column 'answer' stands twice"


def test_what_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    for file, message in errors(tmp_path):
        with pytest.raises(UserError) as error:
            read(file)
        assert message in str(error.value)
        assert "\n" not in str(error.value)


ABSURD: dict[str, tuple[str, str]] = {
    "digits": ('{"context": "a", "question": "b", "answer": ' + "9" * 5000 + "}", "5,000 digits"),
    "deep": ("[" * 100_000 + "]" * 100_000, "nested too deep"),
    "deep field": ('{"context": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deep"),
    "surrogate": (r'{"context": "a \ud800 b", "question": "b", "answer": "c"}', "half a surrogate"),
    "surrogate id": (
        r'{"id": "\udc00", "context": "a", "question": "b", "answer": "c"}',
        "id: half a surrogate",
    ),
    "nan": ('{"context": "a", "question": "b", "answer": NaN}', "a finite number, got nan"),
    "infinite": ('{"context": "a", "question": "b", "answer": -Infinity}', "number, got -inf"),
    "overflow": ('{"context": "a", "question": "b", "answer": 1e999}', "number, got inf"),
    "nan in a list": ('{"context": "a", "question": "b", "answer": ["c", NaN]}', "got nan"),
    "nul": (r'{"context": "a\u0000b", "question": "b", "answer": "c"}', "a NUL at character 1"),
    "nul in the answer": (r'{"context": "a", "question": "b", "answer": "\u0000"}', "a NUL"),
    "long": ('{"context": "' + "a" * 1_000_001 + '"}', "context: 1,000,001 characters"),
    "twice": ('{"context": "a", "question": "b", "answer": "c", "answer": "d"}', "'answer' twice"),
    "bool": ('{"context": "a", "question": "b", "answer": true}', "expected text, got True"),
    "object": ('{"context": {"x": 1}, "question": "b", "answer": "c"}', "expected text, got {"),
    "question": ('{"context": "a", "question": [], "answer": "c"}', "expected text, got []"),
    "null": ("null", "expected an object, got None"),
    "bytes": ('{"context": "\udcff"}', "not UTF-8"),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", list(ABSURD))
def test_one_absurd_row_is_named_and_left_out(kind: str, packed: bool, tmp_path: Path) -> None:
    bad, message = ABSURD[kind]
    first, second = body("jsonl").splitlines()
    file = tmp_path / "rows.jsonl"
    data = f"{first}\n{bad}\n{second}\n".encode(errors="surrogateescape")
    file.write_bytes(gzip.compress(data) if packed else data)
    rows = read(file)
    assert texts(rows) == ["Text 1 é.", "Text 2 é."]
    (named,) = rows.malformed
    assert named.startswith(f"{file}:2: ")
    assert message in named
    assert len(named) < len(str(file)) + 200 and "\n" not in named


@pytest.mark.parametrize("kind", [k for k in ABSURD if k != "bytes"])
@pytest.mark.parametrize("under", ["", "data"])
def test_one_absurd_row_of_a_json_list(kind: str, under: str, tmp_path: Path) -> None:
    bad, message = ABSURD[kind]
    first, second = body("jsonl").splitlines()
    file = tmp_path / "rows.json"
    text = f"[{first}, {bad},\n {second}]"
    file.write_text(f'{{"version": "]", "data": {text}}}' if under else text)
    rows = read(file)
    assert texts(rows) == ["Text 1 é.", "Text 2 é."]
    (named,) = rows.malformed
    assert named.startswith(f"{file}: {under}[1]: ")
    assert message in named


def test_a_long_line_is_not_held_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records.files, "LONGEST_LINE", 1000)
    first, second = body("jsonl").splitlines()
    file = tmp_path / "rows.jsonl"
    file.write_text(f"{first}\n{'x' * 5000}\n{second}\n{'y' * 1001}")
    rows = read(file)
    assert len(texts(rows)) == 2
    assert rows.malformed == [f"{file}:{n}: a line of more than 1,000 bytes" for n in (2, 4)]


def test_json_lines_under_the_name_json(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    file.write_text(body("jsonl"))
    assert len(texts(read(file))) == 2


def test_one_absurd_row_of_a_table(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    lines = [
        b"context,question,answer",
        b"first,q,a",
        b"short,q",
        b'"closed"early,q,a',
        b"not UTF-8 \xff,q,a",
        b"nul \x00,q,a",
        b"",
        b'"two',
        b'lines",q,a',
        b"long " + b"x" * 200_000 + b",q,a",  # more than csv takes by default
        b"after,q,a",
        b'"never closed,q,a',
        b"last,q,a",
    ]
    file.write_bytes(b"\n".join(lines) + b"\n")
    rows = read(file)
    found = texts(rows)
    assert [t[:20] for t in found] == ["first", "two lines", "long " + "x" * 15, "after", "last"]
    assert rows.malformed == [
        f"{file}:3: expected 3 fields, as in the first line",
        f"{file}:4: not CSV (',' expected after '\"')",
        f"{file}:5: not UTF-8",
        f"{file}:6: context: a NUL at character 4",
        f"{file}:12: not CSV (unexpected end of data)",
    ]


def test_one_absurd_row_of_a_parquet_file(tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    context = pyarrow.array([b"first", b"\xff", b"last"]).view(pyarrow.string())
    names = ["context", "question", "answer"]
    answers = pyarrow.array([1.5, 2.0, float("nan")])
    pyarrow.parquet.write_table(pyarrow.table([context, ["q"] * 3, answers], names=names), file)
    rows = read(file)
    assert texts(rows) == ["first"]
    assert [m.partition(": row ")[2][:2] for m in rows.malformed] == ["1:", "2:"]


@pytest.mark.parametrize("value", [0, 7, 2.5])
def test_numbers_are_read_in_every_place_where_one_is(value: float, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    row = {"context": "a", "question": value, "answer": [value, "b"]}
    file.write_text(json.dumps(row) + "\n")
    (example,) = every(read(file))
    assert (example.question, example.answers) == (str(value), (str(value), "b"))


def test_the_files_own_ids(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [
        {"id": "a", "key": 7, "context": "c 1", "question": "q", "answer": "x"},
        {"key": 8.0, "context": "c 2", "question": "q", "answer": "x"},
        {"_id": "b", "context": "c 3", "question": "q", "answer": "x"},
        {"id": None, "key": [], "context": "c 4", "question": "q", "answer": "x"},
    ]
    file.write_text(body("jsonl", rows))
    assert [e.row_id for e in every(read(file))] == ["a", "", "b", ""]
    named = read(file, id_field="key")
    assert [e.row_id for e in every(named)] == ["7", "8"]
    assert named.malformed == [
        f"{file}:3: key: expected an id, text or a whole number, got nothing",
        f"{file}:4: key: expected an id, text or a whole number, got []",
    ]


def test_rows_and_ids_that_stand_twice_are_said(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    other = GOOD[0] | {"context": "another", "id": "r2"}
    file.write_text(body("jsonl", [*GOOD, GOOD[0] | {"id": "x"}, GOOD[0], other]))
    rows = read(file)
    assert len(every(rows)) == 5
    said = [remark.text for remark in rows.remarks]
    assert said == [
        "2 rows stand twice (same context, question and answers) and count twice: "
        f"{file}:3, as {file}:1 (and 1 more)",
        "ids that stand at several rows, so that predictions cannot be joined by them: 1 ('r2'); "
        "id_field names another field",
    ]
    assert rows.account.to_json() == {"read": 5, "left_out": {}, "twice": 2}


def test_other_answers_to_the_same_question_are_said(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [GOOD[0] | {"id": n, "answer": a} for n, a in enumerate(("x", ["x", "y"], "z", "x"))]
    file.write_text(body("jsonl", [*rows, GOOD[1], GOOD[1] | {"question": "Who?", "answer": "z"}]))
    contrary, twice = (read(file).remarks[i].text for i in (1, 0))
    assert twice.startswith("1 row stands twice")
    assert contrary == (
        "1 row has the context and question of another, and other answers, so one of them counts "
        f"as wrong: {file}:3, as {file}:1"
    )
    labels = [{"text": "So good!", "label": 0}, {"text": "so good", "label": 1}]
    file.write_text(body("jsonl", labels))
    cfg = classification.Config(train="n.jsonl", eval=str(file), labels=("a", "b"))
    assert "1 row has the context" in cfg.rows("eval").remarks[0].text


def test_gold_answers_that_do_not_stand_in_the_passage_are_said(tmp_path: Path) -> None:
    """One of several is enough; SQuAD alone says that answers are parts of the text."""
    file = tmp_path / "rows.jsonl"
    asked = (["red  Goat"], ["hat", "mill"], ["goats"], ["no answer"], ["a hat"])
    file.write_text(
        body(
            "jsonl",
            [
                {
                    "context": "The red\ngoat of the mill.",
                    "question": f"{n}?",
                    "answers": {"text": a},
                }
                for n, a in enumerate(asked)
            ],
        )
    )
    cfg = squad.Config(train="none.jsonl", eval=str(file), unanswerable="no answer")
    (said,) = cfg.rows("eval").remarks
    assert (said.level, said.text) == (
        "warning",
        "2 rows have no gold answer that stands in the text, case and white space aside: "
        f"{file}:3 (and 1 more)",
    )
    file.write_text(body("jsonl", [{"context": "A goat.", "question": "What?", "answer": "hat"}]))
    assert not read(file).remarks


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_levels_in_a_table_are_whole_numbers_as_text(kind: str, tmp_path: Path) -> None:
    file = tmp_path / f"rows.{kind}"
    levels = ["2", " 3 ", "one", "1.5", "", "9" * 12]
    file.write_text(
        body(kind, [GOOD[0] | {"context": f"t{n}", "level": v} for n, v in enumerate(levels)])
    )
    rows = read(file, level_field="level")
    assert [e.level for e in every(rows)] == [2, 3]
    assert len(rows.malformed) == 4
    assert rows.malformed[0] == f"{file}:4: level: expected a whole number, got 'one'"


def test_a_level_that_a_column_with_gaps_made_a_decimal(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(body("jsonl", [GOOD[0] | {"level": 2.0}]))
    assert [e.level for e in every(read(file, level_field="level"))] == [2]


def test_solutions_without_a_number_are_named(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    said = ["so\n#### 5", "so it is five", ["it is 5", "none"]]
    file.write_text(body("jsonl", [GOOD[0] | {"answer": a} for a in said]))
    rows = read(file, ends_in_number=True)
    assert len(every(rows)) == 1
    assert rows.malformed[0] == (
        f"{file}:2: answer: expected a solution that ends in a number (or set "
        "data.jsonl.ends_in_number to false), got 'so it is five'"
    )
    marks = ["a\n#### 5", "a\n#### none", "a\n#### five 5", "a\n#### ½"]
    file.write_text(
        body("jsonl", [{"question": f"Q {n}?", "answer": m} for n, m in enumerate(marks)])
    )
    for task in ("solve", "final"):
        cfg = gsm8k.Config(train="n.jsonl", eval=str(file), subset=None, task=task)
        assert [e.context for e in every(cfg.rows("eval"))] == ["Q 0?", "Q 2?"]


def test_what_is_no_plain_file_is_not_called_missing() -> None:
    with pytest.raises(UserError, match=r"^/dev/null: a pipe or a device; give a file"):
        read("/dev/null")


def test_malformed_rows_are_grouped_by_cause(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    bad = [{"context": "a", "question": "q", "answer": n} for n in ([], None, False, None)]
    file.write_text("{broken\n" + body("jsonl", [*GOOD, *bad]) + "{more\n")
    (remark,) = read(file).remarks
    assert remark.level == "warning"
    assert remark.text == (
        f"6 malformed rows left out of 8 (0.75): {file}:5: answer: expected text, got nothing "
        f"(and 2 more); {file}:1: not JSON (Expecting property name enclosed in double quotes at "
        f"column 2) (and 1 more); {file}:4: answer: expected text or a list of texts, got []"
    )
    with pytest.raises(UserError, match=r"^data.jsonl.max_malformed: a share of 0.5 is tolerated"):
        read(file, max_malformed=0.5)
    assert len(read(file, max_malformed=0.75)) == 2


def test_all_rows_malformed_names_the_fields(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("text,ask,gold\na,b,c\n")
    with pytest.raises(UserError, match=r"context: expected .*the rows have the fields text, ask"):
        read(file)


def test_small_files_say_which_key_helps(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(body("jsonl", [GOOD[0] | {"context": f"Text {n}"} for n in range(5)]))
    cfg = jsonl.Config(train=str(file), validation_share=0.001, eval_share=0.001)
    with pytest.raises(UserError) as error:
        cfg.rows("validation")
    for words in (
        "a hash",
        "validation_share 0.001",
        "data.jsonl.validation_share",
        "eval_every: 0",
    ):
        assert words in str(error.value)
    with pytest.raises(UserError, match=r"raise data.jsonl.eval_share, or name rows of their own"):
        cfg.rows("eval")


def test_a_file_of_both_is_held_out_or_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        rows = [GOOD[0] | {"context": f"{name} {n}"} for n in range(40)]
        (tmp_path / f"{name}.jsonl").write_text(body("jsonl", rows))
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "a.jsonl")
    same = jsonl.Config(
        train=str(tmp_path / "a.jsonl"),
        eval=f"{tmp_path}/../{tmp_path.name}/link.jsonl",
        eval_share=0.3,
    )
    assert not same.has_eval
    assert set(texts(same.rows("train"))).isdisjoint(texts(same.rows("eval")))
    with pytest.raises(UserError, match=r"^data.jsonl.train: .*a.jsonl is a file of eval as well"):
        jsonl.Config(train=f"{tmp_path}/*.jsonl", eval=str(tmp_path / "a.jsonl")).rows("train")


def test_labels_are_read_alike_in_the_config_and_the_file(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [
        {"text": f"t{n}", "label": label} for n, label in enumerate(["no\n", " no", "yes  sir"])
    ]
    file.write_text(body("jsonl", [*rows, {"text": "x", "label": "what"}]))
    cfg = classification.Config(train="n.jsonl", eval=str(file), labels=("no\n", "yes sir "))
    found = cfg.rows("eval")
    assert [e.answers for e in every(found)] == [("no",), ("no",), ("yes sir",)]
    assert "\n" not in found.malformed[0]
    by_value = classification.Config(
        train="n.jsonl", eval=str(file), labels=("n", "y"), values=("no ", "yes sir")
    )
    assert [e.answers for e in every(by_value.rows("eval"))] == [("n",), ("n",), ("y",)]


def test_what_is_left_out_on_purpose_is_counted(tmp_path: Path) -> None:
    asked = {"context": "A b.", "question": "What?"}
    file = tmp_path / "v2.jsonl"
    rows = [asked | {"answers": {"text": t}} for t in (["b"], [], [])]
    file.write_text(body("jsonl", rows))
    cfg = squad.Config(train="none.jsonl", eval=str(file))
    found = cfg.rows("eval")
    (remark,) = found.remarks
    assert remark.text == "2 unanswerable left out; data.squad.unanswerable=TEXT keeps them"
    assert found.account.to_json()["left_out"] == {"unanswerable": 2}
    (tmp_path / "train.jsonl").write_text(
        body("jsonl", [{"text": t, "label": 0} for t in ("Same text.", "Another.")])
    )
    (tmp_path / "eval.jsonl").write_text(body("jsonl", [{"text": "same TEXT", "label": 0}]))
    labelled = classification.Config(
        train=str(tmp_path / "train.jsonl"), eval=str(tmp_path / "eval.jsonl"), labels=("a", "b")
    )
    (remark,) = labelled.rows("train").remarks
    assert remark.text.startswith("1 left out, which are evaluation texts as well; data.classif")


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv"])
def test_only_line_ends_end_a_row(kind: str, tmp_path: Path) -> None:
    """Other separators that Unicode has stand amid a text."""
    file = tmp_path / f"rows.{kind}"
    rows = [row | {"context": f"a\u2028b\u2029c\x85d {row['id']}"} for row in GOOD]
    file.write_bytes(body(kind, rows).replace("\n", "\r\n").encode())
    assert texts(read(file)) == ["a b c d r1", "a b c d r2"]


def test_texts_of_other_scripts_are_different_texts(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    some = [f"\u65b0\u3057\u3044{c}\u306f 3" for c in "\u5927\u5c0f\u5c71\u5ddd"]
    file.write_text(body("jsonl", [{"text": text, "label": 0} for text in some]))
    cfg = classification.Config(train="n.jsonl", eval=str(file), labels=("a", "b"))
    assert len(cfg.rows("eval")) == 4
    assert len(set(map(overlap.normalised, some))) == 4
    assert overlap.normalised("Caf\u00e9 \u2018N\u00b0 3\u2019") == "caf n 3"  # as it always was


@pytest.mark.parametrize("level", [True, "1", 2.5, None, 10**10, [1]])
def test_levels_that_are_no_whole_numbers_are_named(level: Any, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(body("jsonl", [GOOD[0] | {"level": 1}, GOOD[1] | {"level": level}]))
    rows = read(file, level_field="level")
    assert [e.level for e in every(rows)] == [1]
    assert rows.malformed[0].startswith(f"{file}:2: level: expected a whole number, got ")


def test_rows_of_small_files_are_read_once_and_anew_when_they_change(tmp_path, monkeypatch):
    path, read = tmp_path / "rows.jsonl", []
    whole = records._file
    monkeypatch.setattr(records, "_file", lambda name: read.append(name) or whole(name))

    def write(text: str, age: float) -> None:
        path.write_text(json.dumps({"context": text, "question": "?", "answer": "x"}))
        os.utime(path, (time.time() - age,) * 2)

    def loaded(level: int | None = None) -> str:
        own = jsonl.Config(train=str(path), eval=None, eval_share=0.0, validation_share=0.0)
        return load.load_rows(DataConfig(jsonl=own), "train", 1, level)[0][0].context

    write("first", 60)
    assert [loaded(), loaded(), loaded(0)] == ["first"] * 3
    assert len(read) == 1  # a level is of the same rows
    write("other", 30)
    assert loaded() == "other" and len(read) == 2
    write("third", 0)  # changed a moment ago: it may change again unseen
    assert [loaded(), loaded()] == ["third"] * 2
    assert len(read) == 4
    monkeypatch.setattr(files, "SMALL", 3)
    write("large", 10)
    assert [loaded(), loaded()] == ["large"] * 2
    assert len(read) == 6
