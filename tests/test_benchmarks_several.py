"""The benchmark of several devices beside one: what it counts, and that it runs on CPUs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.several import WAYS, _process, beside_one, moved

ROOT = Path(__file__).parents[1]


def test_what_several_gain_is_beside_one() -> None:
    ways = {
        "step, one": {"step": {"rows_per_s": 30.0}},
        "step, fsdp": {"step": {"rows_per_s": 57.0}},
        "step, data": {"failed": "out of memory"},
        "decode, one": {"b1_per_token": {"ms": 6.0}, "b1": {"ms": 700.0}},
        "decode, tensor": {"b1_per_token": {"ms": 4.0}, "b1": {"ms": 500.0}},
    }
    assert beside_one(ways, 2) == {
        "step, fsdp": {"efficiency": 0.95},
        "decode, tensor": {"b1 times as quick": 1.5},
    }
    assert beside_one({name: ways[name] for name in ("step, fsdp",)}, 2) == {}


def test_what_moves_is_counted_in_what_a_device_then_has() -> None:
    text = """
      %a = (f32[4]{0}, bf16[2,500]{1,0}) all-reduce(%x, %y), to_apply=%add
      %b = bf16[1000,1000]{1,0} all-gather(%c), dimensions={0}
      %d = bf16[1000,1000]{1,0} all-gather-done(%b)
    """
    assert moved(text)["moved"] == {
        "all-reduce": {"times": 1, "mb": 0.002},
        "all-gather": {"times": 1, "mb": 2.0},
    }


@pytest.mark.slow
def test_a_smoke_run_of_every_way(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    command = [sys.executable, "-m", "benchmarks.several", "--preset", "smoke", "--out", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    found = json.loads(out.read_text())
    assert set(found["ways"]) == set(WAYS)
    assert set(found["beside one"]) == {name for name, how in WAYS.items() if "axis" in how}
    gathered = found["ways"]["step, fsdp"]["step"]["moved"]["all-gather"]
    assert gathered["times"] > 0
    assert "all-gather" not in found["ways"]["step, data"]["step"]["moved"]


@pytest.mark.slow
def test_weights_that_stay_whole_are_put_together_once() -> None:
    """Of a layer's matrix by teacher, student and backward pass: once where nothing is computed
    again, else by each."""
    gathers = {}
    for remat in ("none", "full"):
        how = {"part": "step", "axis": "fsdp", "unroll": "always", "remat": remat}
        rows = _process("smoke", 2, how, 400)
        gathers[remat] = rows["step"]["moved"]["all-gather"]["times"]
    layers = 2 * 4  # matrices of the receiver's layers
    assert gathers["full"] - gathers["none"] >= 2 * layers
