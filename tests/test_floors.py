"""The rooms of the package stand on floors: every import points down, by folder and by file."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import lw_jax

HOME = Path(lw_jax.__file__).parent
FLOORS = """
    types errors
    utils
    data mesh
    text
    models wire
    layers
    sources compressors bottlenecks readers
    receiver
    bridge
    objectives
    pipeline
    evaluate
    train
    pretrain
    config
    runs
    report
    stages
    results api
    serve probes
    launch
    commands
    __main__
"""
"""The rooms (folders, and files at the root), lowest first; a line may not import its own line."""
ORDER = {room: i for i, line in enumerate(FLOORS.split("\n")) for room in line.split()}
MODULES = {
    ".".join(("lw_jax", *f.relative_to(HOME).with_suffix("").parts)).removesuffix(".__init__"): f
    for f in HOME.rglob("*.py")
}


def imports(path: Path) -> Iterator[str]:
    """Names that a file imports anywhere in it, and packages that it names as `lw_jax...` text."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
            yield node.module
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value.rstrip(".")  # of import_module, or of a choice


def edges() -> dict[str, set[str]]:
    """Modules of the package by the modules that they import; a package stands for its files."""
    found: dict[str, set[str]] = {}
    for name, path in MODULES.items():
        asked = {i for i in imports(path) if i in MODULES and i != "lw_jax"}
        others = [m for m in MODULES if room(m) != room(name)]
        asked |= {m for m in others if any(m.startswith(f"{i}.") for i in asked)}
        found[name] = asked - {name}
    return found


def room(module: str) -> str:
    """The folder of a module, or the file at the root."""
    return (module.split(".") + [""])[1]


def test_every_import_points_down() -> None:
    rooms = {room(m) for m in MODULES} - {""}
    assert rooms == set(ORDER), f"without a floor, or no more there: {sorted(rooms ^ set(ORDER))}"
    up = [
        f"{a} -> {b}"
        for a, asked in edges().items()
        for b in asked
        if room(a) and room(a) != room(b) and ORDER[room(b)] >= ORDER[room(a)]
    ]
    assert not up, "\n".join(sorted(up))


def test_no_files_import_each_other_in_a_circle() -> None:
    TopologicalSorter(edges()).prepare()  # CycleError names a circle
