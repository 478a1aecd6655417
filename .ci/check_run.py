"""A run directory holds what it should, and every control of every receiver is in its metrics."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from lw_jax.evaluate.methods import controls
from lw_jax.evaluate.metrics import metrics
from lw_jax.runs.directory import read_config

FILES = ("config.yaml", "diagnostics.jsonl", "metrics.json", "predictions.jsonl")
FIGURES = (*(name for name, m in metrics().items() if m.always), "n", "seconds", "ci")


def check(run_dir: Path) -> list[str]:
    """Everything that is missing."""
    missing = [
        f"{run_dir / name} is missing or empty" for name in FILES if not _lines(run_dir / name)
    ]
    if missing:
        return missing
    metrics = json.loads((run_dir / "metrics.json").read_text())
    config = read_config(run_dir)
    last = [stage.evaluate for stage in config.stages.values() if stage.evaluate is not None][-1]
    methods = {*last.methods, *controls()}
    for name in config.receivers:
        found = metrics["receivers"].get(name, {})
        missing += [f"receivers.{name}.{m} is missing" for m in methods - set(found)]
        missing += [
            f"receivers.{name}.{method}.{figure} is missing"
            for method, figures in found.items()
            for figure in FIGURES
            if figure not in figures
        ]
        for line in _lines(run_dir / "predictions.jsonl"):
            missing += [f"a prediction without {m}" for m in methods if m not in line]
    missing += [f"{key} is missing" for key in ("compression", "parameters") if key not in metrics]
    for line in _lines(run_dir / "diagnostics.jsonl"):
        json.loads(line)
    return missing


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []


if __name__ == "__main__":
    wrong = check(Path(sys.argv[1]))
    print("\n".join(wrong) or f"{sys.argv[1]}: all files, methods and controls are there")
    raise SystemExit(bool(wrong))
