"""Measures several devices beside one: training with rows and weights split, decoding by heads.

    python -m benchmarks.several --preset h200 --devices 2 --out several.json
    python -m benchmarks.several --preset h200 --devices 2 --ways "step, one;step, fsdp"
    python -m benchmarks.several --preset smoke --devices 2 --out smoke.json  # CPUs stand for two

Each way is a process of its own, one after another; times are medians after warm-up, weights are
random. A training step has as many rows *a device* whichever way it goes, so that its efficiency is
the rows a second of a device, beside those of one device alone. Of a decoded token the speed-up is
given. The file also says how many bytes of weights a device holds, and how many each program moves
between devices. `step, sender apart` has as many rows as one device, and the sender on another.
With `--turns FOLDER` all ways load side by side, and compile and measure in turn, those of one
device first, each on its own, by locks in the folder; their memory must fit.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.machine import measured_on
from benchmarks.speed import turns
from benchmarks.speed.process import rows_of

WAYS: dict[str, dict[str, str]] = {
    "step, one": {"part": "step"},
    "step, data": {"part": "step", "axis": "data"},
    "step, fsdp": {"part": "step", "axis": "fsdp"},
    "step, fsdp, overlapped": {
        "part": "step",
        "axis": "fsdp",
        "flags": "--xla_gpu_enable_latency_hiding_scheduler=true",
    },
    "step, sender apart": {"part": "step", "axis": "sender"},
    "decode, one": {"part": "decode"},
    "decode, tensor": {"part": "decode", "axis": "tensor"},
    "decode, tensor, one graph": {
        "part": "decode",
        "axis": "tensor",
        "flags": "--xla_gpu_enable_command_buffer=+COLLECTIVES",
    },
}
"""The part, and the axis of the mesh that all devices are on; without one, one device alone;
`sender`: the sender has all but the first; and flags for XLA on GPUs."""
SIZES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "s8": 1, "u8": 1, "pred": 1}


def measured(
    preset: str,
    devices: int,
    ways: list[str],
    how: dict[str, Any],
    seconds: int,
    out: Path,
    add: bool = False,
    locks: Path | None = None,
) -> dict[str, Any]:
    """Runs the ways, each in a process of its own; the file holds what is measured so far, and with
    `add` what it held before. `locks`: a folder, with which they load side by side."""
    found: dict[str, Any] = {"preset": preset, "several": devices, **measured_on(), "ways": {}}
    if add and out.is_file():
        found["ways"] = json.loads(out.read_text())["ways"]
    lock = threading.Lock()
    alone = [name for name in ways if "axis" not in WAYS[name]]

    def run(name: str) -> None:
        began, own = time.perf_counter(), WAYS[name] | how
        if locks is not None:
            if name in alone:
                own["device"] = str(alone.index(name) % devices)
                own |= {"turns": f"device{own['device']}", "before": str(locks / "all")}
            else:
                own["turns"] = ";".join(["all", *(f"device{i}" for i in range(devices))])
            own["turns"] = ";".join(str(locks / file) for file in own["turns"].split(";"))
        rows = _process(preset, devices, own, seconds)
        with lock:
            print(f"{name}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
            held = found["ways"] | {name: rows}
            found["ways"] = {name: held[name] for name in WAYS if name in held}
            found["beside one"] = beside_one(found["ways"], devices)
            out.write_text(json.dumps(found, indent=1) + "\n")

    if locks is not None:
        locks.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(1 if locks is None else len(ways)) as pool:
        list(pool.map(run, ways))
    return found


def beside_one(ways: dict[str, Any], devices: int) -> dict[str, dict[str, float]]:
    """Of every way on several devices what it gains: `efficiency` of a training step, `times as
    quick` of a decoded token."""
    found: dict[str, dict[str, float]] = {}
    for name, rows in ways.items():
        part = WAYS[name]["part"]
        one = ways.get(f"{part}, one", {})
        if "axis" not in WAYS[name] or "failed" in rows or "failed" in one:
            continue
        if part == "step" and "step" in one:
            share = rows["step"]["rows_per_s"] / one["step"]["rows_per_s"] / devices
            found[name] = {"efficiency": round(share, 4)}
        elif part == "decode" and one:
            each = {what: row for what, row in rows.items() if what.endswith("_per_token")}
            found[name] = {
                f"{what.removesuffix('_per_token')} times as quick": round(
                    one[what]["ms"] / row["ms"], 4
                )
                for what, row in each.items()
                if what in one
            }
    return found


def _process(preset: str, devices: int, how: dict[str, Any], seconds: int) -> dict[str, Any]:
    environ = dict(os.environ)
    if "turns" in how:
        environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    if "device" in how:
        environ["CUDA_VISIBLE_DEVICES"] = how["device"]
    if preset != "smoke":
        environ["XLA_FLAGS"] = f"{environ.get('XLA_FLAGS', '')} {how.get('flags', '')}".strip()
    else:
        flags = f"--xla_force_host_platform_device_count={devices}"
        flags += " --xla_backend_optimization_level=0"
        environ["XLA_FLAGS"] = f"{environ.get('XLA_FLAGS', '')} {flags}".strip()
        environ["JAX_PLATFORMS"] = "cpu"
    told = json.dumps([preset, devices, how])
    command = [sys.executable, "-m", "benchmarks.several", "--one", told]
    return rows_of(command, environ, seconds)


def _one(preset: str, devices: int, how: dict[str, Any]) -> None:
    """In a process of its own: does a part one way, and prints its rows."""
    from lw_jax.launch import set_environment

    set_environment(os.environ)
    turns.before(how.get("before"))
    turns.enter(*how.get("turns", "").split(";"))
    import jax

    from benchmarks.speed.sizes import sizes
    from lw_jax.mesh import MeshConfig, SenderMesh

    count = devices if "axis" in how else 1
    there = jax.devices()
    if len(there) < count:
        raise SystemExit(f"{count} devices asked for; there are {len(there)}")
    shape: dict[str, Any] = {"data": 1} | ({how["axis"]: count} if "axis" in how else {})
    if "sender" in shape:
        shape["sender"] = SenderMesh(count - 1)
    ran = {"step": step, "decode": decode}[how["part"]]
    s = dataclasses.replace(sizes(preset), **({"times": how["times"]} if "times" in how else {}))
    print(json.dumps(ran(s, how, MeshConfig(**shape), there[:count])))


def step(s: Any, how: dict[str, Any], shape: Any, devices: list[Any]) -> dict[str, Any]:
    """A training step, with the preset's rows for every device of the bridge."""
    import jax
    import numpy as np

    from benchmarks.speed import lw_jax_parts as parts
    from benchmarks.speed.measure import times
    from lw_jax.mesh import make_mesh, make_sender_mesh, put_trained
    from lw_jax.runs.abstract import abstract_step
    from lw_jax.train.optimiser import stage_optimiser
    from lw_jax.train.plan import init_heads
    from lw_jax.train.state import new_state

    mesh, sender_mesh = make_mesh(shape, devices), make_sender_mesh(shape, devices)
    s = dataclasses.replace(s, rows=s.rows * mesh.size)
    config, name = dataclasses.replace(parts._config(s, how), mesh=shape), parts.RECEIVER
    train = config.stages["fit"].train
    specs = {
        "sender": parts._spec("sender", s.sender, s, how),
        name: parts._spec(name, s.receiver, s, how),
    }
    lengths = {"source": s.source, f"{name}/context": s.source}
    lengths |= {f"{name}/ask": s.ask, f"{name}/answer": s.answer}
    made = abstract_step(config, train, specs, lengths, mesh, sender_mesh=sender_mesh)
    bridge = parts._bridge(s, how)
    params = {
        "bridge": jax.jit(bridge.init)(jax.random.key(0)),
        "heads": init_heads(config.objectives, bridge.dims, jax.random.key(0)),
    }
    optimiser, _ = stage_optimiser(train, bridge, config.objectives, params)
    state = put_trained(mesh, new_state(params, optimiser, jax.random.key(1), train.ema))
    frozen, apart = _filled(made.frozen), made.apart
    tokens = {k: x for k, x in parts._batch(made.batch).items() if not k.endswith("/taps")}
    batch = {key: jax.device_put(x, made.batch[key].sharding) for key, x in tokens.items()}
    if apart is not None:
        apart = dataclasses.replace(apart, model=_filled(apart.model))
        tokens = {key: np.asarray(x) for key, x in tokens.items()}
    lowered = made.step.lower(state, frozen, made.batch)
    turns.alone()
    began = time.perf_counter()
    program = lowered.compile()
    if made.traced_sender is not None:
        made.traced_sender.lower().compile()
    spent = time.perf_counter() - began
    held = {"state": state}

    def once() -> Any:
        rows = batch
        if apart is not None:
            rows = batch | apart.taps(bridge, tokens, batch["valid"].sharding)
        held["state"], metrics = program(held["state"], frozen, rows)
        return metrics["loss"]

    row = times(once, jax.block_until_ready, s.warm, s.times)
    began = time.perf_counter()  # as training goes: no step is waited for
    for _ in range(s.times):
        last = once()
    jax.block_until_ready(last)
    each = (time.perf_counter() - began) / s.times
    row |= {"compile_s": round(spent, 2), "unwaited_ms": round(each * 1e3, 3), "rows": s.rows}
    row |= {"rows_per_s": round(s.rows / each, 3), "loss": float(last)}
    if apart is not None:
        row |= {"sender_gb": _sizes(apart.model)["weights_gb"]}
    return {"step": row | _sizes(frozen) | moved(program.as_text()) | parts._memory()}


