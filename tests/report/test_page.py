"""The page of a run: everything is there, everything is text, nothing comes from elsewhere."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lw_jax.__main__ import main
from lw_jax.data.example import Example
from lw_jax.report import page, svg
from lw_jax.report.words import marked
from tests.tiny.reported import answers, make, rows

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"' {{ 7 * 7 }} &lt; \x00"
VOID = {"meta", "input"}


class Seen(HTMLParser):
    """The elements of a page, its texts, and whether tags close in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        (self.scripts if self.open[-1:] == ["script"] else self.texts).append(data)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    examples = rows(60)
    reads = [[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]]
    one = {
        "row": examples[0].id,
        "slots": 2,
        "source_tokens": 3,
        "tokens": ["a", "b", "</script>"],
        "cosine": [[1.0, 0.2], [0.2, 1.0]],
        "reads": reads,
    }
    return make(tmp_path / "run", examples, answers(examples, 45), [one])


def test_it_has_figures_curves_slots_and_rows(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(home)]) == 0
    path = home / "report.html"
    assert capsys.readouterr().out == f"{path}\n"
    seen = Seen(path.read_text())
    text = " ".join(" ".join(seen.texts).split())
    assert "The wire carries content" in text
    assert "0.750" in text and "0.000" in text
    assert "answers that equal a gold one" in text
    assert "The latent of another" in text  # what a method is, in its file's words
    assert "ALARM loudness (fault 7) once, after step 20: too loud" in text
    assert "The first 50 of 60 rows" in text
    assert "Sentences of a test." in text
    assert sum(tag == "article" for tag, _ in seen.tags) == page.ROWS
    charts = [attrs for tag, attrs in seen.tags if tag == "svg" and attrs["class"] == "chart"]
    assert {"Loss. loss: 0.400 to 0.100"} <= {str(one["aria-label"]) for one in charts}
    assert json.loads(seen.scripts[0])[0]["reads"][0] == [0.7, 0.2, 0.1]
    marks = [json.loads(str(a["data-right"])) for tag, a in seen.tags if tag == "article"]
    assert [one["latent"] for one in marks] == [True] * 45 + [False] * 5


def test_nothing_comes_from_elsewhere(home: Path) -> None:
    html = page.write(home).read_text()
    seen = Seen(html)
    assert not any({"src", "href"} & attrs.keys() for tag, attrs in seen.tags if tag != "a")
    assert all(str(attrs["href"]).startswith("#") for tag, attrs in seen.tags if tag == "a")
    assert not re.search(r"url\(|@import|https?://", html)
    ids = [attrs["id"] for _, attrs in seen.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {str(a["href"])[1:] for tag, a in seen.tags if tag == "a"} <= set(ids)


def test_every_text_is_text(tmp_path: Path) -> None:
    def hostile(one: Example) -> Example:
        return replace(one, context=HOSTILE, question=HOSTILE, answers=(HOSTILE,), row_id=HOSTILE)

    examples = [hostile(one) for one in rows(4)]
    said = {
        m: [replace(p, text=HOSTILE) for p in found] for m, found in answers(examples, 2).items()
    }
    mapped = {"row": examples[0].id, "tokens": [HOSTILE], "cosine": [[1.0]], "reads": [[1.0]]}
    plain = Seen(
        page.write(
            make(tmp_path / "plain", rows(4), answers(rows(4), 4), [mapped | {"tokens": ["a"]}])
        ).read_text()
    )
    seen = Seen(page.write(make(tmp_path / "run", examples, said, [mapped])).read_text())
    assert {tag for tag, _ in seen.tags} == {tag for tag, _ in plain.tags}
    assert sum(tag == "script" for tag, _ in seen.tags) == 2
    assert not any(key.startswith("on") for _, attrs in seen.tags for key in attrs)
    assert json.loads(seen.scripts[0])[0]["tokens"] == [HOSTILE]
    assert any("alert(1)" in text and "{{ 7 * 7 }}" in text for text in seen.texts)


def test_a_run_without_an_evaluation_has_a_page_too(home: Path) -> None:
    for name in ("metrics.json", "predictions.jsonl", "slot_maps.json"):
        (home / name).unlink()
    text = " ".join(Seen(page.write(home).read_text()).texts)
    assert "no evaluation yet" in text and "Loss" in text


@pytest.mark.parametrize("name", ["metrics.json", "slot_maps.json", "config.yaml"])
def test_a_damaged_file_is_one_line(
    home: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / name).write_text("{broken")
    assert main(["report", str(home)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and name in said
    assert not (home / "report.html").exists()


def test_damaged_lines_are_counted(home: Path) -> None:
    with (home / "predictions.jsonl").open("a") as file:
        file.write('{"id": "cut')
    assert "1 damaged lines of predictions.jsonl" in page.write(home).read_text()


def test_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "no config.yaml there" in capsys.readouterr().err


def test_words_are_marked_against_the_nearest_gold() -> None:
    assert marked("The red vase", ["a blue cup", "red vase."]) == [
        ("The", "extra"),
        ("red vase", "same"),
    ]
    assert marked("", ["cup"]) == [("cup", "missing")]
    assert marked("12", ["21"]) == [("12", "extra"), ("21", "missing")]


def test_a_long_series_keeps_its_ends() -> None:
    points = [(float(i), float(i)) for i in range(10_000)]
    kept = svg.thinned(svg.Series("x", points)).points
    assert len(kept) <= svg.MOST_POINTS
    assert (kept[0], kept[-1]) == (points[0], points[-1])


def test_a_line_may_lack_a_point_that_another_has() -> None:
    """A loss of text batches alone is in some intervals only."""
    lines = [svg.Series("kd", [(1.0, 0.5), (2.0, 0.25)]), svg.Series("text_ce", [(2.0, 0.125)])]
    parts = page._environment().get_template("parts.html").module
    texts = [t.strip() for t in Seen(str(parts.chart(svg.Chart("shares", lines)))).texts]  # type: ignore[attr-defined]
    assert {"0.500", "0.250", "0.125"} <= set(texts)


@pytest.mark.parametrize(
    ("low", "high", "found"),
    [(0.0, 1.0, [0, 0.25, 0.5, 0.75, 1]), (3.0, 3.0, [3.0]), (0.0, 60.0, [0, 20, 40, 60])],
)
def test_ticks_are_round(low: float, high: float, found: list[float]) -> None:
    assert svg.ticks(low, high) == pytest.approx(found)
