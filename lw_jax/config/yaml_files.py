"""YAML as people expect it: `1e-3` is a number, `no` is a word, a key given twice is an error.

PyYAML reads the text into nodes. What nodes mean is decided here: text, numbers, true, false, null,
lists and mappings, and nothing else; aliases are written out as copies, to a limit.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from lw_jax.errors import UserError

RUN_CONFIG = "config.yaml"
"""The resolved config in a run directory."""

LONGEST = 2**18
"""Characters of a text that is read: a config of a few hundred lines has some thousands."""
DEEPEST = 50
"""Levels of lists and mappings inside each other."""
MOST = 20_000
"""Values of a text, those of aliases counted each time."""
DIGITS = 40
"""Digits of a whole number."""

NULL = ("", "~", "null", "Null", "NULL")
"""Words for nothing."""
_PREFIX = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    """The YAML 1.2 core schema; PyYAML's own is 1.1 (`1e-3` is text, `no` is false)."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}  # noqa: RUF012  (PyYAML's own design)
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """A node and those below it, to a limit."""
        self.depth += 1
        if self.depth > DEEPEST:
            mark = self.peek_event().start_mark
            raise _error(f"more than {DEEPEST} levels of lists and mappings", mark)
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


_PATTERNS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+(_[0-9]+)*|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan",
        list("-+.0123456789"),
    ),
    "merge": ("<<", ["<"]),
}
"""What a plain word is: by kind its form, and the characters it may begin with."""
for _kind, (_form, _first) in _PATTERNS.items():
    _Loader.add_implicit_resolver(_PREFIX + _kind, re.compile(f"^({_form})$"), _first)


