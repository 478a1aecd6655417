"""Every field has bounds or choices, and each wrong value gets one line that names its key."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from lw_jax.config import parse
from lw_jax.config.schema import Config
from lw_jax.errors import UserError
from lw_jax.utils import kinds
from lw_jax.utils.bounds import Checked, check
from lw_jax.utils.registry import Choice
from tests.config.fields import BASE, Field, every_field, right, unbounded, wrong

FIELDS = list(every_field())


def refused(make: Callable[[], Any]) -> str | None:
    """The line that refuses something; None: it is taken. Any other error is raised."""
    try:
        make()
    except UserError as error:
        return str(error)
    return None


def test_many_fields_are_reached() -> None:
    keys = {field.key for field in FIELDS}
    assert len(keys) > 200
    assert {
        "stages.fit.pretrain.optimiser.schedule.ramp",
        "stages.fit.train.curriculum.0.share",
        "stages.fit.train.objectives.kd.tau",
        "bridge.source.hidden_states.lora.alpha",
        "sender.path",
    } <= keys


def test_every_field_has_bounds_or_choices() -> None:
    lacking = {field.key: found for field in FIELDS if (found := unbounded(field.kind))}
    assert lacking == {}


def test_every_dataclass_checks_itself() -> None:
    owners = {field.owner for field in FIELDS}
    assert [o for o in owners if not issubclass(o, Checked | Choice)] == []


def test_the_base_of_these_tests_is_right() -> None:
    assert refused(lambda: parse.from_dict(BASE)) is None


@pytest.mark.parametrize("most", [5, pytest.param(999, marks=pytest.mark.slow)], ids=["few", "all"])
def test_a_wrong_value_in_a_file_gets_one_line_with_its_key(most: int) -> None:
    """Of every field some wrong values, or all; in Python all are tried."""
    unsaid, draw = [], random.Random(17)
    for field in FIELDS:
        values = list(wrong(field.kind))
        for value in draw.sample(values, min(most, len(values))):
            if "0" in field.path:  # in a list: the entry is all there is
                *above, name, _ = field.path
                whole = [{**{f: right(k) for f, k in _needed(field)}, field.name: value}]
                raw = Field(Config, tuple(above), name, None).within(whole)
            else:
                raw = field.within(value)
            line = refused(lambda raw=raw: parse.from_dict(raw))  # type: ignore[misc]
            good = line is not None and line.startswith((f"{field.key}:", f"{field.key}."))
            if not good or "\n" in line or len(line) > 400:
                unsaid.append((field.key, str(value)[:40], line))
    assert unsaid == []


def test_a_wrong_value_in_python_gets_one_line_with_its_field() -> None:
    unsaid = []
    for field in FIELDS:
        if issubclass(field.owner, Choice):
            continue
        needed = {name: _made(kind) for name, kind in _needed(field)}
        for value in wrong(field.kind):
            given = needed | {field.name: tuple(value) if isinstance(value, list) else value}
            line = refused(lambda f=field, g=given: f.owner(**g))  # type: ignore[misc]
            if line is None or not line.startswith((f"{field.name}:", f"{field.name}.")):
                unsaid.append((field.owner, field.name, str(value)[:40], line))
    assert unsaid == []


def _needed(field: Field) -> list[tuple[str, Any]]:
    own = dataclasses.fields(field.owner)
    missing = (dataclasses.MISSING, dataclasses.MISSING)
    names = [f.name for f in own if (f.default, f.default_factory) == missing]
    return [(n, k) for n, k in kinds.fields(field.owner).items() if n in names and n != field.name]


def _made(kind: Any) -> Any:
    """A value of a type, made in Python."""
    plain = right(kind)
    return parse.build(kinds.bare(kind), plain) if kinds.fields(kind) else plain


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, (1.0, math.nan)])
def test_what_has_no_bounds_has_to_be_finite(value: Any) -> None:
    @dataclass(frozen=True)
    class Mine(Checked):
        limit: Any = 1.0
        plain: float = 1.0
        several: tuple[float, ...] = ()

    for name in ["limit", "several"] if isinstance(value, tuple) else ["limit", "plain"]:
        line = refused(lambda name=name: Mine(**{name: value}))  # type: ignore[misc]
        assert line is not None
        assert line.startswith(name)
        assert "expected a finite number" in line


def test_bounds_hold_before_a_class_of_its_own_checks() -> None:
    @dataclass(frozen=True)
    class Mine(Checked):
        heads: int = 1

        def __post_init__(self) -> None:
            raise UserError("own")

    line = refused(lambda: Mine(heads="x"))  # type: ignore[arg-type]
    assert line == 'heads: expected a whole number; got "x"'
    assert refused(Mine) == "own"


@pytest.mark.parametrize(
    ("text", "value"), [("1e3", 1000), ("2.0", 2), ("3e0", 3)], ids=["1e3", "2.0", "3e0"]
)
def test_whole_numbers_may_be_written_as_floats(text: str, value: int) -> None:
    config = parse.with_flags(BASE, [("stages.fit.train.steps", text)])
    assert config.stages["fit"].train is not None
    assert config.stages["fit"].train.steps == value
    assert type(config.stages["fit"].train.steps) is int


def test_check_names_the_entry_of_a_list() -> None:
    @dataclass(frozen=True)
    class Mine:
        sizes: tuple[int, ...]

    with pytest.raises(UserError, match=r"^sizes\.1: expected a whole number; got 0\.5$"):
        check(Mine((1, 0.5)))  # type: ignore[arg-type]
