"""Which programs XLA compiles meanwhile."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

import jax

_DONE = re.compile(r"Finished XLA compilation of jit\((\w+)\)")


@contextmanager
def compilations() -> Iterator[list[str]]:
    """The names of the jitted functions that are compiled inside."""
    names: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            names.extend(_DONE.findall(record.getMessage()))

    logger, listener = logging.getLogger("jax"), Listener()
    logger.addHandler(listener)
    before = jax.config.jax_log_compiles
    jax.config.update("jax_log_compiles", True)  # of all threads, which the context manager is not
    try:
        yield names
    finally:
        jax.config.update("jax_log_compiles", before)
        logger.removeHandler(listener)