def _error(problem: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


class _Reading:
    """Values of nodes. Every alias gives values of its own, so that a flag changes one place."""

    def __init__(self) -> None:
        self.count = 0
        self.inside: set[int] = set()

    def value(self, node: Any) -> Any:
        """The value of a node.

        Raises:
            yaml.MarkedYAMLError: a tag that is not known, a value that does not fit its tag, a key
                that is no text or comes twice, an alias that holds itself, or too many values.
        """
        self.count += 1
        if self.count > MOST:
            raise _error(f"more than {MOST:,} values; aliases (*) are counted too", node.start_mark)
        if isinstance(node, yaml.ScalarNode):
            return _scalar(node)
        if id(node) in self.inside:
            raise _error("an alias (*) for something that holds it", node.start_mark)
        self.inside.add(id(node))
        try:
            if isinstance(node, yaml.SequenceNode):
                _expect_tag(node, "seq")
                return [self.value(below) for below in node.value]
            _expect_tag(node, "map")
            return self.mapping(node)
        finally:
            self.inside.remove(id(node))

    def mapping(self, node: Any) -> dict[str, Any]:
        """The keys of a mapping: those that it merges (`<<`) first."""
        merged: dict[str, Any] = {}
        own: dict[str, Any] = {}
        for key, below in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _error("a key is a list or a mapping; keys are text", key.start_mark)
            if key.tag == _PREFIX + "null":
                raise _error("a key without text", key.start_mark)
            name = str(key.value)
            if name in own or (key.tag == _PREFIX + "merge" and merged):
                raise _error(f"the key {name[:100]!r} is given twice", key.start_mark)
            if key.tag == _PREFIX + "merge":
                merged = self.merged(below)
            else:
                own[name] = self.value(below)
        return merged | own

    def merged(self, node: Any) -> dict[str, Any]:
        """What `<<` adds: of several mappings the first one that has a key counts."""
        several = node.value if isinstance(node, yaml.SequenceNode) else [node]
        found: dict[str, Any] = {}
        for one in reversed(several):
            if not isinstance(one, yaml.MappingNode):
                raise _error("<< merges mappings (`<<: *name`)", one.start_mark)
            found |= self.value(one)
        return found


def _expect_tag(node: Any, kind: str) -> None:
    if node.tag not in (_PREFIX + kind, "!"):
        raise _error(f"{_tag(node)} does not fit here, or is not known", node.start_mark)


def _tag(node: Any) -> str:
    return f"the tag {str(node.tag).replace(_PREFIX, '!!')[:100]}"


def _scalar(node: yaml.ScalarNode) -> Any:
    """The value of a word, a text or a number."""
    text, kind = str(node.value), str(node.tag).removeprefix(_PREFIX)
    if kind == "str" or (kind == "merge" and node.style is None):
        return text
    if kind not in ("null", "bool", "int", "float"):
        raise _error(f"{_tag(node)} does not fit here, or is not known", node.start_mark)
    if not re.fullmatch(_PATTERNS[kind][0], text) and not (kind == "float" and _is_int(text)):
        raise _error(f"{text[:100]!r} does not fit {_tag(node)}", node.start_mark)
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "float":
        return float(text.replace("_", "").replace(".inf", "inf").replace(".nan", "nan"))
    if len(text) > DIGITS:
        raise _error(f"a whole number of {len(text):,} digits", node.start_mark)
    return int(text, 16 if text.startswith("0x") else 10)


def _is_int(text: str) -> bool:
    return re.fullmatch(_PATTERNS["int"][0], text) is not None and not text.startswith("0x")


def loads(text: str, where: str) -> Any:
    """The value of a YAML text.

    Args:
        text: the text.
        where: its name, for error messages.

    Raises:
        UserError: not valid YAML, with the line, or too large.
    """
    if len(text) > LONGEST:
        raise UserError(f"{where}: {len(text):,} characters; a config has at most {LONGEST:,}")
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return None if node is None else _Reading().value(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = "" if mark is None else f", line {mark.line + 1}"
        problem = error.problem or error.context
        raise UserError(f"{where}{line}: not valid YAML: {problem}") from None
    except yaml.reader.ReaderError as error:
        number = text.count("\n", 0, error.position) + 1
        raise UserError(
            f"{where}, line {number}: not valid YAML: the character "
            f"#x{error.character:04x} has no place in a text file"
        ) from None
    finally:
        if loader is not None:
            loader.dispose()


def load(path: str | Path, asked_by: str = "--config") -> dict[str, Any]:
    """The mapping in a YAML file.

    Args:
        path: the file.
        asked_by: what names the file, for error messages.

    Raises:
        UserError: no such file, not valid YAML, or not a mapping.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise UserError(f"{asked_by}: {_no_file(path)}")
        if path.stat().st_size > 4 * LONGEST:
            raise UserError(f"{path}: {path.stat().st_size:,} bytes; a config is a small text file")
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}: not a UTF-8 text file") from None
    value = loads(text, str(path))
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a mapping of keys to values, as in configs/*.yaml")
    return value


def _no_file(path: Path) -> str:
    """What is wrong with a path that is no file, and which files are there."""
    home = path if path.is_dir() else path.parent
    near = sorted(map(str, home.glob("[!.]*.yaml"))) if home.is_dir() else []
    if path.exists() and not path.is_dir():
        return f"{path} is a pipe or a device; give a file, which is read more than once"
    said = f"{path} is a directory, not a file" if path.is_dir() else f"no such file: {path}"
    return said + (f"; there are {', '.join(near[:8])}" if near else "")


def dumps(value: Any, flow: bool = False) -> str:
    """YAML text of plain values; `loads` reads the same values back.

    Args:
        value: plain values.
        flow: whether to write one line.
    """
    style = {"default_flow_style": True, "width": 10**6} if flow else {"width": 100}
    text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, **style)
    return text.removesuffix("\n").removesuffix("\n...") if flow else text


class _Dumper(yaml.SafeDumper):
    """Writes floats so that they are read back as floats, bit for bit."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _write_float(dumper: yaml.SafeDumper, value: float) -> yaml.ScalarNode:
    text = repr(value).replace("inf", ".inf").replace("nan", ".nan")
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


_Dumper.add_representer(float, _write_float)
_Dumper.yaml_implicit_resolvers = dict(_Loader.yaml_implicit_resolvers)
