"""The runs of docs/results/telepathy.md, several at once on one device.

    python -m benchmarks.versions GSM8K_FOLDER [--models MODELS] [--at_once 10] [--seconds 3600]
        [--only PART ...] [--recorded docs/records]

GSM8K_FOLDER holds `gsm8k_train.jsonl` and `gsm8k_dev.jsonl`. Every version of `configs/telepathy`
and the variants below, on generated facts and on GSM8K, with two seeds: the same steps of the same
texts for each. A run that is finished is left as it is, one that was stopped goes on; at the end of
`--seconds` all get SIGTERM. `--only` takes runs with any of these parts in their names;
`--recorded` leaves out those that have a record in a folder, but for what a run without one starts
from; `--list` prints the commands and runs none. Records are made of them by
`python -m lw_jax.results record`.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.real_cells import MODELS
from lw_jax.results.record import read_records

CONFIGS = Path("configs/telepathy")
SEEDS = (42, 43)
BEFORE = {"v04": "v03_1"}
"""What a version is evaluated from instead of being trained."""
SAME = ("v15k",)
"""Versions that are another one's file twice."""
WRITE_THE_TEXT = ("v10", "v11")
"""Their receiver writes the text before its answer, so that decoding needs more tokens."""

TRAINED = [
    "--stages.fit.train.steps=250",
    "--stages.fit.train.batch_size=64",
    "--stages.fit.train.eval_every=50",
    "--stages.fit.train.log_every=50",
    "--stages.fit.train.save_every=100000",
]
METHODS = "--stages.report.evaluate.methods=[text, latent]"
EVALUATED = ["--stages.report.evaluate.batch_size=128", METHODS]
SCHEDULE = "--stages.fit.train.optimiser.schedule="
WARM_UP = {
    "v15": "{shape: cosine, ramp: 25}",
    "default": "{shape: cosine, ramp: 25, final: 0.05}",
}
"""V15 and the default warm up over 100 steps, of 3,000: here over a tenth of the steps."""
MUON = "{name: muon, lr: 0.01, adam_lr: 0.001, schedule: " + WARM_UP["default"] + "}"
VARIANTS = {
    "v12_unit": ("v12", ["--bridge.compressor.dit.unit_targets=true"]),
    "v15k_muon": ("v15", [f"--stages.fit.train.optimiser={MUON}"]),
}
"""One change each: V12 with targets at unit RMS, V15k with the default's optimiser."""

REAL_PAIR = Path("configs/overlays/smollm_qwen.yaml")
REAL_STEPS = 500
REAL_TRAINED = [
    f"--stages.fit.train.steps={REAL_STEPS}",
    "--stages.fit.train.batch_size=16",
    "--stages.fit.train.accumulate=1",
    "--stages.fit.train.eval_every=250",
    "--stages.fit.train.eval_rows=32",
    "--stages.fit.train.log_every=25",
    f"--stages.fit.train.save_every={REAL_STEPS}",
    "--stages.fit.train.keep=1",
    "--stages.fit.train.remat=dots",
]
READ_BY_REAL = [
    "--bridge.latent_dim=640",
    "--bridge.source.hidden_states.layers=[0, 4, 8, 16, 24]",
    "--stages.fit.train.optimiser={name: muon, lr: 0.003, adam_lr: 0.001, "
    "schedule: {shape: cosine, ramp: 50, final: 0.05}}",
]
SIZED = [
    *READ_BY_REAL,
    "--bridge.compressor.perceiver.width=640",
    "--bridge.compressor.perceiver.heads=10",
    "--bridge.reader.latent_adapters={layers: [4, 8, 12, 16, 20], head_dim: 64, mlp_ratio: 0}",
]
"""Today's default between the real models: taps, widths, layers with adapters and rates as
`configs/real` has them (`overlays/` there says the rule); all else is as between the small ones."""
REAL_WIRE = [
    *READ_BY_REAL,
    "--bridge.compressor={perceiver: null, windows: {ratios: [1, 2], ratio: 2, width: 640, "
    "heads: 10, encoder_layers: 3, depth: 3, bfloat16: true}}",
    "--bridge.reader={coprocessor: null, "
    "soft_tokens: {hidden: linear, positions: columns, conditioning: scale, init_scale: 1.09}, "
    "latent_adapters: {layers: [4, 8, 12, 16, 20], head_dim: 64, mlp_ratio: 2}}",
]
"""The wire of `configs/real/cells/adapters.yaml` in its place: a slot for every two tokens."""
REAL_ORDER = (
    *("default", "v01", "v03_1", "v04", "v06", "v08", "v12", "v13", "v15a", "v15k", "v15e", "wire"),
    *("v05", "v10", "v11", "v14", "v02", "v07", "v09", "v03", "v15b", "v15d", "v15f", "v15g"),
    *("v15h", "v15c", "v15i", "v15j", "v15b_norm"),
)
"""The runs between the real models, the most telling first."""


