"""Rows of data sets that are read: formats, splits, malformed rows by name, errors in one line."""

import json
from dataclasses import replace

import pyarrow.parquet
import pytest

from lw_jax.data import gsm8k, hotpotqa, jsonl, squad
from lw_jax.errors import UserError
from tests.real_data import real_file

PROBLEM = {
    "question": "Weng earns $12 an hour.  Yesterday, she did 50 minutes.\nHow much did she earn?",
    "answer": "She earns 12/60 = $<<12/60=0.2>>0.2.\nIn 50 minutes 0.2 x 50 = $<<0.2*50=10>>10.\n"
    "#### 1,000",
}
QUESTION = "Weng earns $12 an hour. Yesterday, she did 50 minutes. How much did she earn?"


def problem(number):
    text = (
        f"Number {number} has {number * 7} hens, sells {number} and buys {number * 3} more. Left?"
    )
    return {"question": text, "answer": f"It is <<1+1=2>>2.\n#### {number}"}


def article(number, paragraphs=2):
    return {
        "title": f"Article {number}",
        "paragraphs": [
            {
                "context": f"Passage {number}-{p} says that the sky is blue.",
                "qas": [
                    {
                        "id": f"{number}-{p}-{q}",
                        "question": f"Question {q} on the sky?",
                        "answers": [
                            {"text": "blue", "answer_start": 30},
                            {"text": "the sky", "answer_start": 20},
                            {"text": "blue", "answer_start": 30},
                        ],
                    }
                    for q in range(3)
                ],
            }
            for p in range(paragraphs)
        ],
    }


def write(path, records):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
    else:
        path.write_text(json.dumps(records))
    return str(path)


def every(rows):
    return [example for i in range(len(rows)) for example in rows[i]]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_gsm8k_tasks(tmp_path, suffix):
    file = write(tmp_path / f"eval{suffix}", [PROBLEM, problem(2)])
    cfg = gsm8k.Config(train=file, eval=str(tmp_path / f"./eval{suffix}"))
    expected = {
        "readback": QUESTION,
        "solve": "She earns 12/60 = $0.2.\nIn 50 minutes 0.2 x 50 = $10.\n#### 1,000",
        "final": "1000",
    }
    for task, answer in expected.items():
        rows = replace(cfg, train="other.jsonl", task=task).rows("eval")
        (example,) = rows[0]
        assert (len(rows), example.context, example.question) == (2, QUESTION, "")
        assert example.answers == (answer,)
        assert not rows.malformed


def test_gsm8k_is_continued_from_its_first_half(tmp_path):
    copied = {**problem(2), "question": f"{QUESTION[:40]} {problem(2)['question']}"}
    near = {
        **PROBLEM,
        "question": "Yes: 50 minutes. How much did she earn in the whole time, then?",
    }
    train = write(tmp_path / "train.jsonl", [copied, near, problem(3)])
    cfg = gsm8k.Config(
        train=train,
        eval=write(tmp_path / "eval.jsonl", [PROBLEM]),
        task="continue",
        decontaminate=7,  # "50 minutes. How much did she earn" lies across the middle
        validation_share=0.0,
    )
    (example,) = cfg.rows("eval")[0]
    assert example.context == "Weng earns $12 an hour. Yesterday, she"
    assert example.answers == ("did 50 minutes. How much did she earn?",)
    assert [" ".join((e.context, *e.answers)) for e in every(cfg.rows("train"))] == [
        problem(3)["question"]
    ]
    write(tmp_path / "eval.jsonl", [PROBLEM | {"question": "Why?"}, PROBLEM])
    assert "expected two words or more" in cfg.rows("eval").malformed[0]


def test_malformed_rows_are_named_by_file_and_line(tmp_path):
    file = tmp_path / "train.jsonl"
    lines = [
        json.dumps(PROBLEM),
        "{broken",
        json.dumps({"question": "No answer?"}),
        "",
        json.dumps({"question": "  ", "answer": "x #### 1"}),
        json.dumps(["a", "list"]),
        json.dumps({"question": "No number?", "answer": "It is two."}),
        json.dumps(problem(3)),
    ]
    file.write_bytes("\n".join(lines).encode() + b"\n\xff\xfe\n")
    cfg = gsm8k.Config(train="none.jsonl", eval=str(file), task="final")
    rows = cfg.rows("eval")
    assert len(rows) == 2
    assert rows.malformed == [
        f"{file}:2: not JSON (Expecting property name enclosed in double quotes at column 2)",
        f"{file}:3: answer: expected text, got nothing",
        f"{file}:5: question: expected text, got '  '",
        f"{file}:6: expected an object, got ['a', 'list']",
        f'{file}:7: answer: expected a solution that ends in "#### number"',
        f"{file}:9: not UTF-8 (invalid start byte at byte 0)",
    ]


