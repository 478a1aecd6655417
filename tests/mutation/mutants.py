"""Mutants by rule: one small fault each, put into a file's source by its syntax tree.

A mutant replaces one piece of source by another, so that everything else stays as it is. Its key
names it without line numbers (file, function, rule, what becomes what), so that it is the same
mutant after lines have moved.
"""

from __future__ import annotations

import ast
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

FILES = (
    "bottlenecks/*.py",
    "bridge/bridge.py",
    "bridge/module.py",
    "compressors/*.py",
    "data/derange.py",
    "data/facts.py",
    "data/leak.py",
    "data/stream.py",
    "evaluate/bootstrap.py",
    "evaluate/figures.py",
    "evaluate/metrics/*.py",
    "evaluate/summary.py",
    "evaluate/verdict.py",
    "models/attention.py",
    "models/decoder.py",
    "models/generate.py",
    "models/head.py",
    "models/quant.py",
    "models/rope.py",
    "objectives/*.py",
    "objectives/common/*.py",
    "readers/*.py",
    "receiver/*.py",
    "results/row.py",
    "train/microbatches.py",
    "train/optimiser.py",
    "train/plan.py",
    "train/step.py",
    "utils/schedule.py",
    "wire/*.py",
)
"""Below `lw_jax/`: the maths of the product."""

COMPARISONS: dict[type[ast.cmpop], str] = {
    ast.Lt: "<=",
    ast.LtE: "<",
    ast.Gt: ">=",
    ast.GtE: ">",
    ast.Eq: "!=",
    ast.NotEq: "==",
}
REDUCTIONS = {
    "sum": "mean",
    "mean": "sum",
    "max": "min",
    "min": "max",
    "maximum": "minimum",
    "minimum": "maximum",
    "argmax": "argmin",
    "any": "all",
    "all": "any",
    "logsumexp": "max",
}
MASKS = ("mask", "valid", "used", "real")
"""Names that end so hold which places count."""
WEIGHTS = ("weight", "scale", "share", "gain", "weights", "scales")
NO_FLAGS = ("keepdims", "frozen", "strict", "kw_only", "slots", "static")
"""Keywords whose truth is no part of the maths."""
SKIPPED = ("__post_init__", "__repr__", "__str__", "to_json")
"""Functions that are not the maths: bounds of configs have tests of their own."""


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Attributes:
        path: the file, relative to the tree.
        key: names it without line numbers.
        line: where it is, from 1.
        start: first character replaced.
        end: the character after the last one replaced.
        before: what stands there.
        after: what is put there.
    """

    path: str
    key: str
    line: int
    start: int
    end: int
    before: str
    after: str

    def put(self, source: str) -> str:
        """The source with the fault in it."""
        assert source[self.start : self.end] == self.before
        return source[: self.start] + self.after + source[self.end :]

    def __str__(self) -> str:
        short = [" ".join(text.split())[:70] for text in (self.before, self.after)]
        return f"{self.path}:{self.line}: {short[0]}  ->  {short[1]}"


Change = tuple[str, ast.AST, str]
"""Rule, node that is replaced, and its new source."""


class _Source:
    """A file's text, by nodes."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tree = ast.parse(text)
        lines = [0]
        for line in text.splitlines(keepends=True):
            lines.append(lines[-1] + len(line.encode()))
        self._bytes, self._lines = text.encode(), lines

    def span(self, node: ast.AST) -> tuple[int, int]:
        """First character and the one after the last."""
        start = self._lines[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined]
        end = self._lines[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]
        return len(self._bytes[:start].decode()), len(self._bytes[:end].decode())

    def of(self, node: ast.AST) -> str:
        """The source of a node, in brackets where it could need some."""
        start, end = self.span(node)
        text = self.text[start:end]
        plain = isinstance(
            node, ast.Name | ast.Constant | ast.Attribute | ast.Call | ast.Subscript | ast.Tuple
        )
        return text if plain or not isinstance(node, ast.expr) else f"({text})"


def mutants_of(path: str, text: str) -> list[Mutant]:
    """All mutants of a file that are Python, by place.

    Args:
        path: of the file, relative to the tree.
        text: its source.
    """
    source, found, seen = _Source(text), [], Counter[str]()
    for where, node in _nodes(source.tree):
        for rule, replaced, after in _changes(node, source):
            start, end = source.span(replaced)
            before = text[start:end]
            if before == after:
                continue
            short = [" ".join(part.split()) for part in (before, after)]
            key = f"{path} | {where} | {rule} | {short[0]} -> {short[1]}"
            seen[key] += 1
            if seen[key] > 1:
                key = f"{key} #{seen[key]}"
            made = Mutant(path, key, replaced.lineno, start, end, before, after)  # type: ignore[attr-defined]
            if _is_python(after):
                found.append(made)
    return sorted(found, key=lambda mutant: (mutant.start, mutant.key))


