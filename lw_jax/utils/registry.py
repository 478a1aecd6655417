"""The variants of each kind of part, found by looking for files.

A module `lw_jax/compressors/perceiver.py` that defines a dataclass `Config` *is* the variant
`perceiver` of the compressors: a new variant is a new file, and nothing else is edited. Variants
can also come from outside the package:

* an installed package names one as an entry point, in the group of the folder:
  `[project.entry-points."lw_jax.compressors"]` with `mine = "my_package.mine"`;
* a config names files of its own under `plugins: [path/to/mine.py]`.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from lw_jax.errors import UserError

T = TypeVar("T")

CONFIG = "Config"
"""Name of the class that a variant's module defines."""

HANDLERS: dict[str, Callable[[str, Any, str], None]] = {}
"""Functions that add parts which are not dataclasses, by the name that a module defines (`METHOD`,
...). A function takes the variant's name, the object, and where it was defined.
"""


class Choice(Generic[T]):
    """A dataclass with one optional field for every variant of a folder, all None by default.

    A subclass names the folder and the base class of its variants' `Config`:

        class CompressorConfig(Choice[Compressor], package="lw_jax.compressors",
                               contract=Compressor): ...
    """

    package: ClassVar[str]
    contract: ClassVar[type]

    if TYPE_CHECKING:
        __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

        def __init__(self, **variants: T | None) -> None: ...

    def __init_subclass__(cls, package: str, contract: type) -> None:
        cls.package, cls.contract = package, contract
        _CHOICES.append(cls)
        cls.__annotations__ = {}
        cls.__doc__ = f"{cls.__doc__}\n\nArgs:\n"
        for name, config, about, where in _variants(package):
            _add(cls, name, config, about, where)
        dataclasses.dataclass(frozen=True)(cls)


_CHOICES: list[type[Choice[Any]]] = []
_FILES: dict[Path, ModuleType] = {}
_MADE = ("__init__ __repr__ __eq__ __hash__ __setattr__ __delattr__ __match_args__ __replace__ "
         "__dataclass_fields__ __dataclass_params__").split()  # fmt: skip
"""What `dataclass` writes into a class."""


def chosen(options: Any) -> dict[str, Any]:
    """The variants that are set in a choice, by name."""
    return {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(options)
        if getattr(options, field.name) is not None
    }


