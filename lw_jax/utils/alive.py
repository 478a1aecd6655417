"""Says what goes on while nothing else is said: what is compiled, and how long it took last time.

A start loads libraries and models, traces and compiles; none of that writes anything by itself.
With `watched()` around it, a terminal never stays still for longer than `STILL` seconds: the line
that says what is being done stands at the bottom, and goes when something else is written. In a
file or a pipe, which may be data, there is no such line.

How long each program took to compile is kept beside the compiled programs (`lw_jax.utils.
program_cache`), by the name of its function and its shapes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from rich.text import Text

STILL = 1.0
"""Seconds without a word before one is said."""
FILE = "seconds.json"
KEPT = 5000
"""Programs whose times are kept; those compiled longest ago go first."""
WORTH_KEEPING = 0.5
"""Seconds; quicker ones are not said either."""
_LOGGERS = ("jax._src.interpreters.pxla", "jax._src.dispatch")
_BEGINS = re.compile(r"Compiling (\S+) with global shapes")
_ENDED = re.compile(r"Finished XLA compilation of (\S+) in ([\d.]+) sec")
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_PLAIN = re.compile(r"^jit\((.*)\)$|^jit_(.*)$")

_doing: list[str] = ["starting"]
_programs: list[Programs] = []
"""Of what is watched now."""


def doing(what: str) -> None:
    """Says what is being done from now on, for when nothing else is said."""
    _doing[0] = what


@dataclass(frozen=True)
class Compiling:
    """What stands beside a spinner while programs compile: which, and how long they took last time.

    Attributes:
        otherwise: said where that is not known.
    """

    otherwise: str

    def __rich__(self) -> Text:
        said = next((words for one in _programs if (words := one.words())), self.otherwise)
        return Text(said, no_wrap=True, overflow="ellipsis")


def name_of(program: str) -> str:
    """The name of a function, of jax's name of its program."""
    found = _PLAIN.match(program)
    return (found[1] or found[2]).strip("_") if found else program.strip("_")


class Programs(logging.Handler):
    """What is being compiled, from what jax logs, and what took how long before.

    Args:
        folder: where times are kept; None: nowhere.
        heard: the level from which on records go on to where they would have gone without this.
    """

    def __init__(self, folder: Path | None, heard: int = logging.WARNING) -> None:
        super().__init__(logging.DEBUG)
        self.heard = heard
        self.path = None if folder is None else folder / FILE
        self.before = _read(self.path)
        self.running: dict[str, tuple[float, str]] = {}
        self.took: dict[str, float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Takes in a line of jax's; anything else is passed over."""
        parent = logging.getLogger(record.name).parent
        if record.levelno >= self.heard and parent is not None:
            parent.handle(record)
        with suppress(Exception):  # nothing that is logged may stop a run
            said = record.getMessage()
            if found := _BEGINS.search(said):
                kind = hashlib.sha256(said.encode()).hexdigest()[:16]
                name = name_of(found[1])
                self.running[name] = time.monotonic(), f"{name} {kind}"
            elif found := _ENDED.search(said):
                begun = self.running.pop(name_of(found[1]), None)
                if begun is not None and float(found[2]) > WORTH_KEEPING:
                    self.took[begun[1]] = round(float(found[2]), 1)

    def words(self) -> str:
        """What has been compiled for a while, in words; "": nothing."""
        now, parts = time.monotonic(), []
        for name, (since, key) in list(self.running.items()):
            if now - since < WORTH_KEEPING:
                continue
            last = self.before.get(key)
            known = "the first time" if last is None else f"{last:g} s last time"
            parts.append(f"{name} ({now - since:.0f} s, {known})")
        return f"compiling {', '.join(parts)}" if parts else ""

    def keep(self) -> None:
        """Writes the times of this process beside those of others."""
        if self.path is None or not self.took:
            return
        others = {k: v for k, v in _read(self.path).items() if k not in self.took}
        kept = dict(list((others | self.took).items())[-KEPT:])
        part = self.path.with_name(f"{FILE}.{os.getpid()}")
        with suppress(OSError):
            part.write_text(json.dumps(kept, indent=0), encoding="utf-8")
            os.replace(part, self.path)


def _read(path: Path | None) -> dict[str, float]:
    with suppress(OSError, ValueError, RecursionError, OverflowError):
        held = {} if path is None else json.loads(path.read_text(encoding="utf-8"))
        if isinstance(held, dict):
            return {k: float(v) for k, v in held.items() if isinstance(v, int | float)}
    return {}


class Watched:
    """A text stream that knows when it was last written to, and has a line of its own at its end.

    Args:
        stream: the stream.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.RLock()
        self._own = False
        self._whole = True
        self.last = time.monotonic()

    def write(self, text: str) -> int:
        """Writes a text, in place of the line of our own if there is one."""
        with self._lock:
            if self._own:
                self._stream.write("\r\x1b[2K")
                self._own = False
            self.last = time.monotonic()
            # What is erased leaves nothing; other control sequences do not move to another column.
            plain = _CONTROL.sub(lambda found: "\r" if found[0].endswith("K") else "", text)
            if plain:
                self._whole = plain.endswith(("\n", "\r"))
            return self._stream.write(text)

    def writelines(self, lines: Any) -> None:
        """Writes each."""
        for line in lines:
            self.write(line)

    def say(self, line: str) -> None:
        """Says a line of our own, which goes again, unless the last line there is not complete."""
        with self._lock, suppress(ValueError, OSError):  # it may be closed
            if not self._own and not self._whole:
                return
            self._stream.write(f"\r\x1b[2K{line[: _columns() - 1]}")
            self._own = True
            self._stream.flush()
            self.last = time.monotonic()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stream)


def _columns() -> int:
    with suppress(OSError, ValueError):
        known = os.get_terminal_size(sys.__stdout__.fileno()).columns  # type: ignore[union-attr]
        return max(20, known or 80)
    return 80


def _folder() -> Path | None:
    named = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    return Path(named) if named and Path(named).is_dir() else None


@contextmanager
def watched(still: float = STILL) -> Iterator[None]:
    """While inside, a terminal that standard output goes to does not stay still.

    Args:
        still: seconds without a word.
    """
    stream = sys.stdout
    if isinstance(stream, Watched) or not stream.isatty():
        yield
        return
    loggers = [(one, one.level, one.propagate) for one in map(logging.getLogger, _LOGGERS)]
    heard = min(one.getEffectiveLevel() for one, _, _ in loggers)
    own, programs, ended = Watched(stream), Programs(_folder(), heard), threading.Event()
    began = time.monotonic()

    def speak() -> None:
        while not ended.wait(min(0.25, still / 4)):
            if time.monotonic() - own.last < still:
                continue
            what = programs.words() or _doing[0]
            own.say(f"... {what}, {time.monotonic() - began:.0f} s since the start")

    for logger, _, _ in loggers:
        logger.addHandler(programs)
        logger.setLevel(logging.DEBUG)
        logger.propagate = False  # what is for us alone would be written by any handler above
    voice = threading.Thread(target=speak, name="alive", daemon=True)
    sys.stdout = own
    _programs.append(programs)
    doing("starting")
    voice.start()
    try:
        yield
    finally:
        ended.set()
        voice.join(2)
        own.write("")
        with suppress(ValueError, OSError):
            own.flush()
        sys.stdout = stream
        _programs.remove(programs)
        for logger, level, propagates in loggers:
            logger.removeHandler(programs)
            logger.setLevel(level)
            logger.propagate = propagates
        programs.keep()