def test_training_rows_near_evaluation_rows_are_left_out(tmp_path):
    copied = {**PROBLEM, "question": PROBLEM["question"].replace("Weng", "Anna").upper()}
    train = write(tmp_path / "train.jsonl", [copied, *map(problem, range(20))])
    held_out = write(tmp_path / "eval.jsonl", [PROBLEM])
    cfg = gsm8k.Config(train=train, eval=held_out, validation_share=0)
    rows = cfg.rows("train")
    assert (len(rows), rows.skipped) == (20, 1)
    assert len(replace(cfg, decontaminate=0).rows("train")) == 21


def test_twice_the_same_problem_is_one_context(tmp_path):
    file = write(tmp_path / "eval.jsonl", [PROBLEM, problem(1), PROBLEM])
    rows = gsm8k.Config(train="none.jsonl", eval=file).rows("eval")
    assert [len(rows[i]) for i in range(len(rows))] == [2, 1]
    assert len({example.id for example in every(rows)}) == 3


@pytest.mark.parametrize("own_eval", [False, True])
def test_splits_are_disjoint_and_complete(tmp_path, own_eval):
    train = write(tmp_path / "train.jsonl", list(map(problem, range(300))))
    held_out = write(tmp_path / "eval.jsonl", [problem(n) for n in range(1000, 1030)])
    cfg = gsm8k.Config(train=train, eval=held_out if own_eval else None, validation_share=0.1)
    found = {
        split: {example.context for example in every(cfg.rows(split))}
        for split in ("train", "validation", "eval")
    }
    assert sum(map(len, found.values())) == len(set.union(*found.values()))
    assert len(found["train"] | found["validation"]) == (
        300 if own_eval else 300 - len(found["eval"])
    )
    assert 10 < len(found["validation"]) < 60
    assert 10 < len(found["eval"]) < 60
    same = replace(cfg, eval=train)
    if not own_eval:  # the same file twice is held out from, not trained on
        assert {example.context for example in every(same.rows("eval"))} == found["eval"]


def test_limits_sample_by_seed(tmp_path):
    train = write(tmp_path / "train.jsonl", list(map(problem, range(100))))
    cfg = gsm8k.Config(train=train, eval=None, train_rows=10, eval_rows=4)
    first = [example.context for example in every(cfg.rows("train", seed=1))]
    assert len(first) == 10
    assert first == [example.context for example in every(cfg.rows("train", seed=1))]
    assert first != [example.context for example in every(cfg.rows("train", seed=2))]
    assert len(cfg.rows("eval")) == 4


def test_squad_nested_and_flat_rows_are_the_same(tmp_path):
    articles = [article(n) for n in range(3)]
    flat = [
        {
            "id": qa["id"],
            "title": a["title"],
            "context": paragraph["context"],
            "question": qa["question"],
            "answers": {
                "text": [answer["text"] for answer in qa["answers"]],
                "answer_start": [answer["answer_start"] for answer in qa["answers"]],
            },
        }
        for a in articles
        for paragraph in a["paragraphs"]
        for qa in paragraph["qas"]
    ]
    nested = tmp_path / "nested.json"
    nested.write_text(json.dumps({"version": "1.1", "data": articles}))
    files = [
        str(nested),
        write(tmp_path / "flat.parquet", flat),
        write(tmp_path / "flat.jsonl", flat),
    ]
    read = [every(squad.Config(train="none.json", eval=f).rows("eval")) for f in files]
    assert read[0] == read[1] == read[2]
    assert len(read[0]) == 18
    assert read[0][0].answers == ("blue", "the sky")
    assert len({example.context_id for example in read[0]}) == 6


def test_squad_v2_questions_without_an_answer(tmp_path):
    nested = article(0)
    nested["paragraphs"][0]["qas"][1] |= {"answers": [], "is_impossible": True}
    file = write(tmp_path / "v2.json", [nested])
    cfg = squad.Config(train="none.json", eval=file)
    rows = cfg.rows("eval")
    assert (len(every(rows)), rows.skipped, rows.malformed) == (5, 1, [])
    said = every(replace(cfg, unanswerable="unanswerable").rows("eval"))
    assert [example.answers for example in said].count(("unanswerable",)) == 1


def test_squad_malformed_rows_are_named_by_place(tmp_path):
    broken = article(0)
    broken["paragraphs"][0]["qas"][0]["question"] = None
    broken["paragraphs"][0]["qas"][1]["answers"] = []
    broken["paragraphs"][0]["qas"][2]["is_impossible"] = True
    broken["paragraphs"][1] = {"context": "No questions."}
    file = write(tmp_path / "squad.json", [broken, article(1), "text", {"title": "x"}])
    rows = squad.Config(train="none.json", eval=file).rows("eval")
    assert len(every(rows)) == 6
    assert rows.malformed == [
        f"{file}: [0].paragraphs[0].qas[0]: question: expected text, got nothing",
        f"{file}: [0].paragraphs[0].qas[1]: answers: empty, and is_impossible is not true",
        f"{file}: [0].paragraphs[0].qas[2]: answers: there are some, and is_impossible is true",
        f"{file}: [0].paragraphs[1]: qas: expected a list, got None",
        f"{file}: [2]: expected an object, got 'text'",
        f"{file}: [3]: context: expected text, got nothing",
    ]


