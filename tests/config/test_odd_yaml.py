"""Odd, damaged and hostile YAML: one line with file and line number, soon and in little memory."""

from __future__ import annotations

import random
import time
import tracemalloc
from pathlib import Path

import pytest

from lw_jax import launch
from lw_jax.config import parse
from lw_jax.config.yaml_files import LONGEST, load, loads
from lw_jax.errors import UserError
from tests.config.mutate import mutated

ROOT = Path(__file__).parents[2]
SECONDS = 5.0
"""Of the processor, for a file that is refused or taken."""
MEGABYTES = 60


def bomb(levels: int, line: str, first: str) -> str:
    """A text whose every line names the line before several times."""
    return "\n".join([first, *(line.format(i, i - 1) for i in range(1, levels))])


LIST = "a{0}: &a{0} [" + ", ".join(["*a{1}"] * 10) + "]"
BOMBS = {
    "lists": bomb(10, LIST, "a0: &a0 [x, x]"),
    "few lists": bomb(7, LIST, "a0: &a0 [x, x]"),
    "mappings": bomb(40, "a{0}: &a{0} {{l: *a{1}, r: *a{1}}}", "a0: &a0 {x: 1}"),
    "merges": bomb(25, "a{0}: &a{0} {{<<: [*a{1}, *a{1}]}}", "a0: &a0 {x: 1}"),
    "nested merges": bomb(40, "a{0}: &a{0} {{<<: *a{1}, b{0}: *a{1}}}", "a0: &a0 {x: 1}"),
}
ODD = {
    "a list as a key": ("? [a, b]\n: c", "line 1: not valid YAML: a key is a list or a mapping"),
    "a mapping as a key": ("a:\n  {b: 1}: c", "line 2"),
    "a stray ?": ("name: x\n?\n", "line 2: not valid YAML: a key without text"),
    "a recursive list": ("a: &a [*a]", "line 1: not valid YAML: an alias (*) for something"),
    "a recursive mapping": ("&a {b: *a}", "line 1: not valid YAML: an alias (*) for something"),
    "a recursive merge": ("a: &a {<<: *a}", "line 1: not valid YAML: an alias (*) for something"),
    "deep lists": ("a: " + "[" * 500 + "]" * 500, "line 1: not valid YAML: more than 50 levels"),
    "deep mappings": ("\n".join(" " * i + "a:" for i in range(300)), "line 50: not valid YAML"),
    "deep, not closed": ("a: " + "[" * 1000, "line 1: not valid YAML: more than 50 levels"),
    "!!int": ("seed: !!int abc", "line 1: not valid YAML: 'abc' does not fit the tag !!int"),
    "!!int of a list": ("seed: !!int [1]", "line 1: not valid YAML: the tag !!int does not fit"),
    "!!float": ("seed: !!float abc", "line 1: not valid YAML: 'abc' does not fit the tag !!float"),
    "!!bool": ("seed: !!bool foo", "line 1: not valid YAML: 'foo' does not fit the tag !!bool"),
    "!!null": ("seed: !!null foo", "line 1: not valid YAML: 'foo' does not fit the tag !!null"),
    "!!timestamp": ("seed: !!timestamp foo", "line 1: not valid YAML: the tag !!timestamp"),
    "!!map": ("\nseed: !!map foo", "line 2: not valid YAML: the tag !!map does not fit"),
    "!!seq": ("seed: !!seq {}", "line 1: not valid YAML: the tag !!seq does not fit"),
    "!!set": ("seed: !!set {a}", "line 1: not valid YAML: the tag !!set"),
    "!!omap": ("seed: !!omap [a: 1]", "line 1: not valid YAML: the tag !!omap"),
    "!!binary": ("seed: !!binary aGk=", "line 1: not valid YAML: the tag !!binary"),
    "!!python": ("seed: !!python/object/apply:os.getcwd []", "line 1: not valid YAML: the tag"),
    "!mine": ("seed: !mine x", "line 1: not valid YAML: the tag !mine"),
    "many digits": (
        "seed: " + "9" * 5000,
        "line 1: not valid YAML: a whole number of",
    ),
    "many hex digits": ("seed: 0x" + "f" * 5000, "line 1: not valid YAML: a whole number of"),
    "<< of a word": ("<<: word", "line 1: not valid YAML: << merges mappings"),
    "<< of words": ("a: 1\n<<: [word]", "line 2: not valid YAML: << merges mappings"),
    "<< twice": ("a: &a {b: 1}\n<<: *a\n<<: *a", "line 3: not valid YAML: the key '<<' is given"),
    "an unknown alias": ("a: *b", "line 1: not valid YAML: found undefined alias"),
    "a tab": ("a:\n\tb: 1", "line 2: not valid YAML"),
    "a NUL": ("a: 1\nb: \0", "line 2: not valid YAML: the character #x0000"),
    "two documents": ("a: 1\n---\nb: 1", "line 2: not valid YAML"),
    "not closed": ("a: [1,\nb: 2", "not valid YAML"),
    "a wrong escape": ('a: "\\z"', "line 1: not valid YAML"),
    "a wrong directive": ("%YAML 9.9\n---\na: 1", "line 1: not valid YAML"),
    "a word": ("word", "expected a mapping of keys to values"),
    "nothing": ("", "expected a mapping of keys to values"),
    "a comment": ("# nothing", "expected a mapping of keys to values"),
    "null": ("null", "expected a mapping of keys to values"),
}
BYTES = {
    "not UTF-8": (b"name: x\nseed: \xff\xfe", "line 2: not a UTF-8 text file"),
    "UTF-16": ("name: x".encode("utf-16"), "line 1: not a UTF-8 text file"),
    "UTF-16 without a mark": ("name: x".encode("utf-16-be"), "line 1: not valid YAML"),
    "a model's weights": (bytes(range(256)) * 100, "not a UTF-8 text file"),
    "a large text": (b"a: " + b"x" * (LONGEST + 1), f"at most {LONGEST:,}"),
    "a large file": (b"\n" * (8 * LONGEST), "a config is a small text file"),
}


