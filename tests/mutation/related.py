"""Which test files are about a file of the product, nearest first."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from tests.longest import LONG

Modules = frozenset[str]


FEW = 4
"""So many files are run at once."""


def related(root: Path, path: str) -> list[list[str]]:
    """Test files, relative to the tree, a few at a time in the order that they are worth running.

    Those whose name has the file's or its folder's, those of its mirrored folder that import it,
    others that import it, the rest of the mirrored folder, and those that import a module that
    imports it; the longest of a kind two kinds later.

    Args:
        root: of the tree.
        path: a file below `lw_jax/`.
    """
    module = path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
    name, mirror = Path(path).stem, Path("tests", *Path(path).parts[1:-1])
    while not (root / mirror).is_dir():  # tests of a folder below another may be in that one's
        mirror = mirror.parent
    folder = mirror.as_posix()
    importers = {other for other, seen in product(root).items() if module in seen}
    ranks: dict[str, int] = {}
    for test, seen in tests(root).items():
        mirrored = Path(test).parent.as_posix() == folder
        if mirrored and (name in Path(test).stem or Path(path).parent.name in Path(test).stem):
            ranks[test] = 0
        elif module in seen:
            ranks[test] = 1 if mirrored else 2
        elif mirrored:
            ranks[test] = 3
        elif importers & seen:
            ranks[test] = 4
    return few(sorted(ranks, key=lambda test: (ranks[test] + 2 * _is_long(test), test)))


def few(files: Sequence[str]) -> list[list[str]]:
    """At most FEW in a list, and the longest by themselves."""
    found: list[list[str]] = []
    for file in files:
        alone = not found or _is_long(file) or _is_long(found[-1][0])
        if alone or len(found[-1]) == FEW:
            found.append([])
        found[-1].append(file)
    return found


def _is_long(test: str) -> bool:
    return test.removeprefix("tests/") in LONG


def every(root: Path) -> list[str]:
    """All test files."""
    return sorted(tests(root))


@cache
def product(root: Path) -> dict[str, Modules]:
    """What each module of the product imports."""
    found = {}
    for path in sorted((root / "lw_jax").rglob("*.py")):
        relative = path.relative_to(root).as_posix()
        name = relative.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        found[name] = imports(path)
    return found


@cache
def tests(root: Path) -> dict[str, Modules]:
    """What each test file imports, through helpers of the tests (`tests/tiny`, conftest) too."""
    own = {
        path.relative_to(root).as_posix(): imports(path)
        for path in sorted((root / "tests").rglob("*.py"))
        if "golden" not in path.parts
    }
    by_name = {name.removesuffix(".py").replace("/", "."): seen for name, seen in own.items()}
    found = {}
    for name, seen in own.items():
        if not Path(name).name.startswith("test_") or name.startswith(
            ("tests/mutation/", "tests/faults/")
        ):
            continue
        through = {m for helper in seen if helper in by_name for m in by_name[helper]}
        conftest = own.get((Path(name).parent / "conftest.py").as_posix(), frozenset())
        found[name] = frozenset(seen | through | conftest)
    return found


def imports(path: Path) -> Modules:
    """The modules that a file imports, wherever in it."""

    def names() -> Iterator[str]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield node.module
                yield from (f"{node.module}.{alias.name}" for alias in node.names)

    return frozenset(names())
