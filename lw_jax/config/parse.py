"""From a YAML file and dotted flags to a checked `Config`, and back.

pydantic reads the dataclasses: it gives each error's exact place, which a parser of unions does
not. Flags are put into the file's mapping first, so that a flag equals a line of YAML.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast, get_args, get_origin

import pydantic

from lw_jax.config import tree, yaml_files
from lw_jax.config.command import Flag
from lw_jax.config.renamed import new_name, tell, with_new_names
from lw_jax.config.schema import Config
from lw_jax.errors import UserError
from lw_jax.utils import kinds, registry


def read(path: str | Path, flags: Sequence[Flag] = (), over: Sequence[str | Path] = ()) -> Config:
    """The config in a YAML file; later files override it in order, then flags.

    A stage or receiver that a later file sets to null is left out.

    Args:
        path: the file.
        flags: keys and the text of their values.
        over: files that override the first, in order.

    Raises:
        UserError: anything wrong with a file, a key or a value, in one line; or the files have a
            `sweep`.
    """
    raw, swept = files(path, over)
    if swept:
        raise UserError(
            f"sweep: {path} asks for a grid of runs, and one is wanted here; leave its sweep out"
        )
    return with_flags(raw, flags)


def files(
    path: str | Path, over: Sequence[str | Path] = ()
) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """The plain values of a YAML file, merged with overriding files, and the lists of `sweep`.

    Raises:
        UserError: a file cannot be read, or its sweep is no mapping of dotted keys to lists.
    """
    raw = yaml_files.load(path)
    for other in over:
        raw = _named_left(Config, merged(raw, yaml_files.load(other)))
    swept = raw.pop("sweep", None)
    if swept is None:
        return raw, {}
    shape = "expected a mapping of dotted keys to lists, as in {bridge.latent_dim: [64, 128]}"
    if not isinstance(swept, dict):
        raise UserError(f"sweep: {shape}; got {swept!r}")
    for key, values in swept.items():
        if not isinstance(values, list | None):
            raise UserError(f"sweep.{key}: {shape}; got {values!r}")
    return raw, {str(key): values for key, values in swept.items() if values is not None}


def with_flags(raw: Mapping[str, Any], flags: Sequence[Flag]) -> Config:
    """The config of plain values with flags applied; the plain values are not changed."""
    said: list[str] = []
    add_plugins(raw)
    values = with_new_names(Config, copy.deepcopy(dict(raw)), said)
    for key, text in flags:
        if key == "plugins":
            add_plugins({"plugins": yaml_files.loads(text, "--plugins")})
        put(Config, values, key, text, said)
    tell(said)
    return from_dict(values)


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merges plain values: mappings key by key, anything else is replaced.

    Args:
        under: values that are overridden.
        over: values that override.
    """
    found = dict(under)
    for key, value in over.items():
        below = found.get(key)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        found[key] = merged(below or {}, value) if both else value
    return found


def _named_left(kind: Any, raw: dict[str, Any]) -> dict[str, Any]:
    """Plain values without the stages and receivers that are null."""
    found = dict(raw)
    for key, inner in kinds.fields(kind).items():
        if tree.named(inner) is not None and isinstance(raw.get(key), dict):
            found[key] = {name: value for name, value in raw[key].items() if value is not None}
    return found


def from_dict(raw: Mapping[str, Any]) -> Config:
    """The `Config` of a mapping that `to_dict` made."""
    return build(Config, raw)


def build(kind: type[Any], raw: Any, where: str = "") -> Any:
    """A config dataclass from plain values.

    Args:
        kind: the dataclass.
        raw: the plain values.
        where: dotted path at the start of error messages.
    """
    if kind is Config:
        add_plugins(raw)
    raw = _prepared(kind, with_new_names(kind, raw), where)
    try:
        # JSON in strict mode: a list becomes a tuple, but "3" and true are no whole numbers.
        reader = _adapter(cast(Any, kind), registry.number_added())
        return reader.validate_json(json.dumps(raw), strict=True)
    except pydantic.ValidationError as error:
        raise UserError(_explain(kind, error, where)) from None


@cache
def _adapter(kind: Any, added: int) -> pydantic.TypeAdapter[Any]:
    """What reads a dataclass, while so many parts have been added to those of the package."""
    return pydantic.TypeAdapter(kind)


