"""Questions that a receiver writes: which stay, what is held apart, and that it goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from rich.console import Console

from lw_jax.commands.base import call
from lw_jax.config.parse import from_dict
from lw_jax.data import squad
from lw_jax.errors import UserError
from lw_jax.models.generate import DecodeOptions
from lw_jax.runs import questions
from lw_jax.runs.questions import Config, Said, Text, split_pair, verdict
from lw_jax.runs.session import open_pipeline
from lw_jax.text.layout_config import LayoutConfig
from tests.tiny.evaluation import RECEIVER
from tests.tiny.run import make_models, make_run, raw_config

SPLIT = Path(__file__).parents[2] / "benchmarks" / "real" / "split.py"
TEXT = "Melbourne has a dozen tram lines, and the first of them was opened in 1885 by the council."


@dataclass(frozen=True)
class Scripted:
    """Says what it was told to, text by text and question by question."""

    says: Callable[[str, str], Said]
    layout: LayoutConfig = LayoutConfig()

    def fits(self, texts: Sequence[str]) -> list[bool]:
        return [len(text) < 400 for text in texts]

    def write(
        self,
        texts: Sequence[str],
        questions: Sequence[str],
        options: DecodeOptions,
        batch_size: int,
        rng: jax.Array,
    ) -> list[Said]:
        return [self.says(*pair) for pair in zip(texts, questions, strict=True)]


def writer(*pairs: str) -> Scripted:
    """Writes these in turn."""
    left = list(pairs)
    return Scripted(lambda text, question: Said(left.pop(0), -1.0, True))


SURE = Scripted(
    lambda text, question: Said("1885" if "When" in question else "the council", -0.1, True)
)


def rows(one: Scripted, two: Scripted = SURE, **changed: Any) -> tuple[list[Any], dict[str, int]]:
    found, account = questions.rows_of(
        replace(Config(each=1), **changed),
        one,  # type: ignore[arg-type]
        two,  # type: ignore[arg-type]
        [Text("Trams", TEXT)] * changed.get("each", 1),
        jax.random.key(0),
        frozenset({"who paid for it"}),
    )
    return found, dict(account)


def test_a_question_stays_where_both_agree_in_squads_form() -> None:
    found, account = rows(writer("When was the first line opened?\nAnswer: in 1885"))
    assert account == {"texts": 1, "drawn": 1, "kept": 1}
    (row,) = found
    assert row["question"] == "When was the first line opened?" and row["title"] == "Trams"
    (start,) = row["answers"]["answer_start"]
    assert TEXT[start:].startswith("1885") and row["answers"]["text"] == ["1885"]


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ("When was the first line opened?\nAnswer: by the council", "another answer"),
        ("When was the first line opened", "no question"),
        ("When?\nAnswer: 1885", "no question"),
        ("Who paid for it?\nAnswer: the council", "an evaluation's question"),
    ],
)
def test_others_are_left_out_and_counted(written: str, why: str) -> None:
    found, account = rows(writer(written))
    assert not found and account[why] == 1


def test_a_reader_must_be_sure_and_answer_from_the_text() -> None:
    config, said = Config(), "1885"
    assert verdict(config, TEXT, said, Said("1885", -0.1, True)) == ""
    assert verdict(config, TEXT, said, Said("1885", -0.9, True)) == "unsure"
    assert verdict(config, TEXT, "1886", Said("1886", -0.1, True)) == "not in the text"
    assert verdict(config, TEXT, said, Said("1885", -0.1, False)) == "unfinished"
    assert split_pair("What is\n it called?\nAnswer: a tram", "\nAnswer:") == (
        "What is it called?",
        "a tram",
    )


def test_it_goes_on_where_it_was_stopped_and_holds_an_evaluation_apart(tmp_path: Path) -> None:
    texts, out = tmp_path / "texts.jsonl", tmp_path / "out" / "written.jsonl"
    held = (
        "The council of the city of Denver has counted its homeless people every winter since 2003."
    )
    lines = [{"context": f"{TEXT} It has number {n}."} for n in range(5)]
    lines += [
        {"context": f"So: {held}"},
        {"context": "Short."},
        {"context": "word " * 100},
        {"no": 1},
    ]
    texts.write_text("\n".join(map(json.dumps, lines)))
    apart = tmp_path / "eval.json"
    apart.write_text(
        json.dumps({"data": [{"title": "D", "paragraphs": [{"context": held, "qas": []}]}]})
    )
    opened: list[int] = []

    def tuned() -> Any:
        opened.append(1)
        said = "When was the first line opened?\nAnswer: 1885"
        return Scripted(lambda text, question: Said(said, -1.0, True)), SURE

    def write(**changed: Any) -> Any:
        config = replace(Config(each=2, chunk=2, least_words=10), **changed)
        return questions.write(config, tuned, [str(texts)], out, [str(apart)], lambda line: None)

    write(minutes=0.0)
    assert not opened and not out.read_text()
    rest = texts.read_text()
    texts.write_text("\n".join(rest.split("\n")[:2]))
    assert write()["kept"] == 2 == len(out.read_text().splitlines())
    texts.write_text(rest)
    with out.open("a") as file:
        file.write('{"half a li')  # what a killed process leaves
    account = write()
    assert account == {
        "texts": 5, "drawn": 10, "written twice": 5, "kept": 5,
        "texts of an evaluation": 1, "short texts": 1, "long texts": 1, "malformed rows": 1,
    }  # fmt: skip
    train = squad.Config(train=str(out), eval=None, eval_share=0.0, validation_share=0.0)
    assert len(train.rows("train")) == 5
    with pytest.raises(UserError, match="other settings"):
        write(each=3)
    (tmp_path / "empty.jsonl").write_text('{"text": "no context"}')
    with pytest.raises(UserError, match="no context there"):
        questions.write(Config(), tuned, [str(texts)], out, [str(tmp_path / "empty.jsonl")])


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (["a", "b"], "give the run of a writer, the run of a reader, and files"),
        (["a", "b", "c", "--each"], "--each: expected --KEY=VALUE"),
        (["a", "b", "c", "--every=2"], "--every: unknown; there are each, temperature"),
        (["a", "b", "c", "--each=0"], "each: expected"),
        (["a", "b", "no.jsonl", "--out=OUT"], "no.jsonl"),
        (["a", "b", "no.jsonl", "--out="], "--out: the name of the file to write is empty"),
    ],
)
def test_a_wrong_command_is_one_line(tmp_path: Path, words: list[str], wrong: str) -> None:
    given = [word.replace("OUT", str(tmp_path / "out.jsonl")) for word in words]
    with pytest.raises(UserError, match=wrong) as said:
        call("questions", given)
    assert "\n" not in str(said.value)
    assert not list(tmp_path.iterdir())


def test_a_start_that_failed_does_not_stand_in_the_way(tmp_path: Path) -> None:
    texts, out = tmp_path / "texts.jsonl", tmp_path / "out" / "written.jsonl"
    texts.write_text(json.dumps({"context": f"{TEXT} And so it is."}))

    def broken() -> Any:
        raise UserError("no such run")

    def write(tuned: Callable[[], Any], source: Path) -> Any:
        config = Config(each=1, chunk=2, least_words=10)
        return questions.write(config, tuned, [str(source)], out, (), lambda line: None)

    for tuned, source in ((broken, texts), (broken, tmp_path / "none.jsonl")):
        with pytest.raises(UserError):
            write(tuned, source)
        assert not out.parent.exists()
    said = "When was the first line opened?\nAnswer: 1885"
    made = Scripted(lambda text, question: Said(said, -1.0, True)), SURE
    assert write(lambda: made, texts)["kept"] == 1


def test_held_out_articles_and_texts_to_ask_about(tmp_path: Path) -> None:
    """What `benchmarks/real/split.py` writes."""

    def article(name: str, answer: str) -> dict[str, Any]:
        question = {"id": name, "question": "What?", "answers": [{"text": answer}]}
        context = " ".join(f"{name}{i}" for i in range(20))
        return {"title": f"wiki:{name}", "paragraphs": [{"context": context, "qas": [question]}]}

    articles = [article(name, "a" * size) for name, size in zip("abcd", (3, 3, 3, 50), strict=True)]
    (tmp_path / "qa.json").write_text(json.dumps({"data": articles}))
    prose = [{"context": f"Sentence {n}.", "level": n} for n in (1, 3, 2)]
    (tmp_path / "prose.jsonl").write_text("\n".join(map(json.dumps, prose)))
    words = ["--prefix=wiki:", "--articles=1", "--questions=1", "--others=0", "--longest-answer=9"]
    words += [f"--prose={tmp_path / 'prose.jsonl'}", "--texts=2"]
    command = [sys.executable, SPLIT, tmp_path / "qa.json", tmp_path / "out", *words]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    train = json.loads((tmp_path / "out" / "train.json").read_text())["data"]
    held = json.loads((tmp_path / "out" / "articles.json").read_text())["data"]
    assert not {one["title"] for one in train} & {one["title"] for one in held}
    assert "wiki:d" not in {one["title"] for one in train}
    texts = [json.loads(x) for x in (tmp_path / "out" / "texts.jsonl").read_text().splitlines()]
    assert [one["context"] for one in texts[:2]] == ["Sentence 3.", "Sentence 2."]
    assert [one["title"] for one in texts[2:]] == [one["title"] for one in train]


@pytest.mark.slow
def test_tuned_receivers_write_as_they_are_asked_alone(tmp_path: Path) -> None:
    models = make_models(tmp_path / "models")
    raw = raw_config(models, tmp_path / "reader")
    raw["bridge"] |= {"compressor": {"constant": {"slots": 3}}}
    raw["layout"] = {"with_text": True}
    reader = make_run(from_dict(raw), Console(quiet=True))
    with pytest.raises(UserError, match="writes no questions"):
        questions.opened(str(reader.run_dir), str(reader.run_dir))
    open_pipeline(reader.config, reader.mesh, reader.run_dir)  # measures its receivers
    raw["layout"] |= {"question": "", "question_in": "latent", "target": "question_answer"}
    raw["run_dir"] = str(tmp_path / "writer")
    both = make_run(from_dict(raw), Console(quiet=True))
    open_pipeline(both.config, both.mesh, both.run_dir)
    one, two = questions.opened(str(both.run_dir), str(reader.run_dir), RECEIVER)
    options = DecodeOptions(max_new=4)
    asked = ["Who lives there?", "What is it?", "Where?"]
    texts = ["Ann lives in Rome.", "The box is red. It is big, and it is here.", "Bob is here."]
    many = two.write(texts, asked, options, 2, jax.random.key(0))
    key = jax.random.key(0)
    pairs = zip(texts, asked, strict=True)
    alone = [two.write([t], [q], options, 1, key)[0] for t, q in pairs]
    assert [m.text for m in many] == [a.text for a in alone]
    np.testing.assert_allclose([m.sure for m in many], [a.sure for a in alone], atol=1e-4)
    assert one.write(texts, [""] * 3, options, 3, jax.random.key(1)) != many
