"""Which test files are about a file of the product, nearest first."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from tests.longest import LONG

Modules = frozenset[str]


FEW = 4
"""So many files are run at once."""
COMMON = {"Config", "__call__", "__post_init__", "apply", "build", "init", "main", "one", "setup"}
"""Names that tell nothing."""


def related(root: Path, path: str) -> list[list[str]]:
    """Test files, relative to the tree, a few at a time in the order that they are worth running.

    Those whose name has the file's or its folder's, those of its mirrored folder that import it,
    others that import it, the rest of the mirrored folder, and those that import a module that
    imports it; the longest of a kind two kinds later. Of a kind those come first that speak of
    more of the file's own names.

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
    own = names(root / path)
    ranks: dict[str, int] = {}
    for test, seen in tests(root).items():
        mirrored = Path(test).parent.as_posix() == folder
        stem = Path(test).stem
        named = name in stem or Path(path).parent.name in stem
        if (mirrored and named) or (module in seen and stem == f"test_{name}"):
            ranks[test] = 0
        elif module in seen:
            ranks[test] = 1 if mirrored else 2
        elif mirrored:
            ranks[test] = 3
        elif importers & seen:
            ranks[test] = 4

    def place(test: str) -> tuple[int, int, str]:
        spoken = len(own & words(root / test))
        return ranks[test] + 2 * _is_long(test), -spoken, test

    return few(sorted(ranks, key=place))


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


@cache
def names(path: Path) -> frozenset[str]:
    """The file's own name and those of its functions, classes and constants."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    held = {
        node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    assigned = [node for node in tree.body if isinstance(node, ast.Assign)]
    held |= {t.id for node in assigned for t in node.targets if isinstance(t, ast.Name)}
    return frozenset(held - COMMON | {path.stem})


@cache
def words(path: Path) -> frozenset[str]:
    """The words of a file."""
    return frozenset(re.findall(r"\w+", path.read_text(encoding="utf-8")))


def imports(path: Path) -> Modules:
    """The modules that a file imports, wherever in it."""

    def found() -> Iterator[str]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield node.module
                yield from (f"{node.module}.{alias.name}" for alias in node.names)

    return frozenset(found())