def test_squad_articles_are_not_torn_apart(tmp_path):
    file = write(tmp_path / "squad.json", [article(n, paragraphs=4) for n in range(40)])
    cfg = squad.Config(train=file, eval=None, eval_share=0.3, validation_share=0.1)
    titles = [
        {example.context.split("-")[0] for example in every(cfg.rows(split))}
        for split in ("train", "validation", "eval")
    ]
    assert sum(map(len, titles)) == len(set.union(*titles)) == 40


HOTPOT = {
    "_id": "5a8b",
    "question": "Which river flows through the capital of Austria?",
    "answer": "Danube",
    "level": "medium",
    "supporting_facts": [["Vienna", 0], ["Danube", 1]],
    "context": [
        ["Danube", ["The Danube is a river. ", "It flows through Vienna."]],
        ["Rhine", ["The Rhine is another river."]],
        ["Vienna", ["Vienna is the capital of Austria."]],
    ],
}


def test_hotpotqa_json_and_hub_rows_are_the_same(tmp_path):
    hub = HOTPOT | {
        "supporting_facts": {"title": ["Vienna", "Danube"], "sent_id": [0, 1]},
        "context": {
            "title": [title for title, _ in HOTPOT["context"]],
            "sentences": [sentences for _, sentences in HOTPOT["context"]],
        },
    }
    files = [write(tmp_path / "a.json", [HOTPOT]), write(tmp_path / "b.parquet", [hub])]
    read = [every(hotpotqa.Config(train="n.json", eval=f).rows("eval")) for f in files]
    assert read[0] == read[1]
    (example,) = read[0]
    assert example.context == (
        "Danube: The Danube is a river. It flows through Vienna. "
        "Vienna: Vienna is the capital of Austria."
    )
    assert (example.answers, example.level) == (("Danube",), 2)
    cfg = hotpotqa.Config(train="n.json", eval=files[0], paragraphs="all")
    assert "Rhine" in every(cfg.rows("eval"))[0].context


def test_hotpotqa_malformed_rows(tmp_path):
    wrong = [
        HOTPOT | {"context": "text"},
        HOTPOT | {"context": [["Danube"]]},
        HOTPOT | {"supporting_facts": [["Nowhere", 0]]},
        HOTPOT | {"supporting_facts": None},
        HOTPOT | {"answer": ""},
        HOTPOT | {"supporting_facts": {"title": 5}},
        HOTPOT | {"supporting_facts": {"title": "Danube"}},
        HOTPOT | {"supporting_facts": {"sent_id": [0]}},
    ]
    file = write(tmp_path / "h.jsonl", [HOTPOT, *wrong])
    rows = hotpotqa.Config(train="n.json", eval=file).rows("eval")
    assert len(rows) == 1
    starts = [
        "context: expected paragraphs, got 'text'",
        "context: expected [title, [sentences]], got ['Danube']",
        "context: none of the supporting paragraphs is there",
        "supporting_facts: expected facts, got None",
        "answer: expected text, got ''",
        "supporting_facts: expected facts, got 5",
        "supporting_facts: expected facts, got 'Danube'",
        "supporting_facts: expected facts, got None",
    ]
    expected = [f"{file}:{line}: {start}" for line, start in enumerate(starts, 2)]
    assert rows.malformed == expected


def test_jsonl_under_field_names_of_ones_own(tmp_path):
    records = [
        {"text": "A b c.", "ask": "What?", "gold": ["b", "B"], "hard": 2},
        {"text": "A b c.", "ask": "Which?", "gold": "c", "hard": 1},
        {"text": "D e f.", "ask": "How many?", "gold": 7, "hard": 1},
        {"text": "D e f.", "ask": "How?", "gold": [], "hard": 1},
        {"text": "D e f.", "ask": "How?", "gold": "e", "hard": "1"},
    ]
    file = write(tmp_path / "rows.jsonl", records)
    cfg = jsonl.Config(
        train="none.jsonl",
        eval=file,
        context_field="text",
        question_field="ask",
        answer_field="gold",
        level_field="hard",
    )
    rows = cfg.rows("eval")
    assert [len(rows[i]) for i in range(len(rows))] == [2, 1]
    assert [example.answers for example in every(rows)] == [("b", "B"), ("c",), ("7",)]
    assert rows.malformed == [
        f"{file}:4: gold: expected text or a list of texts, got []",
        f"{file}:5: hard: expected a whole number, got '1'",
    ]
    assert {example.level for example in every(cfg.rows("eval", level=1))} == {1}
    back = replace(cfg, question_field=None, answer_field=None, level_field=None)
    assert every(back.rows("eval"))[0].answers == ("A b c.",)
    with pytest.raises(UserError, match="no row of level 9 in the split 'eval'"):
        cfg.rows("eval", level=9)


