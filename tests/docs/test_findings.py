"""Every fault that was ever reported has a test that would notice it again (docs/faults.yaml)."""

import ast
from functools import cache
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docs" / "faults.yaml"
USE = [*range(1, 60)]
PUBLIC = [1, 2, 4, 6, 7, 8, 9, 11, 14, 15, 17, 19, 22, 23, 25, 26, 27]
IDS = [
    *(f"use-{n}" for n in USE),
    "use-7b",
    "use-7c",
    "use-7d",
    *(f"public-{n}" for n in PUBLIC),
    *(f"F{n}" for n in range(1, 16)),
    *(f"S{n}" for n in range(1, 11)),
]
"""By report: of use, of other projects' reports tried here, of reliability, of evidence."""


@cache
def found() -> dict:
    return yaml.safe_load(FILE.read_text(encoding="utf-8"))


@cache
def names(file: str) -> frozenset[str]:
    """The tests that pytest collects of a file."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    held = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            held.add(node.name)
        elif isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
            held |= {f"{node.name}::{f.name}" for f in node.body if isinstance(f, ast.FunctionDef)}
    return frozenset(name for name in held if name.rpartition("::")[2].startswith("test_"))


def test_no_finding_is_missing():
    assert sorted(set(IDS) - found().keys()) == []


@pytest.mark.parametrize("name", sorted(found()))
def test_each_has_a_test_that_is_collected_or_a_reason(name):
    entry = found()[name]
    if isinstance(entry, dict):
        assert entry.keys() <= {"left", "tests"}
        assert len(str(entry.get("left", ""))) > 10, f"{name}: left without a reason"
        tests = entry.get("tests", [])
    else:
        tests = entry
        assert tests, f"{name}: no test"
    for test in tests:
        file, _, function = str(test).partition("::")
        if file.endswith(".patch"):
            assert (ROOT / file).is_file(), test
            continue
        assert Path(file).name.startswith("test_"), test
        assert (ROOT / file).is_file(), f"{name}: no file {file}"
        assert function.partition("[")[0] in names(file), f"{name}: no test {test}"
