"""What a sender contributes: the bridge minus the best of those that read less."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from lw_jax.results.__main__ import main


def run(home: Path, name: str, right: float, seed: int = 0, other: str = "q") -> str:
    """An evaluation of 240 questions of 12 articles, of which so many are right."""
    rng, rows = np.random.default_rng(seed), []
    for i in range(240):
        said = {"f1": float(rng.random() < right), "em": 0.0, "nll": 1.0, "tokens": 2}
        row = {"id": f"{other}{i}", "context_id": f"c{i // 2}", "article": f"a{i % 12}"}
        rows.append(row | {"receivers": {"r": {"latent": said}}})
    path = home / f"{name}_{seed}"
    path.mkdir()
    (path / "metrics.json").write_text(json.dumps({"data": {"seed": 7}}))
    turned = rows[seed:] + rows[:seed]  # joined by id, not by place
    (path / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in turned))
    return str(path)


def mean(paths: str) -> float:
    found = []
    for path in paths.split(","):
        lines = (Path(path) / "predictions.jsonl").read_text().splitlines()
        found += [json.loads(line)["receivers"]["r"]["latent"]["f1"] for line in lines]
    return float(np.mean(found))


def said(words: Sequence[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert main(["reading", *words]) == 0
    return capsys.readouterr().out.splitlines()


def test_the_best_of_those_that_read_less_is_what_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    latent = ",".join(run(tmp_path, "latent", 0.7, seed) for seed in range(3))
    bytes_ = ",".join(run(tmp_path, "bytes", 0.2, seed + 10) for seed in range(3))
    table = ",".join(run(tmp_path, "table", 0.4, seed + 20) for seed in range(3))
    words = [f"bytes={bytes_}", f"latent={latent}", f"table={table}"]
    first, second, last = said(words, capsys)
    gap = mean(latent) - mean(table)
    assert first.startswith(f"r: latent {mean(latent):.3f} F1, bytes {mean(bytes_):.3f}: +")
    assert second.startswith(
        f"r: latent {mean(latent):.3f} F1, table {mean(table):.3f}: {gap:+.3f} ["
    )
    assert last.startswith(f"r: the sender contributes {gap:+.3f} [+")
    assert "(latent minus the best of these, table): communication" in last
    assert last.endswith("over 12 articles and 3 seeds.")
    low, high = (float(x) for x in last[last.index("[") + 1 : last.index("]")].split(", "))
    assert low < gap < high and high - low < 0.3


def test_an_interval_that_holds_0_is_compression(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"latent={run(tmp_path, 'latent', 0.5, 1)}", f"table={run(tmp_path, 'table', 0.5, 2)}"]
    *_, last = said(words, capsys)
    assert "the interval holds 0, so this is compression, not communication" in last
    worse = [f"latent={run(tmp_path, 'worse', 0.2, 3)}", words[1]]
    assert "less than none" in said(worse, capsys)[-1]


def test_two_seeds_have_no_interval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two = ",".join(run(tmp_path, "latent", 0.9, seed) for seed in range(2))
    *_, last = said([f"latent={two}", f"table={run(tmp_path, 'table', 0.1, 5)}"], capsys)
    assert "[" not in last and "no interval: nothing can be said" in last


def test_what_cannot_be_compared_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = f"latent={run(tmp_path, 'latent', 0.5, 1)}"
    foreign = f"table={run(tmp_path, 'foreign', 0.5, 2, 'p')}"
    for words, line in (
        ([own], "reading: give latent=RUN, the bridge's, and one or more others"),
        ([own, "table"], "reading: expected NAME=RUN or NAME=RUN,RUN,...; got 'table'"),
        ([own, own], "reading: latent is given twice"),
        ([own, f"table={tmp_path / 'gone'}"], "no metrics.json; give the directory of a finished"),
        ([own, foreign], "other rows than"),
    ):
        assert main(["reading", *words]) == 2
        assert line in capsys.readouterr().err


def test_ties_in_all_rows_are_not_certain(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of twelve articles another could differ: at most a share 1 - 0.025 ** (1 / 12) would."""
    words = [f"latent={run(tmp_path, 'latent', 0.5, 1)}", f"same={run(tmp_path, 'same', 0.5, 1)}"]
    *_, last = said(words, capsys)
    assert "contributes +0.000 [-0.265, +0.265] F1" in last


def test_a_run_is_no_several_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    latent, other = run(tmp_path, "latent", 0.5, 1), run(tmp_path, "other", 0.5, 2)
    assert main(["reading", f"latent={latent},{latent}/../latent_1", f"other={other}"]) == 2
    assert "given twice; each run stands for a seed" in capsys.readouterr().err
    assert main(["normalised", latent, latent, latent]) == 2
    assert "given twice; each run stands for a seed" in capsys.readouterr().err


def test_rows_of_one_id_are_not_joined(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    latent, other = run(tmp_path, "latent", 0.5, 1), run(tmp_path, "other", 0.5, 2)
    path = Path(other) / "predictions.jsonl"
    path.write_text(path.read_text() + path.read_text().splitlines()[0] + "\n")
    assert main(["reading", f"latent={latent}", f"other={other}"]) == 2
    assert "several of its rows have one id" in capsys.readouterr().err
