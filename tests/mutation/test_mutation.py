"""The mutation tool: what it makes of a source, what it draws, what it tells of tests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.longest import LONG
from tests.mutation.mutants import all_mutants, drawn, mutants_of
from tests.mutation.related import FEW, related
from tests.mutation.run import ROOT, known, main, shares


@pytest.mark.parametrize(
    ("rule", "right", "wrong"),
    [
        ("comparison", "a < b", {"a <= b"}),
        ("sign", "f(-x)", {"f(x)"}),
        ("sign", "x * y", {"(x / y)"}),
        ("axis", "f(x, axis=-1)", {"f(x, axis=-2)"}),
        ("shift", "x[1:n]", {"x[2:n]", "x[0:n]", "x[1:n + 1]"}),
        ("mask", "f(x, mask)", {"f(x, (~mask))"}),
        ("mask", "a & b", {"a", "b", "(a | b)"}),
        ("weight", "weight * x", {"x"}),
        ("weight", "tau**2", {"tau"}),
        ("reduction", "jnp.sum(x)", {"jnp.mean(x)"}),
        ("flag", "f(x, train=train)", {"f(x, train=True)", "f(x, train=False)"}),
        ("constant", "f(x, 0)", {"f(x, 1)"}),
        ("boolean", "a and not b", {"(a or (not b))", "a and b"}),
        ("branch", "jnp.where(c, a, b)", {"a", "b"}),
        ("branch", "a if c else b", {"a", "b"}),
    ],
)
def test_a_rule(rule: str, right: str, wrong: set[str]) -> None:
    source = f"def g(x):\n    return {right}\n"
    found = [m for m in mutants_of("lw_jax/a.py", source) if m.key.split(" | ")[2] == rule]
    assert {m.put(source).partition("return ")[2].strip() for m in found} == wrong


def test_statements_are_deleted_where_a_program_is_left() -> None:
    source = "def g(x):\n    x = x + y\n    f(x)\n    z = 3\n    z += x\n    return z\n"
    found = [m for m in mutants_of("a.py", source) if m.key.split(" | ")[2] == "deletion"]
    assert [m.before for m in found] == ["x = x + y", "f(x)", "z += x"]


def test_texts_errors_types_and_bounds_stay() -> None:
    source = '''"""Not 1 + 1."""

Made = int | None

def g(x: tuple[int, int] = None) -> float:
    """Not 1 - 1."""
    if x < 0:
        raise ValueError(f"{x + 1} is below 0")
    return "a" + f"{x - 1}"

class C:
    def __post_init__(self):
        check(self.a < 1)
'''
    assert not mutants_of("a.py", source)


def test_a_draw_is_the_seeds_and_the_mutants_own() -> None:
    some = mutants_of("a.py", "def g(x):\n    return x[1:] + x[:-1] * (x > 0) - 2 * x\n")
    moved = mutants_of(
        "a.py", "# a line\n\ndef g(x):\n    return x[1:] + x[:-1] * (x > 0) - 2 * x\n"
    )
    assert [m.key for m in drawn(some, 4, 1)] == [m.key for m in drawn(moved, 4, 1)]
    assert [m.key for m in drawn(some, 4, 1)] != [m.key for m in drawn(some, 4, 2)]
    assert len({m.key for m in some}) == len(some)


def test_the_mutants_of_the_tree() -> None:
    """Each file that is named exists and has some, and what is known of mutants is of mutants."""
    mutants = all_mutants(ROOT)
    keys = {m.key for m in mutants}
    assert len(keys) == len(mutants) > 1500
    paths = {m.path for m in mutants}
    for name in ("objectives/kd.py", "models/rope.py", "train/step.py", "results/row.py"):
        assert f"lw_jax/{name}" in paths
    for reasons in known(ROOT).values():
        assert reasons.keys() <= keys
        assert all(reasons.values())


def test_tests_of_a_file_come_nearest_first() -> None:
    groups = related(ROOT, "lw_jax/evaluate/bootstrap.py")
    assert groups[0][0] == "tests/evaluate/test_bootstrap.py"
    assert "tests/results/test_intervals.py" in groups[0] + groups[1]
    assert "tests/evaluate/test_metrics.py" in related(ROOT, "lw_jax/evaluate/metrics/em.py")[0]
    # Elsewhere than in the mirrored folder, but of the file's name; by what a test speaks of.
    assert related(ROOT, "lw_jax/train/step.py")[1] == ["tests/bridge/test_step.py"]  # it is long
    expand = related(ROOT, "lw_jax/compressors/pool_expand.py")
    assert expand[0][0] == "tests/compressors/test_pooled.py"
    assert groups[-1][-1].removeprefix("tests/") in LONG
    assert max(map(len, groups)) == FEW


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree with one function of the maths and a test of half of it, and a test that is red."""
    (tmp_path / "lw_jax" / "utils").mkdir(parents=True)
    (tmp_path / "lw_jax" / "__init__.py").touch()
    (tmp_path / "lw_jax" / "utils" / "__init__.py").touch()
    source = "def at(a, b):\n    return (a - b, a < b)\n"
    (tmp_path / "lw_jax" / "utils" / "schedule.py").write_text(source)
    (tmp_path / "tests" / "utils").mkdir(parents=True)
    test = "from lw_jax.utils.schedule import at\n\n\n"
    test += "def test_at():\n    assert at(3, 1)[0] == 2\n\n\n"
    test += "def test_red():\n    assert at(3, 1)[0] == 4\n"
    (tmp_path / "tests" / "utils" / "test_schedule.py").write_text(test)
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\n")
    return tmp_path


@pytest.mark.slow  # it starts pytest seven times
def test_what_is_noticed_and_what_survives(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results.jsonl"
    command = ["--count=9", "--jobs=2", f"--out={out}"]
    assert main(command, tree) == 1
    said = capsys.readouterr().out
    assert "mutants: 1 of 2 noticed, 50.0%" in said
    assert "a < b  ->  a <= b" in said.partition("survived  ")[2]
    assert "no reason in known.yaml" in said
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    by = {line["mutant"]: line["by"] for line in lines if "mutant" in line}  # the last counts
    assert sorted(by.values()) == [[], ["tests/utils/test_schedule.py::test_at"]]
    assert "red without any mutant: tests/utils/test_schedule.py::test_red" in said
    assert (tree / "lw_jax" / "utils" / "schedule.py").read_text().endswith("a < b)\n")
    out.write_text("".join(line + "\n" for line in out.read_text().splitlines()[:-1]))
    assert main(command, tree) == 1  # goes on with what is left
    assert "1 of 2 noticed" in capsys.readouterr().out
    assert len(out.read_text().splitlines()) == len(lines)
    with pytest.raises(SystemExit, match="of another tree, seed or count"):
        main([*command, "--seed=1"], tree)


def test_jobs_share_the_processors() -> None:
    assert shares([0, 1, 2, 3, 4], 2) == [{0, 2, 4}, {1, 3}]
    assert shares([5], 2) == [{5}, {5}]
