"""Arrays by key, in host memory and in a file, each up to so many bytes.

A file is an SQLite database of one table; every array has a checksum. What is damaged is told, and
made again: it only ever holds what can be computed.
"""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from lw_jax.errors import UserError, said

TABLE = """
CREATE TABLE IF NOT EXISTS arrays
(key BLOB PRIMARY KEY, dtype TEXT, shape TEXT, bytes INTEGER, checksum INTEGER, content BLOB)
"""
LARGEST = 10**9
"""Bytes of the largest array in a file; SQLite holds no larger ones."""
PATIENCE = 60.0
"""Seconds to wait for another run that writes to the same file."""


class Room:
    """Bytes that may be kept, shared by several `Kept`.

    Args:
        memory: bytes in host memory.
        disk: bytes in files.
    """

    def __init__(self, memory: int, disk: int) -> None:
        self.memory, self.disk = memory, disk


class Kept:
    """Arrays by key. Once there is no room, no other is taken in: rows come round in turn, and what
    was used least lately would be the next that is needed.

    Args:
        path: the file, made when something is put there; a file that is there is used.
        room: how much may be kept.
        say: is told in one line of damage.

    Raises:
        UserError: the file cannot be opened or written.
    """

    def __init__(self, path: Path, room: Room, say: Callable[[str], None]) -> None:
        self.path, self.room, self.say = path, room, say
        self._held: dict[bytes, np.ndarray] = {}
        self._file: sqlite3.Connection | None = None
        if path.exists():
            self._open()

    def get(self, key: bytes) -> np.ndarray | None:
        """The array of a key; None: it is not there."""
        found = self._held.get(key)
        if found is None and self._file is not None:
            found = self._read(key)
            if found is not None:
                self._hold(key, found)
        return found

    def put(self, key: bytes, array: np.ndarray) -> None:
        """Keeps an array, where there is room; what is there already stays as it is."""
        if self.get(key) is not None:
            return
        self._hold(key, array)
        if array.nbytes > min(self.room.disk, LARGEST):
            return
        if self._file is None:
            self._open()
        content = array.tobytes()
        row = key, array.dtype.name, json.dumps(array.shape), len(content), zlib.crc32(content)
        assert self._file is not None
        with self._trying():
            self._file.execute("INSERT OR IGNORE INTO arrays VALUES (?,?,?,?,?,?)", (*row, content))
            self.room.disk -= array.nbytes

    def commit(self) -> None:
        """Puts into the file what was kept since: a process that is killed then loses none."""
        if self._file is not None:
            with self._trying():
                self._file.commit()

    def close(self) -> None:
        """Commits, and closes the file."""
        self.commit()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _hold(self, key: bytes, array: np.ndarray) -> None:
        if array.nbytes <= self.room.memory:
            self.room.memory -= array.nbytes
            self._held[key] = array

    def _open(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._connect()
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError as error:
                self._remove(error)
                self._connect()
        except (OSError, sqlite3.Error) as error:
            raise UserError(f"{self.path}: cannot be opened: {said(error)}") from None

    def _connect(self) -> None:
        file = sqlite3.connect(self.path, timeout=PATIENCE, check_same_thread=False)
        try:
            file.execute("PRAGMA page_size = 65536")
            file.execute("PRAGMA synchronous = OFF")  # a lost file is made again
            file.execute(TABLE)
            ((held,),) = file.execute("SELECT TOTAL(bytes) FROM arrays")
        except sqlite3.Error:
            file.close()
            raise
        self._file = file
        self.room.disk -= int(held)

    def _read(self, key: bytes) -> np.ndarray | None:
        assert self._file is not None
        asked = "SELECT dtype, shape, checksum, content FROM arrays WHERE key = ?"
        with self._trying():
            with closing(self._file.execute(asked, (key,))) as rows:
                row = rows.fetchone()
            if row is None:
                return None
            dtype, shape, checksum, content = row
            if zlib.crc32(content) == checksum:
                return np.frombuffer(content, jnp.dtype(dtype)).reshape(json.loads(shape))
            self.say(f"{self.path}: an array is damaged; it is made again")
            self._file.execute("DELETE FROM arrays WHERE key = ?", (key,))
        return None

    @contextmanager
    def _trying(self) -> Iterator[None]:
        """Goes on without the file where it is damaged, or cannot be written."""
        try:
            yield
        except sqlite3.OperationalError as error:
            self.say(f"{self.path}: {said(error)}; nothing more is kept in files")
            self.room.disk = 0
        except (sqlite3.DatabaseError, TypeError, ValueError) as error:
            if self._file is not None:
                with suppress(sqlite3.Error):
                    self._file.close()
                self._file = None
            self._remove(error)

    def _remove(self, error: Exception) -> None:
        self.say(f"{self.path} is damaged ({said(error, 100)}); what it held is made again")
        for end in ("", "-journal"):
            Path(f"{self.path}{end}").unlink(missing_ok=True)