def decode(s: Any, how: dict[str, Any], shape: Any, devices: list[Any]) -> dict[str, Any]:
    """Greedy decoding: a token's share of it, by batch size."""
    import jax
    import numpy as np

    from benchmarks.speed import lw_jax_parts as parts
    from benchmarks.speed.measure import compiled, times
    from lw_jax.mesh import make_mesh, replicated

    mesh = make_mesh(shape, devices)
    model = _filled(parts._spec("reader", s.receiver, s, how).abstract(mesh))

    until = {new: jax.device_put(np.int32(new), replicated(mesh)) for new in (1, s.new)}
    prompts = {
        rows: jax.device_put(
            parts._ids((rows, s.prompt), s.receiver["vocab_size"]), replicated(mesh)
        )
        for rows in s.decoded
    }
    calls = {
        rows: (parts.written, (model, prompts[rows], until[1]), {"new": s.new})
        for rows in s.decoded
    }
    programs, _ = compiled(calls, turns.alone)

    found: dict[str, Any] = {}
    for rows in s.decoded:
        some = {}
        for new in (1, s.new):
            call: Callable[[], Any] = partial(programs[rows], model, prompts[rows], until[new])
            some[new] = times(call, jax.block_until_ready, 1, max(3, s.times // 3))
        each = (some[s.new]["ms"] - some[1]["ms"]) / (s.new - 1)
        found[f"b{rows}"] = some[s.new] | moved(programs[rows].as_text())
        found[f"b{rows}_per_token"] = {"ms": round(each, 4)}
    return found | {"model": _sizes(model) | parts._memory()}


def moved(text: str) -> dict[str, Any]:
    """Of a compiled program: how often it talks to other devices, and the bytes of what a device
    then has, by kind (a loop's body counts once)."""
    kinds = "all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute"
    found: dict[str, list[float]] = {}
    for shape, kind in re.findall(rf"= (.+?) ({kinds})(?:-start)?\(", text):
        arrays = re.findall(r"(\w+)\[([\d,]*)\]", shape)
        count = sum(SIZES.get(dtype, 4) * _product(dims) for dtype, dims in arrays)
        held = found.setdefault(kind, [0, 0])
        held[0] += 1
        held[1] += count
    return {"moved": {k: {"times": int(n), "mb": round(b / 1e6, 3)} for k, (n, b) in found.items()}}


def _product(dims: str) -> int:
    total = 1
    for size in filter(None, dims.split(",")):
        total *= int(size)
    return total


def _sizes(frozen: Any) -> dict[str, float]:
    from lw_jax.runs.abstract import size_in_bytes

    return {"weights_gb": round(size_in_bytes(frozen) / 1e9, 3)}


def _filled(tree: Any) -> Any:
    """Random weights of these shapes, each device making its part: norms one, others 0.02 wide."""
    import jax
    import jax.numpy as jnp

    made: dict[Any, Callable[[Any], Any]] = {}

    def fill(path: Any, x: Any) -> Any:
        name = jax.tree_util.keystr(path)
        norm, kind = "norm" in name, (x.shape, x.dtype, x.sharding, "norm" in name)
        if kind not in made:

            def draw(key: Any) -> Any:
                if norm:
                    return jnp.ones(x.shape, x.dtype)
                return jax.random.normal(key, x.shape, x.dtype) * jnp.asarray(0.02, x.dtype)

            made[kind] = jax.jit(draw, out_shardings=x.sharding)
        return made[kind](jax.random.key(len(name)))

    return jax.tree_util.tree_map_with_path(fill, tree)


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--preset", choices=("smoke", "h200"), default="smoke")
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--ways", default=";".join(WAYS), help="names, separated by ;")
    parser.add_argument("--remat", default="full", choices=("full", "dots", "none"))
    parser.add_argument("--attention", default="auto", choices=("auto", "xla", "cudnn"))
    parser.add_argument("--seconds", type=int, default=600, help="that one process may take")
    parser.add_argument("--out", type=Path, default=Path("several.json"))
    parser.add_argument("--times", type=int, help="calls measured; of the preset by default")
    parser.add_argument("--turns", type=Path, help="folder of locks: load side by side")
    parser.add_argument("--add", action="store_true", help="to what the file holds")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.one:
        _one(*json.loads(given.one))
        return 0
    names = given.ways.split(";")
    if unknown := set(names) - set(WAYS):
        known = "; ".join(WAYS)
        parser.error(f"--ways: {', '.join(sorted(unknown))} not known; choose from {known}")
    if given.devices < 2:
        parser.error("--devices: 2 or more")
    how: dict[str, Any] = {"remat": given.remat, "attention": given.attention}
    how |= {} if given.times is None else {"times": given.times}
    where = given.seconds, given.out, given.add, given.turns
    found = measured(given.preset, given.devices, names, how, *where)
    print(json.dumps(found["beside one"], indent=1))
    return 1 if any("failed" in found["ways"][name] for name in names) else 0


if __name__ == "__main__":
    raise SystemExit(main())
