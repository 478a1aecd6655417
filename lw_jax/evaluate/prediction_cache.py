"""Predictions of finished methods on disk, so that a killed evaluation goes on at the next one."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lw_jax.evaluate.metrics.base import Prediction
from lw_jax.evaluate.relay import Written
from lw_jax.utils.files import NUMBER, DamagedFileError, damaged, fits, read_json, write_text

_ADVICE = "the method is run again"
_ROW = {
    "text": str,
    "nll": NUMBER,
    "tokens": int,
    "first_rank": int,
    "argmax": bool,
    "same": (bool, type(None)),
    "columns": int,
    "wire_bytes": int,
    "nats": {...: NUMBER},
    "ended": str,
    "end_nll": NUMBER,
}
"""The form of a prediction in a file."""


def _say(damage: DamagedFileError) -> None:
    print(damage)


@dataclass(frozen=True)
class PredictionCache:
    """A folder with one file per receiver and method.

    Attributes:
        folder: the folder.
        key: names the evaluation that the files belong to; those of another one are not read.
        rows: how many it asks.
    """

    folder: Path
    key: str
    rows: int

    def load(self, receiver: str, method: str) -> tuple[list[Prediction], float] | None:
        """Predictions and seconds of a finished method, or None."""
        path = self._path(receiver, method)
        held = self._held(path)
        if held is None:
            return None
        if not fits(held, {"rows": [_ROW], "seconds": NUMBER}) or len(held["rows"]) != self.rows:
            _say(damaged(path, f"not {self.rows} whole predictions", _ADVICE))
            return None
        try:
            return [Prediction(**row) for row in held["rows"]], float(held["seconds"])
        except TypeError as error:  # a field too many
            _say(damaged(path, f"{type(error).__name__}: {error}", _ADVICE))
            return None

    def save(self, receiver: str, method: str, said: Sequence[Prediction], seconds: float) -> None:
        """Keep a finished method, whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {"key": self.key, "seconds": seconds, "rows": [asdict(p) for p in said]}
        write_text(self._path(receiver, method), json.dumps(content, ensure_ascii=False))

    def load_written(self) -> Written | None:
        """What the sender wrote for `relay`, or None."""
        path = self.folder / "sender.json"
        held = self._held(path)
        if held is None:
            return None
        if not fits(held, {"texts": [str], "seconds": NUMBER}) or len(held["texts"]) != self.rows:
            _say(damaged(path, f"not {self.rows} texts", _ADVICE))
            return None
        return Written(tuple(held["texts"]), float(held["seconds"]))

    def save_written(self, written: Written) -> None:
        """Keep what the sender wrote."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {"key": self.key, **asdict(written)}
        write_text(self.folder / "sender.json", json.dumps(content, ensure_ascii=False))

    def remove(self) -> None:
        """Once the whole is written, the parts go."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _held(self, path: Path) -> dict[str, Any] | None:
        """What a file holds for this evaluation; None: nothing, or it is damaged, which is said."""
        if not path.is_file():
            return None
        try:
            held = read_json(path, dict, _ADVICE)
        except DamagedFileError as damage:
            _say(damage)
            return None
        return held if held.get("key") == self.key else None

    def _path(self, receiver: str, method: str) -> Path:
        return self.folder / f"{receiver}.{method}.json"


def key_of(*parts: Any) -> str:
    """A digest of JSON-like values that decide an evaluation's predictions."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