def test_articles_are_known_and_not_torn_apart(tmp_path):
    records = [
        {"context": f"Text {n} of {n // 4}.", "question": "Which?", "answer": "b", "page": n // 4}
        for n in range(80)
    ]
    file = write(tmp_path / "rows.jsonl", [*records, records[0] | {"page": None, "context": "x y"}])
    cfg = jsonl.Config(
        train=file, eval=None, eval_share=0.3, validation_share=0.1, article_field="page"
    )
    found = [{e.article for e in every(cfg.rows(split))} for split in ("train", "eval")]
    assert not (found[0] & found[1]) - {""}
    assert {"0", "19"} <= set.union(*found, {e.article for e in every(cfg.rows("validation"))})
    assert {e.article for e in every(replace(cfg, article_field=None).rows("train"))} == {""}
    rows = replace(cfg, article_field="pages", max_malformed=1.0)
    with pytest.raises(UserError, match="pages: expected text, got nothing"):
        rows.rows("train")
    nested = write(tmp_path / "squad.json", [article(n) for n in range(3)])
    asked = squad.Config(train="none.json", eval=nested).rows("eval")
    assert {e.article for e in every(asked)} == {"Article 0", "Article 1", "Article 2"}


def errors(tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    bad = tmp_path / "bad.json"
    bad.write_text('{"data": [\n1,]}')
    odd = tmp_path / "odd.json"
    odd.write_text('{"rows": []}')
    table = tmp_path / "bad.parquet"
    table.write_text("no parquet")
    folder = tmp_path / "folder"
    folder.mkdir()
    yield gsm8k.Config(train="x.jsonl", eval=None), "x.jsonl: no such file; give a .jsonl, "
    yield gsm8k.Config(train=str(empty), eval=None), "no row in the split 'train' (0 malformed)"
    yield gsm8k.Config(train=str(bad), eval=None), "bad.json:2: not JSON ("
    yield gsm8k.Config(train=str(odd), eval=None), "odd.json: expected a list of rows, or {"
    yield gsm8k.Config(train=str(table), eval=None), "bad.parquet: not a parquet file ("
    yield gsm8k.Config(train=str(folder), eval=None), "folder: no .jsonl, .ndjson, "
    yield (
        gsm8k.Config(train="nobody/nothing", eval=None),
        "data set 'nobody/nothing' (subset 'main', split 'train'): Couldn't reach "
        "'nobody/nothing' on the Hub (OfflineModeIsEnabled); give a local file",
    )


def test_what_cannot_be_read_is_one_line(tmp_path):
    for cfg, message in errors(tmp_path):
        with pytest.raises(UserError) as error:
            replace(cfg, decontaminate=0).rows("train")
        assert message in str(error.value)
        assert "\n" not in str(error.value)


def test_all_rows_malformed_names_the_first(tmp_path):
    file = write(tmp_path / "rows.jsonl", [{"text": "wrong format"}] * 3)
    with pytest.raises(UserError, match=r"3 malformed; the first: .*:1: question: expected text"):
        gsm8k.Config(train=file, eval=None, decontaminate=0).rows("train")


@pytest.mark.parametrize(
    "wrong",
    [{"train": ""}, {"eval_share": 0.9}, {"train_rows": 0}, {"decontaminate": -1}],
)
def test_a_wrong_config_is_one_line(wrong):
    with pytest.raises(UserError, match=rf"^{next(iter(wrong))}: [^\n]+$"):
        gsm8k.Config(**wrong)


def test_the_real_gsm8k():
    train, dev = real_file("gsm8k_train.jsonl"), real_file("gsm8k_dev.jsonl")
    cfg = gsm8k.Config(train=str(train), eval=str(dev))
    rows = {split: cfg.rows(split) for split in ("train", "validation", "eval")}
    assert len(rows["eval"]) == 659
    assert len(rows["train"]) + len(rows["validation"]) == 7473 - 2
    assert rows["train"].skipped == 2
    assert not any(r.malformed for r in rows.values())


def test_the_real_xquad():
    cfg = squad.Config(train=str(real_file("squad_xquad_en_dev.json")), eval=None)
    rows = {split: cfg.rows(split) for split in ("train", "validation", "eval")}
    assert sum(map(len, rows.values())) == 120
    assert not any(r.malformed for r in rows.values())
