"""A record: what a run measured, small enough to keep beside the docs.

One JSON file per run: its config, the evaluations' `metrics.json`, and of each train stage the
steps, seconds, the loss on its way, last losses and the alarms with the steps at which each first
and last fired. A run that was stopped in training has a record of it, and no evaluations.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from lw_jax.config.yaml_files import load
from lw_jax.errors import UserError

_ALARM = "/alarm/"


def record_of(run_dir: Path) -> dict[str, Any]:
    """The record of a run directory.

    Raises:
        UserError: no run there, or one that has neither trained nor evaluated.
    """
    if not (run_dir / "config.yaml").is_file():
        raise UserError(f"{run_dir}: no config.yaml there, so it is no run directory")
    config = load(run_dir / "config.yaml")
    config.pop("run_dir", None)  # where it lay says nothing, and differs between machines
    evaluations = dict(_evaluations(run_dir))
    lines = _lines(run_dir / "diagnostics.jsonl")
    if not evaluations and not any(line["kind"] == "train" for line in lines):
        raise UserError(f"{run_dir}: neither metrics.json nor training there; let the run go on")
    ended = run_dir / "finished.json"
    seconds = json.loads(ended.read_text(encoding="utf-8")) if ended.is_file() else {}
    trained = [name for name, stage in config["stages"].items() if "train" in stage]
    return {
        "name": run_dir.name,
        "config": config,
        "seconds": seconds,
        "training": {
            name: training([line for line in lines if line["stage"] == name])
            | {"seconds": seconds.get(name)}
            for name in trained
        },
        "evaluations": evaluations,
    }


def training(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Of a train stage's diagnostics: steps, median seconds per step, losses, alarms."""
    steps = [line for line in lines if line["kind"] == "train"]
    watched = [line for line in lines if line["kind"] == "evaluate"]
    fired: dict[str, int] = {}
    last_fired: dict[str, int] = {}
    for line in watched:
        for key, value in line.items():
            if _ALARM in f"/{key}" and value:
                name = key.rpartition("/")[2]
                fired.setdefault(name, line["step"])
                last_fired[name] = line["step"]
    last = steps[-1] if steps else {}
    return {
        "steps": last.get("step", 0),
        "seconds_per_step": median(line["seconds_per_step"] for line in steps) if steps else None,
        "losses": {k: v for k, v in last.items() if k == "loss" or k.startswith("loss/")},
        "course": [[line["step"], line["loss"]] for line in steps],
        "curve": [
            [line["step"], {k: v for k, v in line.items() if k.endswith("accuracy")}]
            for line in watched
        ],
        "alarms": fired,
        "alarms_last": last_fired,
    }


def _evaluations(run_dir: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Stage and metrics of every evaluation; those made again are `<stage>@<number>`."""
    for path in sorted(run_dir.glob("*/metrics.json")) + [run_dir / "metrics.json"]:
        if path.is_file():
            metrics = json.loads(path.read_text(encoding="utf-8"))
            yield metrics.pop("stage"), _small(metrics)
    for path in sorted(run_dir.glob("evaluations/*/metrics.json")):
        metrics = json.loads(path.read_text(encoding="utf-8"))
        yield f"{metrics.pop('stage')}@{path.parent.name}", _small(metrics)


def _small(metrics: dict[str, Any]) -> dict[str, Any]:
    """Without the config, which the record holds once, unless it is another one's."""
    return {k: v for k, v in metrics.items() if k != "config"}


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_record(run_dir: Path, folder: Path) -> Path:
    """Write a run's record as `<folder>/<run>.json`; figures with six digits."""
    record = _rounded(record_of(run_dir))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{run_dir.name}.json"
    path.write_text(json.dumps(record, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return path


def read_record(folder: Path, name: str) -> dict[str, Any]:
    """A record by its run's name. UserError if there is none."""
    path = folder / f"{name}.json"
    if not path.is_file():
        raise UserError(
            f"{path}: no such record; `python -m lw_jax.results record RUN_DIR {folder}` makes it"
        )
    return json.loads(path.read_text(encoding="utf-8"))


def _rounded(content: Any) -> Any:
    if isinstance(content, float):
        return float(f"{content:.6g}")
    if isinstance(content, dict):
        return {k: _rounded(v) for k, v in content.items()}
    if isinstance(content, list):
        return [_rounded(v) for v in content]
    return content
