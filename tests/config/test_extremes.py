"""Values at the ends of the bounds: what is accepted trains two steps with finite figures."""

from __future__ import annotations

import copy
import json
import math
import random
import re
from pathlib import Path
from typing import Any

import pytest

from lw_jax import launch
from lw_jax.config import parse
from lw_jax.config.yaml_files import dumps
from lw_jax.errors import UserError
from lw_jax.runs.doctor import check
from lw_jax.utils import kinds
from tests.config.fields import Field, every_field

COUNT, PARTS = 40, 8
"""So many that are accepted are run, in so many tests."""
LARGE = 48
"""Sizes above it are not tried: they are a matter of memory, and of time."""
FREE = ("steps", "start", "stop", "ramp", "revive", "log_every", "save_every", "keep")
"""Counts that cost nothing, however large."""
ALONE = ("bridge.source", "bridge.compressor", "bridge.bottleneck")
"""Choices of exactly one variant."""
FOREIGN = ("stages.fit.pretrain", "stages.fit.calibrate", "stages.fit.evaluate", "data", "sender",
           "receivers", "mesh", "stages.fit.train.data", "stages.fit.train.layout")  # fmt: skip


def extremes(field: Field) -> list[Any]:
    """Plain values of a number at the ends of its bounds, and small or large ones inside."""
    inner, ends = kinds.bare(field.kind), kinds.bounds(field.kind)
    if inner is float:
        low = ends.least if ends.least is not None else 1e-12
        return [low, ends.most] if ends.above is None else [1e-12, ends.most]
    if inner is int:
        assert ends.least is not None and ends.most is not None
        return [ends.least, ends.most if field.name in FREE else min(LARGE, ends.most)]
    return []


def tried() -> list[tuple[Field, Any]]:
    """All of them, in a random order."""
    of_stage = "stages.fit.train.objectives."
    cases = []
    for field in every_field():
        key = field.key
        if key.startswith(FOREIGN) or "0" in field.path or key == "stages.fit.train.steps":
            continue
        if key.startswith("stages.fit.pretrain.optimiser"):
            continue
        if key.startswith(of_stage):  # the config's own, so that there are others beside it
            path = ("objectives", *field.path[4:])
            field = Field(field.owner, path, field.name, field.kind)
        cases += [(field, value) for value in extremes(field)]
    # what two stages share is found at the first
    optimiser = next(f for f in every_field() if f.name == "optimiser")
    for owner, path in ((optimiser.kind, ("stages", "fit", "train", "optimiser")),):
        for name, kind in kinds.fields(owner).items():
            field = Field(owner, path, name, kind)
            cases += [(field, value) for value in extremes(field)]
    random.Random(17).shuffle(cases)
    return cases


def with_value(raw: dict[str, Any], field: Field, value: Any) -> dict[str, Any]:
    """A small config with one value, two steps, and nothing else to do."""
    found = copy.deepcopy(raw)
    found["stages"].pop("report")
    found["stages"]["fit"]["train"] |= {
        "steps": 2,
        "batch_size": 4,
        "eval_every": 0,
        "log_every": 1,
    }
    choice = ".".join(field.path[:2])
    if choice in ALONE and len(field.path) > 2:
        own = found["bridge"].get(field.path[1], {})
        found["bridge"][field.path[1]] = {k: v for k, v in own.items() if k == field.path[2]}
    made = Field(field.owner, field.path, field.name, field.kind).within(value, found)
    if field.path[:2] == ("bridge", "reader") and field.path[2:] == ("deep_prefix",):
        del made["bridge"]["reader"]["soft_tokens"]
    return made


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("part", range(PARTS))
def test_accepted_extremes_train(
    part: int,
    raw: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    ran, wrong = 0, []
    for number, (field, value) in enumerate(tried()[part::PARTS]):
        plain = with_value(raw, field, value) | {"name": f"run{number}"}
        try:
            check(parse.from_dict(plain))
        except UserError:
            continue  # refused, in a line
        path = tmp_path / "config.yaml"
        path.write_text(dumps(plain))
        code = launch.main(["--config", str(path)])
        error = capsys.readouterr().err
        if code == 2 and not re.search(r"finite|\b(nan|inf)\b", error):
            continue  # refused when its first step was traced: what it needs is not in the bridge
        lines = tmp_path / "runs" / plain["name"] / "diagnostics.jsonl"
        losses = [json.loads(line).get("loss") for line in lines.read_text().splitlines()]
        if code or not losses or not all(math.isfinite(x) for x in losses if x is not None):
            wrong.append((field.key, value, code, losses))
        ran += 1
        if ran == COUNT // PARTS:
            break
    assert wrong == []
    assert ran == COUNT // PARTS
