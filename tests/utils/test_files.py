"""Small files: whatever is in them, they are read, or one line names the file."""

from __future__ import annotations

import json
import os
import random
import stat
import subprocess
import sys
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
from lw_jax.runs import history, receiver_rms, statistics
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
    "partial/reader.latent.json": lambda h: PredictionCache(h / "partial", "k", 1).load(
        "reader", "latent"
    ),
    "partial/sender.json": lambda home: PredictionCache(home / "partial", "k", 1).load_written(),
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
    cache = PredictionCache(tmp_path / "partial", "k", 1)
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


def test_links_and_pipes_stay_what_they_are(tmp_path: Path) -> None:
    link, pipe = tmp_path / "link", tmp_path / "pipe"
    link.symlink_to("kept/real.txt")
    (tmp_path / "kept").mkdir()
    for text in ("one", "two"):
        files.write_text(link, text)
        assert link.is_symlink() and (tmp_path / "kept/real.txt").read_text() == text
    os.mkfifo(pipe)
    end = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        files.write_text(pipe, "three")
        assert os.read(end, 99) == b"three"
    finally:
        os.close(end)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert {p.name for p in tmp_path.iterdir()} == {"kept", "link", "pipe"}


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


WHOLE = {"text": "a", "nll": 1.0, "tokens": 2, "first_rank": 0, "argmax": True, "same": None} | {
    "columns": 3,
    "wire_bytes": 4,
    "nats": {},
    "ended": "eos",
    "end_nll": 0.0,
}
ROW = {"key": "k", "seconds": 1.0, "rows": [WHOLE]}


@pytest.mark.parametrize(
    "change",
    [
        {"rows": []},
        {"rows": [WHOLE, WHOLE]},
        {"rows": {"a": WHOLE}},
        {"rows": [3]},
        {"seconds": "1"},
        {"seconds": None},
        *({"rows": [WHOLE | {key: value}]} for key, value in {"text": 3, "nll": "x"}.items()),
        *({"rows": [WHOLE | {key: None}]} for key in ("nll", "tokens", "nats", "columns")),
        {"rows": [WHOLE | {"more": 1}]},
        {"rows": [{"text": "a"}]},
    ],
)
def test_predictions_that_are_not_whole_are_made_again(
    change: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = PredictionCache(tmp_path, "k", 1)
    path = tmp_path / "reader.latent.json"
    path.write_text(json.dumps(ROW))
    assert cache.load("reader", "latent") is not None
    path.write_text(json.dumps(ROW | change))
    assert cache.load("reader", "latent") is None
    assert f"{path} is damaged (" in capsys.readouterr().out


@pytest.mark.parametrize("texts", [[], ["a", "b"], [3], "a", {"a": "b"}])
def test_texts_that_are_not_whole_are_written_again(texts: Any, tmp_path: Path) -> None:
    cache = PredictionCache(tmp_path, "k", 1)
    (tmp_path / "sender.json").write_text(json.dumps({"key": "k", "seconds": 1, "texts": texts}))
    assert cache.load_written() is None


@pytest.mark.parametrize(
    "slots",
    [
        np.full((3, 4), np.nan, np.float32),
        np.ones((3, 4)),
        np.ones(4, np.float32),
        np.array([["a"]]),
        np.float32(1),
    ],
)
def test_mean_slots_that_are_no_numbers_are_measured_anew(
    slots: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mean_latent.save(tmp_path, "key", slots)
    assert mean_latent.load(tmp_path, "key") is None
    assert "is damaged (its slots are no finite float32" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("key", "value"),
    [("source/mean", np.full((1, 4), np.inf)), ("source/std", np.array([["a"]]))],
)
def test_statistics_that_are_no_numbers_are_damaged(key: str, value: Any, tmp_path: Path) -> None:
    path = tmp_path / "c.npz"
    statistics.save(path, MOMENTS, IDENTITY)
    held = dict(np.load(path)) | {key: value}
    files.write_npz(path, held)
    with pytest.raises(UserError, match=f"is damaged .{key} is not all finite numbers"):
        statistics.load(path, IDENTITY)


@pytest.mark.parametrize("error", [KeyError("source/mean"), ValueError("a would be [3], not [4]")])
def test_statistics_that_do_not_fit_are_damaged(error: Exception, tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=r"c.npz is damaged .*it is measured anew"),
        statistics.used(tmp_path / "c.npz"),
    ):
        raise error


def test_a_line_after_one_that_was_cut_stands_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"a": 1}\n{"b": ')
    files.append_line(path, {"c": 3})
    files.append_line(path, {"d": "\udcff"})
    found, bad = files.read_lines(path)
    assert (found, bad) == ([{"a": 1}, {"c": 3}, {"d": "\udcff"}], 1)


def test_a_line_that_does_not_fit_leaves_none(tmp_path: Path) -> None:
    """On a disk that is full a part of a line is written."""
    path = tmp_path / "lines.jsonl"
    files.append_line(path, {"a": 1})
    held, code = path.read_bytes(), "import sys; from pathlib import Path; "
    code += "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); "
    code += "from lw_jax.utils.files import append_line; "
    code += "append_line(Path(sys.argv[1]), {'b': 'x' * 2000})"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, check=False)
    assert b"File too large" in done.stderr
    assert path.read_bytes() == held


def test_a_history_that_cannot_be_written_costs_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / history.FILE).mkdir()
    history.add(tmp_path / "run", {"run": "a"}, history.Call())
    assert capsys.readouterr().out.startswith(f"WARNING {tmp_path / history.FILE}: no line was")


def test_what_is_no_file_stays_what_it_is(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE) as reader:
        files.write_bytes(pipe, b"a message")
        assert reader.communicate()[0] == b"a message"
    assert pipe.is_fifo()
    with pytest.raises(IsADirectoryError) as raised:
        files.write_bytes(tmp_path, b"")
    assert raised.value.filename == str(tmp_path)


def test_a_number_that_no_float_holds_is_damage(tmp_path: Path) -> None:
    """It would be met much later, by what draws or adds it."""
    path = tmp_path / "a.json"
    path.write_text('{"a": 1%s}' % ("0" * 400))
    with pytest.raises(UserError, match=r"a.json is damaged .a whole number of 401 digits"):
        files.read_json(path, dict)
    path.write_text('{"a": 1%s}\n{"a": 2}\n' % ("0" * 400))
    assert files.read_lines(path) == ([{"a": 2}], 1)