def add_file(path: str | Path) -> None:
    """Adds the variant that a Python file defines, under the file's name.

    Raises:
        UserError: there is no such file, it cannot be run, it defines no variant or one that breaks
            its contract, or the name is taken.
    """
    file = Path(path).expanduser().resolve()
    if file in _FILES:
        return
    where = f"plugins: {path}"
    if not file.is_file() or file.suffix != ".py":
        raise UserError(f"{where}: no such Python file")
    name = file.stem
    if not name.isidentifier():
        raise UserError(f"{where}: the file's name is the variant's: letters, digits and _ only")
    spec = importlib.util.spec_from_file_location(f"lw_jax_plugins.{name}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look it up there
    try:
        spec.loader.exec_module(module)
        _add_module(name, module, where)
    except BaseException as error:
        del sys.modules[spec.name]
        ended = isinstance(error, SystemExit)  # a script that is no module: what calls it goes on
        if isinstance(error, UserError) or not (ended or isinstance(error, Exception)):
            raise
        raise UserError(f"{where}: {type(error).__name__}: {error}") from error
    _FILES[file] = module


def number_added() -> int:
    """Number of Python files whose parts were added."""
    return len(_FILES)


def check_contract(config: Any, contract: type, where: str) -> None:
    """Checks that a variant's `Config` keeps the contract of its kind.

    Args:
        config: the variant's `Config`.
        contract: the base class of its kind.
        where: where it was defined, for error messages.

    Raises:
        UserError: it is no frozen dataclass, derives from another class, lacks a method, or has one
            with other parameters; says which, and what would be right.
    """
    home = f"{contract.__module__}.{contract.__name__}"
    if not (isinstance(config, type) and issubclass(config, contract)):
        raise UserError(f"{where}: {CONFIG} has to derive from {home}")
    params = getattr(config, "__dataclass_params__", None)
    if "__dataclass_fields__" not in vars(config) or params is None or not params.frozen:
        raise UserError(f"{where}: {CONFIG} has to be a @dataclass(frozen=True)")
    missing = sorted(getattr(config, "__abstractmethods__", ()))
    if missing:
        base = getattr(contract, missing[0])
        raise UserError(f"{where}: {CONFIG} lacks {missing[0]}{inspect.signature(base)}")
    fields = set(getattr(contract, "__dataclass_fields__", ()))
    own = set(getattr(config, "__dataclass_fields__", ()))
    for name, base in vars(contract).items():
        if name.startswith("_") or name in fields or not inspect.isfunction(base):
            continue
        found = inspect.getattr_static(config, name)
        if name in own or not inspect.isfunction(found):
            raise UserError(f"{where}: {name} is a method of {home}; call the field otherwise")
        wanted, got = (list(inspect.signature(f).parameters.values()) for f in (base, found))
        same = [p.name for p in got[: len(wanted)]] == [p.name for p in wanted]
        if not same or any(p.default is p.empty for p in got[len(wanted) :]):
            raise UserError(
                f"{where}: {CONFIG}.{name}{inspect.signature(found)} has other parameters than "
                f"{home}.{name}{inspect.signature(base)}"
            )


def _variants(package: str) -> Iterator[tuple[str, type, str, str]]:
    """Every variant of a package: name, config, a line about it, and where it was defined.

    Those of the folder come first, in alphabetical order, then those of installed packages.
    """
    home = importlib.import_module(package)
    for info in sorted(pkgutil.iter_modules(home.__path__), key=lambda m: m.name):
        module = importlib.import_module(f"{package}.{info.name}")
        if hasattr(module, CONFIG):
            yield info.name, module.Config, _about(module), f"{package}.{info.name}"
    for point in _entry_points(package):
        where = f"{point.value} (an entry point of {_distribution(point)})"
        try:
            found = point.load()
        except Exception as error:
            raise UserError(f"{where}: {type(error).__name__}: {error}") from error
        config = getattr(found, CONFIG, None) if isinstance(found, ModuleType) else found
        about = _about(found if isinstance(found, ModuleType) else config)
        yield point.name, config, about, where  # type: ignore[misc]


@cache
def _entry_points(group: str) -> tuple[importlib.metadata.EntryPoint, ...]:
    found = importlib.metadata.entry_points(group=group)
    return tuple(sorted(found, key=lambda point: point.name))


def added_entry_points(group: str) -> Iterator[tuple[str, Any, str]]:
    """Name, object and place of what installed packages add to a group that is not a choice."""
    for point in _entry_points(group):
        where = f"{point.value} (an entry point of {_distribution(point)})"
        try:
            yield point.name, point.load(), where
        except Exception as error:
            raise UserError(f"{where}: {type(error).__name__}: {error}") from error


def _distribution(point: importlib.metadata.EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "an installed package"


def _add_module(name: str, module: ModuleType, where: str) -> None:
    """Adds what a module from outside the package defines."""
    config = getattr(module, CONFIG, None)
    handled = {key: getattr(module, key) for key in HANDLERS if hasattr(module, key)}
    if config is None and not handled:
        known = ", ".join([CONFIG, *HANDLERS])
        raise UserError(f"{where}: it defines none of {known}, so it is no variant of anything")
    if config is not None:
        kinds = [c for c in _CHOICES if isinstance(config, type) and issubclass(config, c.contract)]
        if not kinds:
            bases = ", ".join(f"{c.contract.__module__}.{c.contract.__name__}" for c in _CHOICES)
            raise UserError(f"{where}: {CONFIG} has to derive from one of {bases}")
        for kind in kinds:
            _add(kind, name, config, _about(module), where)
            for key in _MADE:
                if key in vars(kind):
                    delattr(kind, key)
            dataclasses.dataclass(frozen=True)(kind)
    for key, value in handled.items():
        HANDLERS[key](name, value, where)


def _add(kind: type[Choice[Any]], name: str, config: Any, about: str, where: str) -> None:
    """Adds a field for one variant."""
    if name in kind.__annotations__:
        raise UserError(f"{where}: the name {name!r} is taken in {kind.package}; rename it")
    check_contract(config, kind.contract, where)
    kind.__annotations__[name] = config | None
    setattr(kind, name, None)
    kind.__doc__ = f"{kind.__doc__}    {name}: {about}\n"


def _about(found: Any) -> str:
    """The first line of a docstring."""
    lines = (inspect.getdoc(found) or "").strip().splitlines()
    return lines[0] if lines else "(without a docstring)"