def all_mutants(root: Path) -> list[Mutant]:
    """Those of every named file of a tree."""
    paths = sorted({path for name in FILES for path in (root / "lw_jax").glob(name)})
    return [
        mutant
        for path in paths
        for mutant in mutants_of(path.relative_to(root).as_posix(), path.read_text())
    ]


def drawn(mutants: Sequence[Mutant], count: int, seed: int) -> list[Mutant]:
    """`count` of them. Which ones is decided key by key, so other code does not change it."""

    def place(mutant: Mutant) -> str:
        return hashlib.sha256(f"{seed}/{mutant.key}".encode()).hexdigest()

    return sorted(mutants, key=place)[:count]


def _is_python(text: str) -> bool:
    try:
        ast.parse(text)
    except SyntaxError:
        return False
    return True


def _nodes(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """Every node that may be changed, with the function (and class) that it is in."""

    def below(node: ast.AST, where: str) -> Iterator[tuple[str, ast.AST]]:
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "type_params", "bases"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if not isinstance(child, ast.AST) or _skipped(child):
                    continue
                inside = where
                if isinstance(child, ast.FunctionDef | ast.ClassDef):
                    inside = f"{where}.{child.name}".strip(".")
                yield inside, child
                yield from below(child, inside)

    yield from below(tree, "")


def _skipped(node: ast.AST) -> bool:
    """Errors, imports, docstrings and texts are no maths."""
    if isinstance(node, ast.Raise | ast.Import | ast.ImportFrom | ast.JoinedStr | ast.Assert):
        return True
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True
    if isinstance(node, ast.FunctionDef):
        return node.name in SKIPPED
    if isinstance(node, ast.If):  # a check that raises, and does nothing else
        return not node.orelse and all(isinstance(s, ast.Raise) for s in node.body)
    return False


def _changes(node: ast.AST, source: _Source) -> Iterator[Change]:
    for rule in RULES:
        yield from rule(node, source)


def _comparisons(node: ast.AST, source: _Source) -> Iterator[Change]:
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        left, right = source.of(node.left), source.of(node.comparators[0])
        other = COMPARISONS.get(type(node.ops[0]))
        texts = any(
            isinstance(side, ast.Constant) and isinstance(side.value, str)
            for side in (node.left, node.comparators[0])
        )
        if other and not texts:
            yield "comparison", node, f"{left} {other} {right}"


def _signs(node: ast.AST, source: _Source) -> Iterator[Change]:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and _int(node) is None:
        yield "sign", node, source.of(node.operand)
    if isinstance(node, ast.BinOp) and not _of_texts(node):
        left, right = source.of(node.left), source.of(node.right)
        other = {ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*"}.get(type(node.op))
        if other:
            yield "sign", node, f"({left} {other} {right})"
    if isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Add) and _number(node.value):
        yield "sign", node, f"{source.of(node.target)} -= {source.of(node.value)}"


def _of_texts(node: ast.BinOp) -> bool:
    """Sums of texts, lists and tuples are no arithmetic."""
    return any(
        isinstance(side, ast.JoinedStr | ast.List | ast.Tuple | ast.ListComp)
        or (isinstance(side, ast.Constant) and isinstance(side.value, str))
        for side in ast.walk(node)
    ) and isinstance(node.op, ast.Add | ast.Mult)


def _number(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) in (int, float)


def _axes(node: ast.AST, source: _Source) -> Iterator[Change]:
    del source
    if isinstance(node, ast.Call):
        for keyword in node.keywords:
            value = _int(keyword.value)
            if keyword.arg in ("axis", "axis1", "axis2") and value is not None:
                yield "axis", keyword.value, str({0: 1, -1: -2}.get(value, value - 1))


def _int(node: ast.AST) -> int | None:
    """The whole number that an expression is; None: none."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        inner = _int(node.operand)
        return None if inner is None else -inner
    return node.value if isinstance(node, ast.Constant) and type(node.value) is int else None


def _shifts(node: ast.AST, source: _Source) -> Iterator[Change]:
    """Whole numbers that are added, and ends of slices, one more and one less."""
    ends: list[ast.AST] = []
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub):
        ends = [side for side in (node.left, node.right) if _int(side) is not None]
    if isinstance(node, ast.Slice):
        given = [end for end in (node.lower, node.upper) if end is not None]
        for end in given:
            if _int(end) is None:
                yield "shift", end, f"{source.of(end)} + 1"
        ends = [end for end in given if _int(end) is not None]
    for end in ends:
        value = _int(end)
        assert value is not None
        yield "shift", end, str(value + 1)
        yield "shift", end, str(value - 1)


def _named(node: ast.AST, endings: tuple[str, ...]) -> bool:
    name = node.id if isinstance(node, ast.Name) else getattr(node, "attr", "")
    return isinstance(node, ast.Name | ast.Attribute) and name.endswith(endings)


def _masks(node: ast.AST, source: _Source) -> Iterator[Change]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd | ast.BitOr):
        if isinstance(node.right, ast.Constant) and node.right.value is None:
            return  # a type
        yield "mask", node, source.of(node.left)
        yield "mask", node, source.of(node.right)
        other = "|" if isinstance(node.op, ast.BitAnd) else "&"
        yield "mask", node, f"({source.of(node.left)} {other} {source.of(node.right)})"
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Invert):
        yield "mask", node, source.of(node.operand)
    if isinstance(node, ast.Call):
        given = [*node.args, *(k.value for k in node.keywords)]
        for value in given:
            if _named(value, MASKS):
                yield "mask", value, f"(~{source.of(value)})"


def _weights(node: ast.AST, source: _Source) -> Iterator[Change]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult | ast.Div):
        if _named(node.right, WEIGHTS):
            yield "weight", node, source.of(node.left)
        elif _named(node.left, WEIGHTS) and isinstance(node.op, ast.Mult):
            yield "weight", node, source.of(node.right)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow) and _number(node.right):
        yield "weight", node, source.of(node.left)


def _reductions(node: ast.AST, source: _Source) -> Iterator[Change]:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        other = REDUCTIONS.get(node.func.attr)
        if other and not (node.func.attr == "logsumexp" and node.keywords[1:]):
            owner = source.of(node.func.value)
            owner = "jnp" if node.func.attr == "logsumexp" else owner
            yield "reduction", node.func, f"{owner}.{other}"
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        other = REDUCTIONS.get(node.func.id)
        if other in ("min", "max", "any", "all"):
            yield "reduction", node.func, other


def _flags(node: ast.AST, source: _Source) -> Iterator[Change]:
    if isinstance(node, ast.Call):
        for keyword in node.keywords:
            value = keyword.value
            if keyword.arg in ("train", "deterministic"):
                for flag in ("True", "False"):
                    if source.of(value) != flag:
                        yield "flag", value, flag
            elif keyword.arg not in NO_FLAGS and source.of(value) in ("True", "False"):
                yield "flag", value, "False" if source.of(value) == "True" else "True"
        for value in node.args:
            if isinstance(value, ast.Name) and value.id == "train":
                yield "flag", value, "True"
                yield "flag", value, "False"


def _constants(node: ast.AST, source: _Source) -> Iterator[Change]:
    del source
    if isinstance(node, ast.BinOp | ast.Call | ast.Compare | ast.Return | ast.IfExp | ast.Assign):
        children: list[ast.AST] = list(ast.iter_child_nodes(node))
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub | ast.Pow):
            children = [c for c in children if _int(c) is None]  # a shift
        for child in children:
            if _number(child):
                value = child.value  # type: ignore[attr-defined]
                kind = "1.0" if type(value) is float else "1"
                zero = "0.0" if type(value) is float else "0"
                if value == 0:
                    yield "constant", child, kind
                elif value == 1:
                    yield "constant", child, zero
                else:
                    yield "constant", child, f"(2 * {value})"


def _booleans(node: ast.AST, source: _Source) -> Iterator[Change]:
    if isinstance(node, ast.BoolOp):
        other = " or " if isinstance(node.op, ast.And) else " and "
        yield "boolean", node, f"({other.join(source.of(value) for value in node.values)})"
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield "boolean", node, source.of(node.operand)


def _branches(node: ast.AST, source: _Source) -> Iterator[Change]:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        if node.func.attr == "where" and len(node.args) == 3:
            yield "branch", node, source.of(node.args[1])
            yield "branch", node, source.of(node.args[2])
        if node.func.attr == "stop_gradient" and len(node.args) == 1:
            yield "branch", node, source.of(node.args[0])
        if node.func.attr == "clip" and len(node.args) == 3:
            yield "branch", node, source.of(node.args[0])
    if isinstance(node, ast.IfExp):
        yield "branch", node, source.of(node.body)
        yield "branch", node, source.of(node.orelse)


def _deletions(node: ast.AST, source: _Source) -> Iterator[Change]:
    """Statements whose absence leaves a program: calls, `x += y`, and a name given again."""
    del source
    for body in (getattr(node, name, None) for name in ("body", "orelse")):
        if not isinstance(body, list) or isinstance(node, ast.Module | ast.ClassDef):
            continue
        given: set[str] = set()
        if isinstance(node, ast.FunctionDef):
            given = {argument.arg for argument in [*node.args.args, *node.args.kwonlyargs]}
        for statement in body:
            called = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call)
            if called or isinstance(statement, ast.AugAssign):
                yield "deletion", statement, "pass"
            elif isinstance(statement, ast.Assign):
                names = [t.id for t in statement.targets if isinstance(t, ast.Name)]
                if (names and set(names) <= given) or isinstance(
                    statement.targets[0], ast.Subscript
                ):
                    yield "deletion", statement, "pass"
                given |= set(names)


RULES: tuple[Callable[[ast.AST, _Source], Iterator[Change]], ...] = (
    _comparisons,
    _signs,
    _axes,
    _shifts,
    _masks,
    _weights,
    _reductions,
    _flags,
    _constants,
    _booleans,
    _branches,
    _deletions,
)
