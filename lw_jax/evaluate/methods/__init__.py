"""What can stand in the message's place of the receiver's sequence: one file per method.

The rest of the sequence, scoring and decoding are the same for all (`lw_jax.receiver.answer`). What
a method says of itself is in `base.py`; a method from outside the package is added by `register`.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import cache
from typing import Any

from lw_jax.errors import UserError
from lw_jax.evaluate.methods.base import Family, Method
from lw_jax.utils.registry import HANDLERS, added_entry_points

CONTRACT = "lw_jax/evaluate/methods/base.py"
WHOSE = (None, "own", "other", "near")
"""Whose latent a row can be given (`Method.latent`)."""


def methods() -> dict[str, Method]:
    """All methods by name, in the order of the table."""
    held = _known()[0]
    return dict(sorted(held.items(), key=lambda item: item[1].order))


def families() -> dict[str, Family]:
    """Families by prefix."""
    return dict(_known()[1])


def method(name: str) -> Method:
    """The method of that name.

    Raises:
        UserError: there is none; names those there are.
    """
    held, made = _known()
    if name in held:
        return held[name]
    for prefix, family in made.items():
        if name.startswith(prefix):
            return family.make(name.removeprefix(prefix))
    known = ", ".join([*methods(), *(f"{prefix}<...>" for prefix in made)])
    raise UserError(f"methods: unknown {name!r}; one of {known}")


def is_method(name: str) -> bool:
    """Whether a method has that name, or the names of a family begin like it."""
    held, made = _known()
    return name in held or any(name.startswith(prefix) for prefix in made)


def default_methods() -> tuple[str, ...]:
    """Run where none is named."""
    return tuple(name for name, one in methods().items() if one.default)


def controls() -> tuple[str, ...]:
    """Always run with `latent`: without them its figure says nothing."""
    return tuple(name for name, one in methods().items() if one.control)


def in_order(names: Any) -> list[str]:
    """Names in the order of the table; a family's as they were given."""
    place = {name: i for i, name in enumerate(methods())}
    return sorted(dict.fromkeys(names), key=lambda n: (method(n).order, place.get(n, -1)))


def register(name: str, entry: Method | Family, where: str) -> None:
    """Add a method, or a family of them.

    Args:
        name: of the method; of a family that of its file, which stands for nothing.
        entry: what the file defines.
        where: the file, for messages.

    Raises:
        UserError: it does not keep the contract, or its name is taken.
    """
    _add(*_known(), name, entry, where)


def _add(
    held: dict[str, Method], made: dict[str, Family], name: str, entry: Any, where: str
) -> None:
    match entry:
        case Method():
            _takes(entry.message, ("ctx", "batch", "latent"), "message", where)
            _takes(entry.wire_bytes, ("sent",), "wire_bytes", where)
            if not isinstance(entry.order, int) or entry.latent not in WHOSE:
                raise UserError(
                    f"{where}: METHOD needs order, a number, and latent None, 'own', 'other' or "
                    f"'near'; got {entry.order!r} and {entry.latent!r} ({CONTRACT})"
                )
            if entry.cut is not None:
                _takes(entry.cut, ("row",), "cut", where)
            if entry.prepare is not None:
                _takes(entry.prepare, ("ctx", "batch"), "prepare", where)
            if name in held:
                raise UserError(f"{where}: there is a method {name!r} already; rename the file")
            held[name] = entry
        case Family():
            _takes(entry.make, ("name",), "make", where)
            if entry.prefix in made:
                raise UserError(f"{where}: there is a family {entry.prefix!r} already")
            made[entry.prefix] = entry
        case _:
            raise UserError(
                f"{where}: expected METHOD = Method(...) or FAMILY = Family(...), got a "
                f"{type(entry).__name__} ({CONTRACT})"
            )


def _takes(function: Any, parameters: tuple[str, ...], field: str, where: str) -> None:
    """Whether a function can be called with so many arguments.

    Raises:
        UserError: it cannot.
    """
    wanted = f"{field}({', '.join(parameters)})"
    if not callable(function):
        raise UserError(f"{where}: {field} has to be a function, {wanted} ({CONTRACT})")
    signature = inspect.signature(function)
    try:
        signature.bind(*parameters)
    except TypeError:
        raise UserError(
            f"{where}: {field}{signature} has other parameters than {wanted} ({CONTRACT})"
        ) from None


@cache
def _known() -> tuple[dict[str, Method], dict[str, Family]]:
    """Methods by name and families by prefix: those of this folder, then of installed packages."""
    held: dict[str, Method] = {}
    made: dict[str, Family] = {}
    for info in sorted(pkgutil.iter_modules(__path__), key=lambda m: m.name):
        if info.name == "base":
            continue
        where = f"{__name__}.{info.name}"
        defined = vars(importlib.import_module(where))
        _add(held, made, info.name, defined.get("METHOD", defined.get("FAMILY")), where)
    for name, found, where in added_entry_points(__name__):
        entry = found
        if inspect.ismodule(found):
            entry = vars(found).get("METHOD", vars(found).get("FAMILY"))
        _add(held, made, name, entry, where)
    return held, made


HANDLERS |= {"METHOD": register, "FAMILY": register}
