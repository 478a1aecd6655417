"""docs/design.md stands alone, and has the sections that others cite."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DESIGN = (ROOT / "docs" / "design.md").read_text()
TEXTS = {".py", ".md", ".yaml", ".patch", ".sh", ".toml"}
ELSEWHERE = re.compile(r"\b(SPEC|PEERS|RECIPE|STYLE|DESIGN)\b")
"""Names of documents that are not in the repository."""


def texts(*places: str) -> dict[Path, str]:
    """The text files below some places of the repository, without this one."""
    paths = [
        path
        for place in places
        for path in (ROOT / place, *(ROOT / place).rglob("*"))
        if path.is_file() and path.suffix in TEXTS and path != Path(__file__)
    ]
    return {path.relative_to(ROOT): path.read_text() for path in paths}


def test_sections_are_numbered_and_listed() -> None:
    titles = re.findall(r"^## (\d+)\. (.+)$", DESIGN, re.MULTILINE)
    assert [int(number) for number, _ in titles] == list(range(1, 16))
    listed = re.findall(r"^\* \[(\d+)\. (.+)\]\(#", DESIGN, re.MULTILINE)
    assert listed == titles


def test_sections_that_are_cited_are_there() -> None:
    for path, text in texts(
        "lw_jax", "tests", "configs", "benchmarks", "docs", "README.md"
    ).items():
        for numbers in re.findall(r"design\.md\s+sections?\s+([\d, and]*\d)", text):
            for number in re.findall(r"\d+", numbers):
                assert f"\n## {number}. " in DESIGN, (path, numbers)


@pytest.mark.parametrize(
    "place", ["docs", "README.md", "benchmarks", "zoo", "lw_jax", "configs", "launch"]
)
def test_nothing_refers_to_documents_that_are_elsewhere(place: str) -> None:
    found = {str(p): m[0] for p, text in texts(place).items() if (m := ELSEWHERE.search(text))}
    assert not found


def test_the_floors_are_those_that_are_tested() -> None:
    floors = (ROOT / "tests" / "test_floors.py").read_text().split('"""')
    lowest_first = next(part for part in floors if part.strip().startswith("types"))
    tested = [set(line.split()) for line in lowest_first.split("\n") if line.strip()]
    rows = re.findall(r"^\| \d+ \| (.+?) \|", DESIGN, re.MULTILINE)
    assert [set(re.findall(r"`(\w+)`", row)) for row in rows] == tested