def add_plugins(raw: Any) -> None:
    """Adds the parts in a config's own files.

    Raises:
        UserError: `plugins` is no list of files, or one of them defines no part.
    """
    named = raw.get("plugins") if isinstance(raw, Mapping) else None
    if named is None:
        return
    if found := kinds.wrong(kinds.fields(Config)["plugins"], named):
        raise UserError(f"{'.'.join(map(str, ('plugins', *found[0])))}: {found[1]}")
    for path in named:
        registry.add_file(path)


def to_dict(config: Any) -> dict[str, Any]:
    """Plain values of a config with all defaults; variants that are not set are left out."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            skip = tree.is_choice(type(value))
            items = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
            return {k: plain(v) for k, v in items.items() if not (skip and v is None)}
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        return [plain(v) for v in value] if isinstance(value, tuple | list) else value

    return dict(plain(config))


def to_yaml(config: Config) -> str:
    """The resolved config as YAML: what `--print_config` prints and a run directory holds."""
    return yaml_files.dumps(to_dict(config))


def differences(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Dotted keys with different values, and both values (None: the key is missing)."""
    a, b = _flat(to_dict(old)), _flat(to_dict(new))
    keys = [*a, *(k for k in b if k not in a)]
    return {k: (a.get(k), b.get(k)) for k in keys if a.get(k) != b.get(k) or (k in a) != (k in b)}


def put(kind: Any, raw: dict[str, Any], key: str, text: str, said: list[str] | None = None) -> None:
    """Sets a dotted key in the plain values of a config dataclass.

    Optional parts on the way are created, but not stages and receivers.

    Args:
        kind: the dataclass.
        raw: its plain values.
        key: the dotted key; it may have its old name.
        text: text of the value.
        said: gets a line for each old name.

    Raises:
        UserError: unknown key, or a stage or receiver that the file does not have.
    """
    here, at = raw, kind
    *above, last = key.split(".")
    if not all((*above, last)):
        raise UserError(f"--{key}: unknown key; a key looks like bridge.latent_dim")
    names = []
    for name in above:
        name = name if tree.named(at) else new_name(at, name)
        names.append(name)
        at = _child(kind, raw, key, at, here, name)
        if not kinds.fields(at) and tree.named(at) is None:
            raise UserError(f"--{key}: unknown key; {'.'.join(names)} has none below it")
        if here.get(name) is None:
            here[name] = {}
        here = here[name]
        if not isinstance(here, dict):
            raise UserError(f"{name}: expected {kinds.describe(at)}; got {here!r}")
    last = last if tree.named(at) else new_name(at, last)
    new = ".".join([*names, last])
    if new != key and said is not None:
        said.append(f"{key} is called {new} now")
    at = _child(kind, raw, key, at, here, last)
    if dataclasses.is_dataclass(tree.named(at)):
        raise UserError(f"--{key}: a flag sets a field of one of them: --{key}.NAME.KEY")
    here[last] = _value(at, text, f"--{key}")


def _child(kind: Any, raw: Any, key: str, at: Any, here: dict[str, Any], name: str) -> Any:
    """The type of the key `name` below the type `at`, whose plain values are `here`."""
    value = tree.named(at)
    if dataclasses.is_dataclass(value) and name not in here:
        known = f"the config has {', '.join(here)}" if here else "the config has none"
        raise UserError(f"--{key}: no {name!r} there, and a flag cannot add one; {known}")
    child = value or kinds.fields(at).get(name)
    if child is None:
        held = [k for k in tree.paths(kind, raw) if _holds(raw, k) and k.endswith(f".{key}")]
        if held and "." not in key:
            raise UserError(f"--{key}: unknown key; did you mean {' or '.join(held[:4])}?")
        known_keys = sorted(tree.paths(kind, raw), key=lambda k: not _holds(raw, k))
        raise UserError(f"--{key}: unknown key; {_near(key, known_keys, kind)}")
    return child


def _holds(raw: Any, key: str) -> bool:
    """Whether the plain values set the part that the dotted key belongs to."""
    for name in key.split(".")[:-1]:
        raw = raw.get(name) if isinstance(raw, dict) else None
    return raw is not None


