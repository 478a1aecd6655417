"""Metrics: one file each, found by looking into this folder (`base.py` says what they are).

Files without a metric are what metrics are made of: SQuAD's normalisation, numbers, names, nouns.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Sequence
from functools import cache
from typing import Any

from lw_jax.errors import UserError
from lw_jax.evaluate.metrics.base import Metric
from lw_jax.utils.registry import HANDLERS, added_entry_points

CONTRACT = "lw_jax/evaluate/metrics/base.py"


def metrics() -> dict[str, Metric]:
    """All metrics by name, in order."""
    return dict(sorted(_known().items(), key=lambda item: item[1].order))


def columns() -> list[Metric]:
    """Those of the table on the terminal, in its order."""
    shown = [(m.column, m) for m in metrics().values() if m.column is not None]
    return [metric for _, metric in sorted(shown, key=lambda pair: pair[0])]


def register(name: str, entry: Metric | Sequence[Metric], where: str) -> None:
    """Add a metric, or several that are measured together.

    Args:
        name: of the file.
        entry: what it defines.
        where: the file, for messages.

    Raises:
        UserError: it does not keep the contract, or its name is taken.
    """
    _add(_known(), entry, where)


def _add(held: dict[str, Metric], entry: Any, where: str) -> None:
    every = entry if isinstance(entry, tuple | list) else (entry,)
    for metric in every:
        if not isinstance(metric, Metric):
            raise UserError(
                f"{where}: expected METRIC = Metric(...) or METRICS = (Metric(...), ...), got a "
                f"{type(metric).__name__} ({CONTRACT})"
            )
        if metric.name in held:
            raise UserError(
                f"{where}: there is a metric {metric.name!r} already; name it otherwise"
            )
        if (metric.per_row is None) == (metric.whole is None):
            raise UserError(
                f"{where}: metric {metric.name!r} needs per_row(rows) or whole(rows), one of them "
                f"({CONTRACT})"
            )
        for field in ("per_row", "whole", "applies"):
            function = getattr(metric, field)
            if function is not None:
                _takes_rows(function, field, where)
        held[metric.name] = metric


def _takes_rows(function: Any, field: str, where: str) -> None:
    """Whether a function can be called with rows alone.

    Raises:
        UserError: it cannot.
    """
    if not callable(function):
        raise UserError(f"{where}: {field} has to be a function, {field}(rows) ({CONTRACT})")
    signature = inspect.signature(function)
    try:
        signature.bind("rows")
    except TypeError:
        raise UserError(
            f"{where}: {field}{signature} has other parameters than {field}(rows) ({CONTRACT})"
        ) from None


@cache
def _known() -> dict[str, Metric]:
    """Metrics by name: those of this folder, then of installed packages."""
    held: dict[str, Metric] = {}
    for info in sorted(pkgutil.iter_modules(__path__), key=lambda m: m.name):
        where = f"{__name__}.{info.name}"
        defined = vars(importlib.import_module(where))
        for key in ("METRIC", "METRICS"):
            if key in defined:
                _add(held, defined[key], where)
    for _, found, where in added_entry_points(__name__):
        entry = found
        if inspect.ismodule(found):
            entry = vars(found).get("METRIC", vars(found).get("METRICS"))
        _add(held, entry, where)
    return held


HANDLERS |= {"METRIC": register, "METRICS": register}
