"""How long large models take from the command to the first step, and to load.

    python -m benchmarks.starting --preset h200 --folder /dev/shm/models --out starting.json
    python -m benchmarks.starting --preset smoke --folder /tmp/models --out starting.json

Two models of the preset's sizes with random weights are written into the folder, in shards, unless
they are there; their tokenizers are those of zoo. `cold` is the first run, with empty caches of
compiled programs and of digests; `warm` the second, with what the first left. Seconds are those
from the command to the first step's line in diagnostics.jsonl, where the run is then stopped.
`load` is the receiver alone, in a process of its own, beside a plain read of the same files (both
with the files in the host's memory, as far as they fit), and the host's peak memory above that of
the process before.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import measured_on
from benchmarks.speed.process import ROOT, rows_of
from benchmarks.speed.sizes import Sizes, run_of, sizes

TOKENIZERS = {"sender": "tiny-llama", "receiver": "tiny-mistral"}
SHARD = 4_000_000_000
"""Bytes of a shard, about."""


def write_model(folder: Path, shape: dict[str, Any], tokenizer: Path) -> None:
    """A model directory in the layout of Hugging Face: random weights in bfloat16, in shards.

    Args:
        folder: that is made.
        shape: its config.json.
        tokenizer: directory whose tokenizer it has.
    """
    from lw_jax.models.encoder_arch import arch_from_hf
    from lw_jax.models.names import parts

    folder.mkdir(parents=True)
    words = json.loads((tokenizer / "tokenizer.json").read_text())["model"]["vocab"]
    own = json.loads((tokenizer / "config.json").read_text())
    ends = {key: own[key] for key in ("bos_token_id", "eos_token_id")}
    shape = shape | ends | {"vocab_size": max(shape["vocab_size"], len(words))}
    (folder / "config.json").write_text(json.dumps(shape))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / file, folder / file)
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    size = 0
    for part in parts(arch_from_hf(shape, None, where=str(folder))):
        if size > SHARD:
            shards.append({})
            size = 0
        shards[-1][part.name] = part.stored_shape
        size += 2 * int(np.prod(part.stored_shape))
    drawn = np.random.default_rng(0).normal(size=1 << 20).astype(np.float32) * np.float32(0.02)
    block = (drawn.view(np.uint32) >> 16).astype(np.uint16)
    place: dict[str, str] = {}
    for i, shard in enumerate(shards, 1):
        file = f"model-{i:05}-of-{len(shards):05}.safetensors"
        place |= dict.fromkeys(shard, file)
        _write(folder / file, shard, block)
    index = {"metadata": {}, "weight_map": place}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _write(path: Path, shard: dict[str, tuple[int, ...]], block: Any) -> None:
    """A file of the safetensors format: a header's length, the header, the tensors; of a norm each
    number is one."""
    at, header = 0, {}
    for name, shape in shard.items():
        end = at + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shard.items():
            left = int(np.prod(shape))
            source = np.full(min(left, len(block)), 0x3F80, np.uint16) if "norm" in name else block
            while left:
                file.write(source[:left].tobytes())
                left -= min(left, len(source))


def config(s: Sizes, folder: Path) -> dict[str, Any]:
    """The run: generated facts, the bridge and the step of `benchmarks.speed`."""
    own = run_of(s, {})
    own["stages"]["fit"]["train"] |= {"log_every": 1, "eval_every": 0, "save_every": 1000}
    return own | {
        "name": "starting",
        "sender": {"path": str(folder / "sender"), "dtype": s.dtype},
        "receivers": {"reader": {"path": str(folder / "receiver"), "dtype": s.dtype}},
        "data": {"facts": {"levels": [6], "questions": 2}},
    }


def started(file: Path, run: Path, environ: dict[str, str], seconds: float) -> dict[str, Any]:
    """From the command to the first step of a run, which is then stopped."""
    command = [sys.executable, "-m", "lw_jax.launch", "--config", str(file), f"--run_dir={run}"]
    said = run.parent / f"{run.name}.txt"
    began = time.perf_counter()
    with said.open("w") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environ, stdout=output, stderr=subprocess.STDOUT
        )
    told = run / "diagnostics.jsonl"
    try:
        while not (told.exists() and '"loss"' in told.read_text()):
            if process.poll() is not None:
                return {"failed": (said.read_text().strip().splitlines() or ["?"])[-1][:300]}
            if time.perf_counter() - began > seconds:
                return {"failed": f"more than {seconds:.0f} s: {said.read_text()[-300:]}"}
            time.sleep(0.02)
        took = time.perf_counter() - began
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    except subprocess.TimeoutExpired:
        pass
    finally:
        process.kill()
        process.wait()
    return {"s": round(took, 2)}


def load(folder: Path, dtype: str) -> dict[str, Any]:
    """In a process of its own: a plain read of a model's files, and its way to the device."""
    import jax

    from lw_jax.mesh import MeshConfig, make_mesh
    from lw_jax.models.config import ModelConfig
    from lw_jax.models.spec import open_model

    mesh = make_mesh(MeshConfig(data=1))
    jax.block_until_ready(jax.numpy.zeros(1))
    files = sorted(folder.glob("*.safetensors"))
    room = bytearray(1 << 24)
    took = []
    for _ in range(2):  # the first brings the files into memory
        began = time.perf_counter()
        for file in files:
            with file.open("rb", buffering=0) as opened:
                while opened.readinto(room):
                    pass
        took.append(time.perf_counter() - began)
    spec = open_model("reader", ModelConfig(str(folder), dtype))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    loads = []
    for _ in range(2):  # the first compiles
        began = time.perf_counter()
        model = jax.block_until_ready(spec.load(mesh))
        loads.append(time.perf_counter() - began)
        del model
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "gb": round(sum(file.stat().st_size for file in files) / 1e9, 3),
        "read_s": round(took[1], 3),
        "first_load_s": round(loads[0], 3),
        "load_s": round(loads[1], 3),
        "host_peak_gb": round((after - before) * 1024 / 1e9, 3),
    }


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--preset", choices=("smoke", "h200"), default="smoke")
    parser.add_argument("--folder", type=Path, required=True, help="for the models, kept")
    parser.add_argument("--parts", default="load,start", help="load, start or both")
    parser.add_argument("--seconds", type=float, default=300, help="that one process may take")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--load", help=argparse.SUPPRESS)
    asked = parser.parse_args(argv)
    s, folder = sizes(asked.preset), asked.folder.resolve()
    if asked.load:
        print(json.dumps(load(folder / "receiver", s.dtype)))
        return 0
    found: dict[str, Any] = {"preset": asked.preset, **measured_on()}

    def note(name: str, row: Any) -> None:
        found[name] = row
        asked.out.write_text(json.dumps(found, indent=1) + "\n")
        print(name, json.dumps(row), flush=True)

    for name, shape in (("sender", s.sender), ("receiver", s.receiver)):
        if not (folder / name).exists():
            began = time.perf_counter()
            write_model(folder / name, shape, ROOT / "zoo" / TOKENIZERS[name])
            note(f"{name} written, s", round(time.perf_counter() - began, 1))
    parts = asked.parts.split(",")
    if "load" in parts:
        told = ["--load", "yes", "--preset", asked.preset, "--folder", str(folder)]
        command = [sys.executable, "-m", "benchmarks.starting", *told, "--out", str(asked.out)]
        note("load", rows_of(command, os.environ, int(asked.seconds)))
    if "start" in parts:
        with tempfile.TemporaryDirectory() as place:
            file = Path(place) / "config.yaml"
            file.write_text(json.dumps(config(s, folder)))
            environ = {**os.environ, "XDG_CACHE_HOME": f"{place}/cache"}
            environ.pop("JAX_COMPILATION_CACHE_DIR", None)
            for name in ("cold", "warm"):
                note(name, started(file, Path(place) / name, environ, asked.seconds))
    return 1 if any("failed" in row for row in found.values() if isinstance(row, dict)) else 0


if __name__ == "__main__":
    raise SystemExit(main())