def refused(path: Path) -> str:
    """The line that refuses a file; not late, and not with much memory."""
    tracemalloc.start()
    began = time.process_time()
    try:
        with pytest.raises(UserError) as caught:
            load(path)
        seconds, (_, peak) = time.process_time() - began, tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(str(path))
    assert seconds < 4 * SECONDS  # tracing the memory makes it slower
    assert peak < MEGABYTES * 2**20
    return line


@pytest.mark.parametrize("name", BOMBS)
def test_aliases_that_grow(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(BOMBS[name])
    assert "more than 20,000 values; aliases (*) are counted too" in refused(path)


@pytest.mark.parametrize("name", ODD)
def test_odd_nodes(tmp_path: Path, name: str) -> None:
    text, said = ODD[name]
    path = tmp_path / "x.yaml"
    path.write_text(text)
    assert said in refused(path)
    if "expected a mapping" not in said:  # a flag's value is read by the same rules
        with pytest.raises(UserError, match="--seed"):
            loads(text, "--seed")


@pytest.mark.parametrize("name", BYTES)
def test_odd_files(tmp_path: Path, name: str) -> None:
    data, said = BYTES[name]
    path = tmp_path / "x.yaml"
    path.write_bytes(data)
    assert said in refused(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").touch()
    with pytest.raises(UserError, match=r"is a directory, not a file; there are .*one\.yaml"):
        load(tmp_path)
    with pytest.raises(UserError, match="/dev/null is a pipe or a device; give a file"):
        load("/dev/null")
    with pytest.raises(UserError, match="cannot be read: File name too long"):
        load(tmp_path / ("x" * 300))


def test_a_byte_order_mark_is_no_key(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"\xef\xbb\xbfname: x")
    assert load(path) == {"name": "x"}


def test_what_is_usual_stays(tmp_path: Path) -> None:
    text = "a: &a {b: 1, c: [x, 'y']}\nd: {<<: [*a, {b: 2, e: 3}], f: !!str 7}\n1: {true: ~}\n"
    assert loads(text, "x") == {
        "a": {"b": 1, "c": ["x", "y"]},
        "d": {"b": 1, "e": 3, "c": ["x", "y"], "f": "7"},
        "1": {"true": None},
    }


@pytest.mark.parametrize("flag", ["--seed=&a [*a]", "--seed=!!int abc", "--bridge=" + "[" * 999])
def test_flags_are_read_by_the_same_rules(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--print_config", "--config", str(ROOT / "configs" / "facts.yaml"), flag]
    assert launch.main(argv) == 2
    assert capsys.readouterr().err.startswith(f"error: {flag.partition('=')[0]}, line 1: not valid")


@pytest.mark.parametrize("value", ["&a [*a]", "1, !!int abc", "[" * 999, "1, \0", "? [a]"])
def test_the_values_of_a_sweep_are_read_by_the_same_rules(
    value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--config", str(ROOT / "configs" / "facts.yaml"), "--sweep", f"seed={value}"]
    assert launch.main(argv) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: --sweep seed")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "count", [150, pytest.param(3000, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_mutated_configs(count: int, tmp_path: Path) -> None:
    """Each is taken, or refused in one line; no other error, and none takes long."""
    draw, texts = random.Random(count), []
    for path in sorted((ROOT / "configs").rglob("*.yaml")):
        try:
            parse.read(path)
        except UserError:
            continue  # a part of a config, to be put over others
        texts.append(path.read_text())
    assert len(texts) > 40
    lines: list[str] = []
    path, taken = tmp_path / "x.yaml", 0
    for number in range(count):
        data = mutated(draw.choice(texts), draw)
        path.write_bytes(data)
        began = time.process_time()
        try:
            parse.files(path)
            parse.read(path)
            taken += 1
        except UserError as error:
            lines.append(str(error))
        except Exception as error:
            raise AssertionError(f"mutation {number}: {type(error).__name__}: {data!r}") from error
        assert time.process_time() - began < SECONDS, data
    assert 0.03 * count < taken < count / 2
    assert not any("\n" in line for line in lines)
