"""Variants of a stage: one module per variant, found by looking into the stage's folder.

A module `lw_jax/compressors/perceiver.py` that defines a dataclass `Config` *is* the variant
`perceiver` of the stage `compressor`: a new variant is a new file, and nothing else is edited.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from types import ModuleType
from typing import Any


def variants(package: str) -> dict[str, ModuleType]:
    """The variant modules of a package, by name, in alphabetical order."""
    home = importlib.import_module(package)
    found = {}
    for info in sorted(pkgutil.iter_modules(home.__path__), key=lambda m: m.name):
        module = importlib.import_module(f"{package}.{info.name}")
        if hasattr(module, "Config"):
            found[info.name] = module
    return found


def choice(name: str, package: str, doc: str) -> type:
    """A frozen dataclass with one Optional field per variant of `package`, all None by default."""
    fields: list[Any] = [
        (variant, module.Config | None, None) for variant, module in variants(package).items()
    ]
    made = dataclasses.make_dataclass(name, fields, frozen=True)
    made.__doc__ = (
        doc
        + "\n\nArgs:\n"
        + "\n".join(
            f"    {variant}: {(module.__doc__ or '').strip().splitlines()[0]}"
            for variant, module in variants(package).items()
        )
    )
    made.__module__ = __name__
    globals()[name] = made
    return made


def chosen(options: Any) -> dict[str, Any]:
    """The variants that are set in a choice, by name."""
    return {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(options)
        if getattr(options, field.name) is not None
    }