def _value(kind: Any, text: str, where: str) -> Any:
    """The value of a flag's text: YAML, unless the key is text (`--name=007` keeps its zeros).

    A key that is text or a list of texts takes text too (`*.jsonl`), unless it begins with `[`.
    """
    if kinds.bare(kind) is str or _text_of(kind, text):
        return None if kinds.optional(kind) and text.strip() in yaml_files.NULL else text
    return yaml_files.loads(text, where)


def _text_of(kind: Any, text: str) -> bool:
    """Whether a flag's text is text, of a key that is text or a list of texts."""
    texts = any(kinds.bare(a) is str for a in kinds.alternatives(kind))
    return texts and not text.lstrip().startswith("[")


def _prepared(kind: Any, raw: Any, where: str) -> Any:
    """Plain values with known keys only, and with whole numbers where they are wanted (`1e3`).

    Raises:
        UserError: an unknown key, or a text that is no Unicode.
    """
    for one in kinds.alternatives(kind):
        if isinstance(raw, list) == (get_origin(kinds.bare(one)) is tuple):
            return _prepared(one, raw, where)
    if isinstance(raw, list) and get_origin(kinds.bare(kind)) is tuple:
        return [_prepared(tree.at(kind, (i,)), v, f"{where}.{i}") for i, v in enumerate(raw)]
    if isinstance(raw, str) and any("\ud800" <= c <= "\udfff" for c in raw):
        raise UserError(f"{where}: expected text of Unicode characters; got {kinds.shown(raw)}")
    if isinstance(raw, float) and raw.is_integer() and kinds.wants_whole(kind):
        return int(raw)
    if not isinstance(raw, Mapping):
        return raw
    value, fields = tree.named(kind), kinds.fields(kind)
    found: dict[str, Any] = {}
    for name, below in raw.items():
        key = f"{where}.{name}" if where else str(name) or '""'
        if value is None and fields and name not in fields:
            raise UserError(f"{key}: unknown key; {_near(str(name), list(fields), kind)}")
        child = value or fields.get(str(name))
        found[name] = below if child is None else _prepared(child, below, key)
    return found


def _near(key: str, known: list[str], kind: Any) -> str:
    """A guess at what was meant, or a list of what there is."""
    last = key.rpartition(".")[2]
    same = [k for k in known if k.rpartition(".")[2] == last]
    close = difflib.get_close_matches(key, same or known, 1) or same[:1]
    if not close:
        ends = {k.rpartition(".")[2]: k for k in reversed(known)}
        close = [ends[k] for k in difflib.get_close_matches(last, list(ends), 1)]
    return f"did you mean {close[0]}?" if close else f"there are {', '.join(kinds.fields(kind))}"


def _explain(kind: Any, error: pydantic.ValidationError, where: str) -> str:
    """The first of pydantic's errors in one line."""
    found = error.errors(include_url=False)
    first, more = found[0], len(found) - 1
    path = tree.keys(kind, first["loc"])
    if path[-1:] == ("[key]",):  # of a name that the user chooses
        name = path[-2]
        complaint = kinds.wrong(get_args(kinds.bare(tree.at(kind, path[:-2])))[0], name)
        above = ".".join([*([where] if where else []), *(str(p) for p in path[:-2])])
        return f"{above}: the name {kinds.shown(name)}: {complaint[1] if complaint else 'is wrong'}"
    key = ".".join([*([where] if where else []), *(str(p) for p in path)])
    own = first.get("ctx", {}).get("error")
    if isinstance(own, UserError):
        line = str(own)
        name = line.partition(":")[0].split(".")[0]
        inside = name in kinds.fields(tree.at(kind, path))
        return f"{key}{'.' if inside else ': '}{line}" if key else line
    at = tree.at(kind, path)
    complaint = kinds.wrong(at, first["input"])
    if first["type"] == "missing":
        line = f"{key}: missing; expected {kinds.describe(at)}"
    elif complaint is not None:
        line = f"{'.'.join([key, *map(str, complaint[0])])}: {complaint[1]}"
    else:
        line = f"{key}: expected {kinds.describe(at)}; got {kinds.shown(first['input'])}"
    return line + (f" (and {more} more)" if more else "")


def _flat(value: Any, before: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {before: value}
    out: dict[str, Any] = {}
    for name, below in value.items():
        out.update(_flat(below, f"{before}.{name}" if before else name))
    return out
