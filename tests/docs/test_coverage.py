"""docs/coverage.yaml: every feature of the earlier systems has a config, a test, and a record or
the word `none` with the reason."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from lw_jax.results.record import read_records

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docs" / "coverage.yaml"
SECTIONS = {
    "Models, hardware, launch": 7,
    "The receiver's sequence": 4,
    "Sources, encoders, compressors": 26,
    "Readers": 11,
    "Objectives and schedules": 19,
    "Stages, runs, diagnostics": 13,
    "Evaluation, baselines, metrics": 19,
    "Telepathy versions": 26,
}
"""The sections, and the least number of their features: none may be dropped."""
LEAST = 200
"""Training steps of a run that shows something."""
LEAST_WORDS = 8
"""Of the reason why a feature has no record."""
NAMED = 55
"""Least number of features of which the file says what a run sets of them."""
WITHOUT = {
    "VQ: dead codes revived (a flag of facts.yaml)",
    "stages A, B and C, smoke size",
    "stages A, B and C, hero size",
    "today's default on the same task",
    "final plan",
    "quick evaluation with final numbers and entities",
    "frozen Llama-3.1-8B, Qwen2.5-7B, Mistral-7B-v0.3",
    "layers and columns of a model over devices",
    "several hosts, started by SLURM, by hand and on TPUs",
    "anchor in the receiver's chat template; chat scaffold for the encoder",
}
"""The features that may be without such a run: no other comes back here."""


@cache
def found() -> dict[str, list[dict[str, Any]]]:
    return dict(yaml.safe_load(FILE.read_text(encoding="utf-8")))


@cache
def steps() -> dict[str, int]:
    """Training steps of every record, by its name: its own, and those of what it evaluates, another
    run with a record or a bridge that ships."""
    records = read_records(ROOT / "docs" / "records")
    own = {
        name: sum(stage["steps"] for stage in record["training"].values())
        for name, record in records.items()
    }
    return {name: own[name] + _before(record, own) for name, record in records.items()}


def _before(record: dict[str, Any], own: dict[str, int]) -> int:
    stages = record.get("config", {}).get("stages", {}).values()
    places = [str(stage.get("evaluate", {}).get("init_from", "")) for stage in stages]
    return sum(_bridge(place) + own.get(place.removeprefix("runs/"), 0) for place in places)


def _bridge(place: str) -> int:
    file = ROOT / place / "bridge.json"
    shipped = place.startswith("zoo/bridges/")
    return int(json.loads(file.read_text(encoding="utf-8"))["step"]) if shipped else 0


def test_no_section_and_no_feature_is_dropped() -> None:
    assert list(found()) == list(SECTIONS)
    for section, least in SECTIONS.items():
        features = [row["feature"] for row in found()[section]]
        assert len(features) == len(set(features))
        assert len(features) >= least, section


@pytest.mark.parametrize("section", list(SECTIONS))
def test_a_feature_has_a_config_a_test_and_a_record_or_none(section: str) -> None:
    for row in found()[section]:
        without = row["record"] == "none"
        keys = ["feature", "config", "record", "test"]
        assert list(row) == keys + ["has"] * ("has" in row) + ["why"] * without, row
        assert row["config"].startswith("configs/"), row
        for path in (row["config"], row["test"]):
            assert (ROOT / path).is_file(), f"{row['feature']}: no file {path}"
        assert Path(row["test"]).name.startswith("test_"), row
        if row["record"] != "none":
            assert row["record"] in steps(), f"{row['feature']}: no record {row['record']}"
            assert steps()[row["record"]] >= LEAST, f"{row['feature']}: too few steps"


def set_in(config: Any, key: str) -> bool:
    """Whether a dotted key is set in plain values."""
    for part in key.split("."):
        config = config.get(part) if isinstance(config, dict) else None
    return config is not None


def test_what_was_run_has_what_it_is_named_for() -> None:
    """A record leaves out what is as by default."""
    records = read_records(ROOT / "docs" / "records")
    named = [row for rows in found().values() for row in rows if "has" in row]
    assert len(named) >= NAMED
    for row in named:
        plain = yaml.safe_load((ROOT / row["config"]).read_text(encoding="utf-8"))
        config = plain if row["record"] == "none" else records[row["record"]]["config"]
        for key in row["has"]:
            assert set_in(config, key), f"{row['feature']}: {key} is not set"


def test_what_has_no_record_says_why() -> None:
    reasons = {
        row["feature"]: row["why"]
        for rows in found().values()
        for row in rows
        if row["record"] == "none"
    }
    assert set(reasons) == WITHOUT
    for feature, why in reasons.items():
        assert len(why.split()) >= LEAST_WORDS and why.endswith("."), feature


def test_every_config_of_latentwire_is_named() -> None:
    named = {row["config"] for rows in found().values() for row in rows}
    configs = {str(p.relative_to(ROOT)) for p in (ROOT / "configs/latentwire").rglob("*.yaml")}
    apart = {f"configs/latentwire/sweeps/{name}.yaml" for name in ("first_token", "latent_keep")}
    assert configs - named == apart
