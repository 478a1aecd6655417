"""Files of a finished run that hold something else: one line, and never a traceback."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lw_jax.__main__ import main
from lw_jax.results.__main__ import main as results_main
from tests.tiny.reported import answers, make, rows

MAP = {"row": "x", "tokens": ["a"], "cosine": [[1.0]]}
COMMANDS: dict[str, Callable[[str, str], int]] = {
    "report": lambda run, other: main(["report", run]),
    "compare": lambda run, other: main(["compare", run, other, f"--out={run}/side.html"]),
    "tensorboard": lambda run, other: main(["tensorboard", run]),
    "normalised": lambda run, other: results_main(["normalised", run]),
}
ODD = (None, True, -1, "x", [], [None], {"a": 1}, float("inf"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    home, examples = tmp_path_factory.mktemp("odd"), rows(3)
    found = [make(home / n, examples, answers(examples, 2), [MAP | {"reads": None}]) for n in "ab"]
    (home / "a" / "config.yaml").write_text("name: a\nstages: {test: {evaluate: {rows: 3}}}\n")
    path = found[0] / "metrics.json"
    held = json.loads(path.read_text())
    ends = {"reader": {"of": ["text"], "nothing": "no_message"}}
    path.write_text(json.dumps(held | {"normalised": ends}))
    return found[0], found[1]


def places(value: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something stands in a value, two of a list."""
    inside = value.items() if isinstance(value, dict) else enumerate(value[:2])
    found = []
    for key, inner in inside:
        found.append((*above, key))
        if isinstance(inner, dict | list):
            found += places(inner, (*above, key))
    return found


def with_odd(value: Any, place: tuple[Any, ...], odd: Any) -> Any:
    """A value with something else at a place; ...: nothing is there any more."""
    made = inner = copy.deepcopy(value)
    for key in place[:-1]:
        inner = inner[key]
    if odd is ...:
        del inner[place[-1]]
    else:
        inner[place[-1]] = odd
    return made


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", ["metrics.json", "predictions.jsonl", "slot_maps.json"])
def test_what_else_stands_there_is_one_line(
    name: str, command: str, runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """At some of their many places (all were tried once)."""
    run, other = runs
    path = run / name
    content = path.read_text()
    first, *rest = content.splitlines() if name.endswith("l") else [content]
    value = json.loads(first)
    try:
        for i, place in enumerate(places(value)[:: 97 if name == "metrics.json" else 8]):
            for odd in (ODD[i % len(ODD)], ODD[(i + 3) % len(ODD)], ...):
                path.write_text("\n".join([json.dumps(with_odd(value, place, odd)), *rest]))
                code = COMMANDS[command](str(run), str(other))
                err = capsys.readouterr().err
                assert code in (0, 2), (place, odd)
                if code:
                    assert err.startswith("error: ") and err.count("\n") == 1, (place, odd, err)
    finally:
        path.write_text(content)
    assert COMMANDS[command](str(run), str(other)) == 0


def test_stages_of_another_form(
    runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = runs[0] / "config.yaml"
    content = path.read_text()
    for stages in ("3", "[1]", "{test: 3}", "{test: [evaluate]}"):
        path.write_text(f"name: a\nstages: {stages}\n")
        assert main(["report", str(runs[0])]) == 2
        assert "stages: expected names" in capsys.readouterr().err
    path.write_text(content)
