"""Runs side by side: paired intervals on the rows that all have, and what cannot be compared."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lw_jax.__main__ import main
from lw_jax.errors import UserError
from lw_jax.report.compare import compare
from tests.tiny.reported import answers, make, rows


@pytest.fixture
def homes(tmp_path: Path) -> list[Path]:
    """60 rows with 45 right, and the last 50 of them with all but 5 right, under another name."""
    examples = rows(60)
    first = make(tmp_path / "a", examples, answers(examples, 45))
    fewer = examples[10:]
    other = {m: found for m, found in answers(fewer, 45).items() if m != "token_budget_first"}
    return [first, make(tmp_path / "b", fewer, other, receiver="other", name="second")]


def test_differences_are_of_the_same_rows(homes: list[Path]) -> None:
    found = compare(homes)
    assert (found.rows, found.left_out) == (50, [10, 0])
    part = next(p for p in found.parts if p.metric == "em")
    assert part.receiver == "reader / other"
    first, second = part.lines["latent"]
    assert first is not None and second is not None
    # of the shared rows 35 are right in the first and 45 in the second
    assert (first.value, second.value) == (0.7, 0.9)
    assert second.difference == pytest.approx(0.2)
    assert second.apart is not None and 0 < second.apart[0] < 0.2 < second.apart[1] < 0.4
    assert second.clear and first.difference is None
    same = part.lines["text"][1]
    assert same is not None and same.difference == 0 and not same.clear
    assert part.lines["token_budget_first"][1] is None
    assert found.keys["name"] == ["tiny", "second"]


def test_command(homes: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "side.html"
    assert main(["compare", *map(str, homes), f"--out={out}"]) == 0
    said = capsys.readouterr().out
    assert "50 rows of 50 texts" in said and "+0.200 [" in said
    html = out.read_text()
    stars = re.findall(r"([+-]\d\.\d{3}) \[([+-][\d.]+), ([+-][\d.]+)\]( \*)?</td>", html)
    assert any(star for *_, star in stars) and not all(star for *_, star in stars)
    for _, low, high, star in stars:
        assert bool(star) == (float(low) > 0 or float(high) < 0)
    assert "+0.200 [" in html and "stages.test.evaluate.rows" in html and "Loss, stage fit" in html


def test_an_evaluation_before_the_last_stands_beside_it(
    homes: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two stages of one run on the same rows: an interlingua's latents of either view, say."""
    home, examples = homes[0], rows(60)
    config = home / "config.yaml"
    config.write_text(config.read_text().replace("test: {", "before: {evaluate: {}}, test: {"))
    earlier = make(tmp_path / "other", examples, answers(examples, 30))
    (earlier / "config.yaml").unlink()
    earlier.rename(home / "before")
    found = compare([home / "before", home])
    part = next(p for p in found.parts if p.metric == "em")
    first, second = part.lines["latent"]
    assert first is not None and second is not None
    assert (first.value, second.value) == (0.5, 0.75)
    assert second.difference == pytest.approx(0.25) and second.clear
    (home / "before").rename(home / "after")  # of no stage of this run
    out = tmp_path / "side.html"
    assert main(["compare", str(home / "after"), str(home), f"--out={out}"]) == 2
    assert "after: no config.yaml there, so it is no run directory" in capsys.readouterr().err


def test_templates_name_no_key_that_a_dict_has_a_method_for() -> None:
    """Jinja takes the method: `cell.clear` is true whatever the cell says."""
    for path in (Path(__file__).parents[2] / "lw_jax").rglob("*.html"):
        inside = " ".join(re.findall(r"{[{%].*?[%}]}", path.read_text(), re.DOTALL))
        names = set(re.findall(r"\.(\w+)\b(?!\()", inside))
        assert not names & set(dir(dict)), path


def test_what_cannot_be_compared(
    homes: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = rows(120)[100:]
    apart = make(tmp_path / "c", other, answers(other, 3))
    out = tmp_path / "side.html"
    for runs, why in (
        ([homes[0]], "two run directories"),
        ([homes[0], apart], "share rows of 0 texts"),
        ([homes[0], tmp_path], "no config.yaml"),
        ([homes[0], homes[0] / "." / ".." / "a"], "a is given twice; give different runs"),
    ):
        assert main(["compare", *map(str, runs), f"--out={out}"]) == 2
        said = capsys.readouterr().err
        assert why in said and said.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize("end", ["\n", '{"id": "'])
def test_rows_that_were_lost_are_not_left_out_unsaid(end: str, homes: list[Path]) -> None:
    file = homes[1] / "predictions.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join(lines[:30]) + "\n" + end)
    with pytest.raises(UserError, match=r"damaged \(30 whole lines, and metrics.json is of 50"):
        compare(homes)
