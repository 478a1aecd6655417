"""docs/faults.md names tests, patches and alarms that exist, and all of them."""

import ast
import re
from functools import cache
from pathlib import Path

from lw_jax.train.alarms import FAULTS
from tests.faults.run import Fault

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "faults.md").read_text()
SECTIONS = {
    part.partition("\n")[0]: part for part in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]
}
PATCHES = {path.name: path for path in (ROOT / "tests" / "faults").glob("*.patch")}


@cache
def functions(file: str) -> set[str]:
    """The functions that a file defines."""
    path = ROOT / file
    tree = ast.parse(path.read_text()) if path.is_file() else ast.Module([], [])
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def named(section: str, what: str) -> list[str]:
    """Entries `* Test: ...` or `* Patch: ...` of a section."""
    return re.findall(rf"^\* {what}: `(\S+)`$", section, re.MULTILINE)


def test_every_fault_stands_there_once_with_a_test() -> None:
    numbers = [int(n) for title in SECTIONS if (n := title.partition(".")[0]).isdigit()]
    assert numbers == list(range(1, 27))
    for title, section in SECTIONS.items():
        assert named(section, "Test"), title
        assert section.count("* Test:") == len(named(section, "Test")), title
        assert section.count("* Patch:") == len(named(section, "Patch")), title
        assert "* What happened: " in section, title
        assert "* Here: " in section, title


def test_tests_that_are_named_exist() -> None:
    missing = [
        name
        for section in SECTIONS.values()
        for name in named(section, "Test")
        if name.partition("::")[2] not in functions(name.partition("::")[0])
    ]
    assert not missing


def test_every_patch_is_named_where_its_test_is() -> None:
    found = {name for section in SECTIONS.values() for name in named(section, "Patch")}
    assert found == PATCHES.keys()
    for title, section in SECTIONS.items():
        tests = set(named(section, "Test"))
        for name in named(section, "Patch"):
            asked = {test.partition("[")[0] for test, _ in Fault.read(PATCHES[name]).tests}
            assert asked <= tests, (title, name, asked)
            number = re.search(r"_(\d\d)_", name)
            own = title.partition(".")[0]
            shared = name.startswith("alarms_09") and own == "8"  # it is of faults 8 and 9
            assert number is None or int(number[1]) == int(own) or shared, (title, name)


def test_every_alarm_is_named_with_its_faults() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| ([\d, -]+) \|", PAGE, re.MULTILINE))
    first = {name: faults.partition(",")[0] for name, faults in rows.items()}
    assert first == {name: "-" if n is None else str(n) for name, n in FAULTS.items()}
    for name, faults in rows.items():
        for number in re.findall(r"\d+", faults):
            section = next(s for title, s in SECTIONS.items() if title.startswith(f"{number}."))
            assert f"`{name}`" in section
