"""Seconds that a training step of each telepathy version takes, and its ratio to today's default.

    python benchmarks/telepathy.py [FILE]

Six generated sentences a text, 16 texts a step, one version after the other, each in a process of
its own: medians of the steps after the first `WARM_UP`. With a file,
`docs/records/telepathy.jsonl`, it puts them there as the record `telepathy_steps`, which a page of
results can name.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median, quantiles

import jax
import yaml
from rich.progress import track

from lw_jax.config.yaml_files import load
from lw_jax.results.record import put

STEPS, WARM_UP = 16, 4
DEFAULT = "default"
CONFIGS = Path("configs/telepathy")
SKIPPED = ("v04", "v15k")
"""V4 evaluates V3.1's bridge; V15k is V15."""
FLAGS = [
    f"--stages.fit.train.steps={STEPS}",
    "--stages.fit.train.batch_size=16",
    "--stages.fit.train.log_every=1",
    "--stages.fit.train.eval_every=0",
    f"--stages.fit.train.save_every={STEPS}",
]


def seconds(version: str) -> list[float]:
    """Of each step after the first `WARM_UP`."""
    with tempfile.TemporaryDirectory() as home:
        content = load(CONFIGS / f"{version}.yaml")
        del content["stages"]["report"]
        run, trained = Path(home) / version, Path(home) / "trained.yaml"
        trained.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        command = [sys.executable, "-m", "lw_jax.launch", "--config", str(trained)]
        command += ["--config", "configs/overlays/facts.yaml"]
        made = subprocess.run(
            [*command, f"--run_dir={run}", *FLAGS], capture_output=True, text=True, check=False
        )
        if made.returncode:
            raise SystemExit(f"{version}: {made.stderr}")
        lines = map(json.loads, (run / "diagnostics.jsonl").read_text().splitlines())
        return [x["seconds_per_step"] for x in lines if x["kind"] == "train"][WARM_UP:]


def main() -> None:
    versions = sorted(p.stem for p in CONFIGS.glob("*.yaml") if p.stem not in SKIPPED)
    found = {version: seconds(version) for version in track(versions, "versions")}
    base = median(found[DEFAULT])
    print(f"{'version':8s} {'s a step':>9s} {'quartiles':>15s} {'to default':>10s}")
    for version, times in found.items():
        low, middle, high = quantiles(times, n=4)
        print(f"{version:8s} {middle:9.3f} {low:7.3f} {high:7.3f} {middle / base:10.2f}")
    if len(sys.argv) > 1:
        record = {
            "name": "telepathy_steps",
            "versions": {"jax": jax.__version__, "device": jax.devices()[0].device_kind},
            "training": {
                v: {"steps": STEPS, "seconds_per_step": median(t)} for v, t in found.items()
            },
            "evaluations": {},
        }
        print(put(record, Path(sys.argv[1])))


if __name__ == "__main__":
    main()
