"""The benchmark of docs/performance.md: its page, and that every part runs on a CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.run import BEGIN, END, PAGE, WAYS, page, spliced

ROOT = Path(__file__).parents[1]
ROW = {"first_s": 3.0, "ms": 50.0, "min": 49.0, "max": 52.0, "calls": 12}
FOUND = {
    "preset": "h200",
    "device": "NVIDIA H200",
    "devices": 1,
    "cores": 16,
    "machine": "x86_64",
    "date": "2026-12-01",
    "python": "3.12.1",
    "versions": {"jax": "0.11.2"},
    "lw_jax": "0.1",
    "parts": {
        "step": {
            "lw_jax": {"step": ROW},
            "torch, plain": {"failed": "out of memory"},
            "torch, tuned and compiled": {"step": ROW | {"ms": 40.0}},
        },
        "decode": {"lw_jax": {"b1_per_token": {"ms": 4.5, "peak_gb": 15.0}}},
        "start": {"lw_jax": {"cold": {"s": 40.0, "cpu_s": 60.0}, "warm": {"failed": "x"}}},
    },
}


def test_the_page_compares_within_one_run() -> None:
    text = page(FOUND)
    assert "1 x NVIDIA H200" in text
    assert "| step | lw_jax | 50.00 | 49.00 to 52.00 | 3.0 |  | 1.25 |" in text
    assert "failed: out of memory" in text
    assert "ratio to torch, tuned and compiled" in text
    assert "| b1_per_token | lw_jax | 4.50 |  |  | 15.0 | 1.00 |" in text  # it has no rival there
    assert "| cold | 40.0 | 60.0 |" in text


def test_what_stands_around_the_tables_stays() -> None:
    before = PAGE.read_text()
    once = spliced(before, "first")
    assert spliced(once, "second") == spliced(before, "second")
    assert once.split(BEGIN)[0] == before.split(BEGIN)[0]
    assert once.split(END)[1] == before.split(END)[1]


@pytest.mark.slow
def test_a_smoke_run_of_every_part(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    command = [sys.executable, "-m", "benchmarks.run", "--preset", "smoke", "--out", str(out)]
    subprocess.run(command, cwd=ROOT, check=True)
    found = json.loads(out.read_text())
    assert set(found["parts"]) == set(WAYS)
    assert {"step", "decode", "handoff", "start"} <= set(found["parts"])
    assert found["parts"]["step"]["lw_jax"]["step"]["ms"] > 0
    start = found["parts"]["start"]["lw_jax"]
    assert start["warm"]["cpu_s"] < start["cold"]["cpu_s"]
    assert "ratio to lw_jax" in page(found)
