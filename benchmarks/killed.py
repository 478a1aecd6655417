"""Whether a training run that is killed and resumed ends as one that was not, bit for bit.

    python -m benchmarks.killed --out killed.json
    python -m benchmarks.killed --ways "deterministic" --steps 60 --dtype bfloat16 --out killed.json

Of each way one run goes through, and another is ended by SIGKILL after its first checkpoint and
begun again. The two have caches of compiled programs of their own, so that each compiles, and on a
GPU times, what it runs, unless the way says otherwise; a resumed process has the cache of the one
before it. Compared are the losses of all steps and the digests of all trained arrays. Ways run side
by side.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.machine import measured_on
from benchmarks.speed.process import ROOT

EXCLUDED = "--xla_gpu_exclude_nondeterministic_ops=true"
WAYS: dict[str, dict[str, Any]] = {
    "deterministic": {"deterministic": True},
    "as it comes": {},
    "one cache": {"one cache": True},
    "one cache, no sums in any order": {"one cache": True, "flags": EXCLUDED},
}
"""Whether `deterministic` is set, flags for XLA, and whether both runs have one cache of compiled
programs, as the runs of one user do: then the second runs what was compiled, and on a GPU chosen by
timing, for the first."""
CONFIG = ROOT / "configs" / "quickstart_scratch.yaml"


def compared(ways: list[str], folder: Path, told: dict[str, Any], seconds: float) -> dict[str, Any]:
    """By way: whether the two runs are equal, and where they first differ.

    Args:
        ways: some of `WAYS`.
        folder: for runs and caches.
        told: `steps`, `save_every`, `dtype`.
        seconds: that a process may take.
    """
    run = partial(_run, folder=folder, told=told, seconds=seconds)

    def both(way: str) -> dict[str, Any]:
        with ThreadPoolExecutor(1 if "one cache" in WAYS[way] else 2) as pool:
            whole, killed = pool.map(partial(run, way), ("whole", "killed"))
        return difference(whole, killed)

    with ThreadPoolExecutor(len(ways)) as pool:
        return dict(zip(ways, pool.map(both, ways), strict=True))


def difference(whole: dict[str, Any], killed: dict[str, Any]) -> dict[str, Any]:
    """Of two runs, each with `losses` by step and `arrays`, digests by file; or `failed`."""
    if failed := whole.get("failed") or killed.get("failed"):
        return {"failed": failed}
    steps = [n for n, loss in whole["losses"].items() if loss != killed["losses"].get(n)]
    arrays = [n for n, digest in whole["arrays"].items() if digest != killed["arrays"].get(n)]
    same = not steps and not arrays and len(whole["arrays"]) == len(killed["arrays"])
    found: dict[str, Any] = {"equal": same, "steps": len(whole["losses"])}
    found |= {"arrays": len(whole["arrays"]), "arrays that differ": len(arrays)}
    found |= {"killed after step": killed["killed"], "resumed at step": killed["resumed"]}
    if steps:
        first = min(steps, key=int)
        found["first step that differs"] = int(first)
        found["losses there"] = [run["losses"].get(first) for run in (whole, killed)]
    return found


def _run(way: str, name: str, folder: Path, told: dict[str, Any], seconds: float) -> dict[str, Any]:
    place = folder / way.replace(" ", "_").replace(",", "") / name
    place.mkdir(parents=True)
    start = partial(_start, place, WAYS[way], told)
    found: dict[str, Any] = {}
    try:
        if name == "killed":
            found["killed"] = _killed(start(), place / "run", told["save_every"], seconds)
            kept = place / "run" / "checkpoints" / "fit"
            found["resumed"] = max(int(x.name) for x in kept.iterdir() if x.name.isdigit())
        process = start()
        try:
            output = process.communicate(timeout=seconds)[0]
        finally:
            process.kill()
        if process.returncode:
            said = [line for line in output.splitlines() if "rror" in line] or ["?"]
            return {"failed": f"{way}, {name}: {said[-1][:300]}"}
    except (TimeoutError, subprocess.TimeoutExpired, RuntimeError) as error:
        return {"failed": f"{way}, {name}: {error}"[:400]}
    from lw_jax.train.checkpoint import read_meta

    last = place / "run" / "checkpoints" / "fit" / str(told["steps"])
    return found | {"losses": _losses(place / "run"), "arrays": read_meta(last)["checksums"]}


def _start(place: Path, how: dict[str, Any], told: dict[str, Any]) -> subprocess.Popen[str]:
    over = place / "over.yaml"
    train = {"steps": told["steps"], "save_every": told["save_every"], "log_every": 1}
    over.write_text(
        json.dumps(
            {
                "deterministic": how.get("deterministic", False),
                "sender": {"dtype": told["dtype"]},
                "receivers": {"mistral": {"dtype": told["dtype"]}},
                "stages": {
                    "align": None,
                    "report": None,
                    "fit": {"train": train | {"eval_every": 0}},
                },
            }
        )
    )
    own = {
        "JAX_COMPILATION_CACHE_DIR": str((place.parent if "one cache" in how else place) / "cache"),
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {how.get('flags', '')}".strip(),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    command = [sys.executable, "-m", "lw_jax.launch", "--config", str(CONFIG)]
    return subprocess.Popen(
        [*command, "--config", str(over), f"--run_dir={place / 'run'}"],
        cwd=ROOT,
        env=os.environ | own,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _killed(process: subprocess.Popen[str], run: Path, save_every: int, seconds: float) -> int:
    """Ends a run by SIGKILL a few steps after its first checkpoint; the last step it told."""
    ends = time.monotonic() + seconds
    while not any(int(n) > save_every + 2 for n in _losses(run)):
        if process.poll() is not None:
            raise RuntimeError(f"it ended too soon: {(process.communicate()[0] or '')[-300:]}")
        if time.monotonic() > ends:
            process.kill()
            raise TimeoutError(f"more than {seconds} s to the first checkpoint")
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return max(int(n) for n in _losses(run))


def _losses(run: Path) -> dict[str, float]:
    """The loss of each step that is told whole; of a step told twice the later one."""
    path = run / "diagnostics.jsonl"
    found = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        if line.endswith("}"):
            told = json.loads(line)
            if "loss" in told:
                found[str(told["step"])] = told["loss"]
    return found


def main(argv: list[str] | None = None) -> int:
    """The command line: 0 where all ways that are deterministic are equal."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--ways", default=";".join(WAYS), help="names, ; between them")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--save_every", type=int, default=20)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--seconds", type=float, default=300, help="that one process may take")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    asked = parser.parse_args(argv)
    ways = asked.ways.split(";")
    if unknown := set(ways) - set(WAYS):
        parser.error(f"--ways: {', '.join(sorted(unknown))} not known; choose from {list(WAYS)}")
    told = {"steps": asked.steps, "save_every": asked.save_every, "dtype": asked.dtype}
    about = measured_on()
    with tempfile.TemporaryDirectory() as folder:
        found = compared(ways, Path(folder), told, asked.seconds)
    asked.out.write_text(json.dumps({**about, **told, "ways": found}, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    sure = [row for way, row in found.items() if WAYS[way].get("deterministic")]
    return 0 if all(row.get("equal") for row in sure) else 1


if __name__ == "__main__":
    raise SystemExit(main())