@dataclass(frozen=True)
class Job:
    """A run: its name, the flags after `python -m lw_jax.launch`, how many places it takes, and the
    run that has to be finished before."""

    name: str
    flags: tuple[str, ...]
    places: int
    after: str | None = None

    def done(self) -> bool:
        """Whether it is finished."""
        return finished(self.name)


def finished(name: str) -> bool:
    """Whether a run has its metrics."""
    return (Path("runs") / name / "metrics.json").exists()


def jobs(gsm8k: Path) -> list[Job]:
    """All runs; a seed's after the other's, so that the second finds compiled programs."""
    names = sorted(p.stem for p in CONFIGS.glob("*.yaml") if p.stem not in SAME)
    every = [(name, name, list[str]()) for name in names]
    every += [(name, base, flags) for name, (base, flags) in VARIANTS.items()]
    return [
        job(name, base, flags, data, seed, gsm8k)
        for seed in SEEDS
        for data in ("facts", "gsm8k")
        for name, base, flags in every
    ]


def unrecorded(todo: Sequence[Job], records: Path) -> list[Job]:
    """Those without a record, and those that one of them is evaluated from."""
    recorded = read_records(records)
    left = [one for one in todo if one.name not in recorded]
    before = {one.after for one in left}
    return [one for one in todo if one in left or one.name in before]


def job(name: str, base: str, flags: Sequence[str], data: str, seed: int, gsm8k: Path) -> Job:
    """The run of one version, or of a variant of it, on one data set with one seed."""
    own = f"telepathy_{name}_{data}_s{seed}"
    said = ["--config", f"{CONFIGS}/{base}.yaml"]
    longer = base in WRITE_THE_TEXT
    if data == "facts":
        said += ["--config", "configs/overlays/facts.yaml", "--data.facts.levels=[2]"]
        rows, tokens = 512, 160 if longer else 16
    else:
        said += [f"--data.gsm8k.train={gsm8k / 'gsm8k_train.jsonl'}"]
        said += [f"--data.gsm8k.eval={gsm8k / 'gsm8k_dev.jsonl'}"]
        rows, tokens = 256, 512 if longer else 320
    after = None
    if base in BEFORE:
        after = f"telepathy_{BEFORE[base]}_{data}_s{seed}"
        said += [f"--stages.report.evaluate.init_from=runs/{after}"]
    else:
        said += [*TRAINED, *flags]
        said += [SCHEDULE + held for held in [_warm_up(name)] if held is not None]
    said += [*EVALUATED, f"--stages.report.evaluate.rows={rows}"]
    said += [f"--stages.report.evaluate.decode.max_new_tokens={tokens}"]
    said += [f"--seed={seed}", f"--name={own}"]
    return Job(own, tuple(said), 2 if data == "gsm8k" else 1, after)


def _warm_up(name: str) -> str | None:
    """The schedule of a version whose own is of another length; a variant says its own."""
    found = [held for start, held in WARM_UP.items() if name.startswith(start)]
    return found[0] if found and name not in VARIANTS else None


def between_models(gsm8k: Path, models: Path) -> list[Job]:
    """Every version and today's default between two real models, on GSM8K, with one seed."""
    sized = {"default": SIZED, "wire": REAL_WIRE}
    return [real_job(name, sized.get(name, []), gsm8k, models) for name in REAL_ORDER]


