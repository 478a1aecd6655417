"""Small files: whatever is in them, they are read, or one line names the file."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lw_jax.errors import UserError
from lw_jax.evaluate import mean_latent
from lw_jax.evaluate.metrics.base import Prediction
from lw_jax.evaluate.prediction_cache import PredictionCache
from lw_jax.evaluate.relay import Written
from lw_jax.models.dims import ModelDims
from lw_jax.results.record import record_of
from lw_jax.runs import receiver_rms, statistics
from lw_jax.runs.directory import read_config, read_finished
from lw_jax.train.diagnostics import Journal, fired
from lw_jax.utils import files

CONFIG = """
name: tiny
sender: {path: s}
receivers: {reader: {path: r}}
data: {facts: {levels: [1]}}
bridge:
  latent_dim: 8
  source: {hidden_states: {layers: [1]}}
  compressor: {perceiver: {slots: 4, width: 16, heads: 2, depth: 1}}
  reader: {soft_tokens: {}}
objectives: {answer_ce: {}}
stages: {fit: {train: {steps: 2}}}
"""
PRINTS = {"reader": "abc"}
IDENTITY = {"config": {"seed": 1}}
LINE = {"stage": "fit", "step": 1, "kind": "train", "loss": 1.0, "seconds_per_step": 0.1}
MOMENTS = {"source": (np.float64(3), np.ones((1, 4)), np.ones((1, 4)))}


def read_statistics(home: Path) -> None:
    statistics.check(home / "calibration/c.npz")
    statistics.load(home / "calibration/c.npz", IDENTITY)


def rewind(home: Path) -> None:
    Journal(home / "diagnostics.jsonl", "fit").rewind(1)
    fired(home / "diagnostics.jsonl")


READERS: dict[str, Callable[[Path], Any]] = {
    "config.yaml": read_config,
    "finished.json": read_finished,
    "receivers.json": lambda home: receiver_rms.load(home, PRINTS, {}),
    "mean_latent.npz": lambda home: mean_latent.load(home, "key"),
    "calibration/c.npz": read_statistics,
    "calibration/c.part.npz": lambda h: statistics.load_part(h / "calibration/c.npz", IDENTITY),
    "diagnostics.jsonl": rewind,
    "partial/reader.latent.json": lambda h: PredictionCache(h / "partial", "k").load(
        "reader", "latent"
    ),
    "partial/sender.json": lambda home: PredictionCache(home / "partial", "k").load_written(),
    "metrics.json": record_of,
}


SLOW = ("metrics.json", "config.yaml")
"""Files that take longer to read, of which fewer are tried."""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A directory with every small file that a run has."""
    (tmp_path / "config.yaml").write_text(CONFIG)
    files.write_json(tmp_path / "finished.json", {"fit": 1.5})
    dims = {"reader": ModelDims(4, 2, 1, 4, 1.0, (1.0, 2.0), (1.0, 1.0))}
    receiver_rms.save(tmp_path, dims, PRINTS)
    mean_latent.save(tmp_path, "key", np.ones((3, 4), np.float32))
    path = tmp_path / "calibration/c.npz"
    statistics.save(path, MOMENTS, IDENTITY)
    statistics.save_part(path, MOMENTS, 3, IDENTITY)
    Journal(tmp_path / "diagnostics.jsonl", "fit").write(1, "train", {"loss": 1.0})
    cache = PredictionCache(tmp_path / "partial", "k")
    cache.save("reader", "latent", [Prediction("text", 1.5, 2, 0, True, None, 3, 4)], 0.5)
    cache.save_written(Written(("text",), 0.5))
    files.write_json(tmp_path / "metrics.json", {"stage": "report"})
    return tmp_path


def damages(content: bytes, seed: int, count: int) -> Iterator[bytes]:
    """Cut, empty, of another type, not UTF-8, garbled, and with single bits flipped."""
    draw = random.Random(seed)
    yield from (
        b"",
        b"[]",
        b"null",
        b"3",
        b'"x"',
        b"{}",
        b'{"a": 1}',
        b'{"reader": 3}',
        b"\xff\xfe",
    )
    yield from (
        b'{"reader": 3}',
        b"[" * 5_000,
        b"PK\x03\x04garbage",
        draw.randbytes(300),
        b"\0" * 50,
    )
    for _ in range(count):
        yield content[: draw.randrange(len(content))]
        flipped = bytearray(content)
        flipped[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        yield bytes(flipped)


@pytest.mark.parametrize("name", READERS)
def test_no_content_of_a_small_file_is_a_traceback(
    name: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, read = run / name, READERS[name]
    if name != "metrics.json":
        read(run)  # as it was written
    content = path.read_bytes()
    for damage in damages(content, len(name), 2 if name in SLOW else 20):
        path.write_bytes(damage)
        try:
            read(run)
        except UserError as error:
            said = str(error)
            assert "\n" not in said
            assert str(path) in said or "another" in said or "measured with" in said, said
            assert len(said) < 600
    if name.startswith("partial") or name == "mean_latent.npz":
        said = capsys.readouterr().out.splitlines()
        assert said and all(f"{path} is damaged (" in line for line in said)


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, {"a": 1})
    with pytest.MonkeyPatch.context() as patch:

        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        patch.setattr(os, "replace", full)
        with pytest.raises(OSError, match="No space"):
            files.write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("0", 0),
        ("12", 12),
        ("07", None),
        ("\u00b2", None),
        ("\u0663", None),
        ("-1", None),
        ("", None),
    ],
)
def test_only_what_a_number_is_written_as_is_one(name: str, number: int | None) -> None:
    assert files.number_of(name) == number
