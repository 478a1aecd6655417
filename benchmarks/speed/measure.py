"""Times of a call: a median after warm-up, each call waited for."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def times(call: Callable[[], Any], wait: Callable[[Any], Any], warm: int, count: int) -> dict:
    """Calls something, and says how long it took.

    Args:
        call: what is measured.
        wait: waits for what it returned.
        warm: calls that are not counted, besides the first.
        count: calls that are.

    Returns:
        `first_s`, the first call with its compilation, and `ms`, `min`, `max` of the others.
    """
    began = time.perf_counter()
    wait(call())
    first = time.perf_counter() - began
    for _ in range(warm):
        wait(call())
    took = []
    for _ in range(count):
        began = time.perf_counter()
        wait(call())
        took.append((time.perf_counter() - began) * 1e3)
    return {
        "first_s": round(first, 3),
        "ms": round(statistics.median(took), 4),
        "min": round(min(took), 4),
        "max": round(max(took), 4),
        "calls": count,
    }


def compiled(
    calls: dict[Any, tuple[Any, tuple[Any, ...], dict[str, Any]]],
    lowered_all: Callable[[], None] | None = None,
) -> Any:
    """Programs that are compiled side by side, by name, and the seconds that each took.

    Args:
        calls: a jitted function, its arguments, its static arguments.
        lowered_all: called before they are compiled, when all are traced and lowered.
    """
    lowered = {at: f.lower(*args, **static) for at, (f, args, static) in calls.items()}
    if lowered_all is not None:
        lowered_all()

    def one(at: Any) -> tuple[Any, float]:
        began = time.perf_counter()
        return lowered[at].compile(), round(time.perf_counter() - began, 2)

    with ThreadPoolExecutor() as pool:
        done = dict(zip(lowered, pool.map(one, lowered), strict=True))
    return {at: x[0] for at, x in done.items()}, {at: x[1] for at, x in done.items()}