def real_job(name: str, flags: Sequence[str], gsm8k: Path, models: Path) -> Job:
    """One of them."""
    own = f"telepathy_{name}_real_s{SEEDS[0]}"
    base = "default" if name == "wire" else name
    sender, receiver = (models / file for file in MODELS)
    said = ["--config", f"{CONFIGS}/{base}.yaml", "--config", str(REAL_PAIR)]
    said += [f"--sender.path={sender}", f"--receivers.qwen.path={receiver}"]
    said += [f"--data.gsm8k.train={gsm8k / 'gsm8k_train.jsonl'}"]
    said += [f"--data.gsm8k.eval={gsm8k / 'gsm8k_dev.jsonl'}"]
    after = None
    if base in BEFORE:
        after = f"telepathy_{BEFORE[base]}_real_s{SEEDS[0]}"
        said += [f"--stages.report.evaluate.init_from=runs/{after}"]
    else:
        said += [*REAL_TRAINED, *flags]
        if name.startswith("v15"):
            said += [SCHEDULE + "{shape: cosine, ramp: 50}"]
    tokens = 320 if base in WRITE_THE_TEXT else 200
    said += [METHODS, "--stages.report.evaluate.rows=256"]
    said += ["--stages.report.evaluate.batch_size=256"]
    said += [f"--stages.report.evaluate.decode.max_new_tokens={tokens}"]
    return Job(own, (*said, "--mesh.data=1", f"--seed={SEEDS[0]}", f"--name={own}"), 2, after)


def run(todo: list[Job], at_once: int, seconds: float) -> int:
    """Run them, `at_once` places at a time; how many failed."""
    end, failed = time.monotonic() + seconds, 0
    running: dict[str, tuple[Job, subprocess.Popen[bytes]]] = {}
    logs = Path("runs/logs")
    logs.mkdir(parents=True, exist_ok=True)
    while todo or running:
        for name, (_, process) in list(running.items()):
            if process.poll() is not None:
                print(f"{name}: exit code {process.returncode}", flush=True)
                failed += process.returncode != 0
                del running[name]
        if time.monotonic() > end:
            for _, process in running.values():
                process.terminate()
            for _, process in running.values():
                process.wait()
            print(f"time is up: {len(running)} stopped, {len(todo)} not started", flush=True)
            break
        used = sum(job.places for job, _ in running.values())
        ready = [j for j in todo if j.after is None or finished(j.after)]
        if todo and not ready and not running:
            print(f"{len(todo)} wait for a run that is not there", flush=True)
            return failed + len(todo)
        for one in ready:
            if used + one.places <= max(at_once, one.places):
                command = [sys.executable, "-m", "lw_jax.launch", *one.flags]
                with (logs / f"{one.name}.log").open("wb") as log:
                    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
                running[one.name] = one, process
                todo.remove(one)
                used += one.places
        time.sleep(0.5)
    return failed


def arguments(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """What was asked for, with the options that all lists of runs have."""
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--only", nargs="*", default=[""], help="parts of names")
    parser.add_argument("--recorded", type=Path, help="folder with records of runs to leave out")
    parser.add_argument("--list", action="store_true", help="print the commands alone")
    asked = parser.parse_args()
    if asked.recorded is not None and not asked.recorded.is_dir():
        parser.error(f"--recorded: no such folder: {asked.recorded}")
    return asked


def started(todo: list[Job], asked: argparse.Namespace) -> int:
    """Prints or runs those of a list that were asked for; the exit code."""
    todo = [one for one in todo if any(part in one.name for part in asked.only)]
    if asked.recorded is not None:
        todo = unrecorded(todo, asked.recorded)
    if asked.list:
        for one in todo:
            print(shlex.join(["python", "-m", "lw_jax.launch", *one.flags]))
        return 0
    # Several processes share a device: none takes it whole.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    return min(1, run([one for one in todo if not one.done()], asked.at_once, asked.seconds))


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("gsm8k", type=Path, help="folder with gsm8k_train.jsonl, gsm8k_dev.jsonl")
    parser.add_argument(
        "--at_once", type=int, default=10, help="places; GSM8K takes two, facts one"
    )
    parser.add_argument("--models", type=Path, help="folder with SmolLM2 and Qwen2.5 as GGUF files")
    asked = arguments(parser)
    if asked.models is not None:
        return started(between_models(asked.gsm8k, asked.models), asked)
    return started(jobs(asked.gsm8k), asked)


if __name__ == "__main__":
    sys.exit(main())
