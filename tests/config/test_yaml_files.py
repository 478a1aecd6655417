"""YAML 1.2 scalars, doubled keys, and floats that survive a round trip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lw_jax.config.yaml_files import dumps, load, loads
from lw_jax.errors import UserError

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("2e3", 2000.0),
        ("1.", 1.0),
        ("-2.5E+3", -2500.0),
        (".inf", float("inf")),
        ("10_000", 10000),
        ("no", "no"),
        ("on", "on"),
        ("1:30", "1:30"),
        ("2024-01-02", "2024-01-02"),
        ("true", True),
        ("null", None),
        ("", None),
        ("[1, 2e-1]", [1, 0.2]),
    ],
)
def test_scalars(text: str, value: Any) -> None:
    got = loads(text, "x")
    assert got == value
    assert type(got) is type(value)


@given(PLAIN)
def test_what_is_written_is_read_back(value: Any) -> None:
    assert loads(dumps(value), "x") == value
    assert loads(dumps(value, flow=True), "x") == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3\n", "line 3: not valid YAML: the key 'a' is given twice"),
        ("a: [1, 2\n", "line 2: not valid YAML"),
        ("a: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
        ("- 1\n", "expected a mapping"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_alias_is_a_copy() -> None:
    value = loads("a: &a {b: {c: 1}, d: [1]}\ne: *a\nf: {<<: *a, d: 2}", "here")
    value["a"]["b"]["c"] = 2
    value["a"]["d"].append(2)
    assert value["e"] == {"b": {"c": 1}, "d": [1]}
    assert value["f"] == {"b": {"c": 1}, "d": 2}
