"""YAML as people expect it: `1e-3` is a number, `no` is a word, a key given twice is an error."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from lw_jax.errors import UserError

RUN_CONFIG = "config.yaml"
"""The resolved config in a run directory."""


class _Loader(yaml.SafeLoader):
    """The YAML 1.2 core schema; PyYAML's own is 1.1 (`1e-3` is text, `no` is false)."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}  # noqa: RUF012  (PyYAML's own design)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key.value!r} is given twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+(_[0-9]+)*|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan",
        list("-+.0123456789"),
    ),
    ("merge", "<<", ["<"]),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^({_pattern})$"), _first
    )


def _float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    return float(str(loader.construct_scalar(node)).replace(".inf", "inf").replace(".nan", "nan"))


def _int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    return int(text, 16 if text.startswith("0x") else 10)


_Loader.add_constructor("tag:yaml.org,2002:float", _float)
_Loader.add_constructor("tag:yaml.org,2002:int", _int)


def loads(text: str, where: str) -> Any:
    """The value of a YAML text. `where` names it in an error.

    Raises:
        UserError: not valid YAML, with the line.
    """
    try:
        return _apart(yaml.load(text, _Loader))
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
        raise UserError(f"{where}{line}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from None


def _apart(value: Any) -> Any:
    """The value with a copy wherever it was an alias (`*name`): a flag changes one place."""
    if isinstance(value, dict):
        return {key: _apart(below) for key, below in value.items()}
    return [_apart(below) for below in value] if isinstance(value, list) else value


def load(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        UserError: no such file, not valid YAML, or not a mapping.
    """
    path = Path(path)
    if not path.is_file():
        near = sorted(map(str, path.parent.glob("[!.]*.yaml"))) if path.parent.is_dir() else []
        raise UserError(
            f"--config: no such file: {path}"
            + (f"; there are {', '.join(near[:8])}" if near else "")
        )
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a UTF-8 text file") from None
    value = loads(text, str(path))
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a mapping of keys to values, as in configs/*.yaml")
    return value


def dumps(value: Any, flow: bool = False) -> str:
    """YAML text of plain values, on one line if `flow`; `loads` reads the same values back."""
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
