"""Measures lw_jax, and PyTorch beside it where that has a GPU, and writes docs/performance.md.

    python -m benchmarks.run --preset h200 --parts step,decode,handoff,start --out speed.json
    python -m benchmarks.run --preset h200 --parts decode --ways "lw_jax;lw_jax, int8" --out d.json
    python -m benchmarks.run --page speed.json d.json   # writes docs/performance.md from them

Each way of each part is a process of its own, one after another. Times are medians after warm-up;
ratios are of one run, so of one machine on one day. Weights are random: nothing is downloaded.
`smoke` only shows that everything runs. `--set sources=512,256` are lengths of a step's texts,
`--profile DIR` keeps traces. With `--turns FILE` all ways load side by side, and compile and
measure in turn, by a lock on the file, which takes less time; their memory must fit. A `note`
written into the JSON file by hand, such as what else ran on the machine, stands in the page.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from benchmarks.machine import last_line, measured_on
from benchmarks.speed.process import ROOT, rows_of
from benchmarks.speed.turns import enter
from benchmarks.speed.uneven import said

PAGE = ROOT / "docs" / "performance.md"
BEGIN = "<!-- begin: written by `python -m benchmarks.run --page FILE.json ...` -->"
END = "<!-- end -->"
WAYS: dict[str, dict[str, dict[str, str]]] = {
    "step": {
        "lw_jax": {},
        "lw_jax, attention xla": {"attention": "xla"},
        "lw_jax, layers scanned": {"unroll": "never"},
        "lw_jax, layers scanned, remat dots": {"unroll": "never", "remat": "dots"},
        "lw_jax, remat dots": {"remat": "dots"},
        "lw_jax, remat none": {"remat": "none"},
        "lw_jax, float8": {"quant": "float8"},
        "lw_jax, float8, remat dots": {"quant": "float8", "remat": "dots"},
        "lw_jax, float8, remat none": {"quant": "float8", "remat": "none"},
        "lw_jax, remat none, reused": {"remat": "none", "reuse": "yes"},
        "lw_jax, remat none, 4 questions": {"remat": "none", "questions": "4"},
        "lw_jax, remat none, 4 questions, text shared": {
            "remat": "none",
            "questions": "4",
            "shared": "yes",
        },
        "torch, plain": {"torch": "plain"},
        "torch, tuned": {"torch": "tuned"},
        "torch, tuned and compiled": {"torch": "compiled"},
    },
    "uneven": {
        "lw_jax": {},
        "lw_jax, remat none": {"remat": "none"},
        "lw_jax, float8, remat none": {"quant": "float8", "remat": "none"},
        "torch, tuned": {"torch": "tuned"},
        "torch, tuned and compiled": {"torch": "compiled"},
    },
    "decode": {
        "lw_jax": {},
        "lw_jax, layers scanned": {"unroll": "never"},
        "lw_jax, kernels": {"decoding": "kernels"},
        "lw_jax, kernels, int8": {"decoding": "kernels", "quant": "int8"},
        "lw_jax, kernels, float8": {"decoding": "kernels", "quant": "float8"},
        "lw_jax, int8": {"quant": "int8"},
        "lw_jax, float8": {"quant": "float8"},
        "lw_jax, Triton's products": {"flags": "--xla_gpu_enable_triton_gemm=true"},
        "lw_jax, Triton's products, int8": {
            "flags": "--xla_gpu_enable_triton_gemm=true",
            "quant": "int8",
        },
        "lw_jax, the loop one graph": {"flags": "--xla_gpu_enable_command_buffer=+WHILE"},
        "lw_jax, kernels, the loop one graph": {
            "decoding": "kernels",
            "flags": "--xla_gpu_enable_command_buffer=+WHILE",
        },
        "torch, dynamic cache": {"torch": "plain"},
        "torch, static cache, compiled": {"torch": "compiled"},
    },
    "handoff": {
        "lw_jax": {},
        "lw_jax, layers scanned": {"unroll": "never"},
        "lw_jax, attention xla": {"attention": "xla"},
    },
    "tiles": {"lw_jax": {}},
    "start": {"lw_jax": {}},
}
"""Who does a part, and how."""
RIVALS = {
    "step": "torch, tuned and compiled",
    "uneven": "torch, tuned and compiled",
    "decode": "torch, static cache, compiled",
}
"""Against whom a part's ratios are."""
START = ["--config", "configs/quickstart_scratch.yaml", "--stages.fit.train.steps=2"]
START += ["--stages.fit.train.eval_every=0"]


def measured(
    preset: str,
    parts: list[str],
    seconds: int,
    out: Path,
    ways: frozenset[str] = frozenset(),
    more: dict[str, str] | None = None,
    turns: Path | None = None,
) -> dict[str, Any]:
    """Runs the parts, each way in a process of its own; the file holds what is measured so far.

    Args:
        preset: `smoke` or `h200`.
        parts: some of `WAYS`.
        seconds: that one process may take.
        out: JSON file.
        ways: names of the ways; empty: all (of `smoke` the first).
        more: what every way is told besides: `texts`, lengths of the texts that are handed over;
            `unroll`, `attention`, `quant`, `remat` as in a config.
        turns: file that is locked by who measures: all ways load side by side, and compile and
            measure in turn, also beside other runs with this file. None: one after another.
    """
    # Of a smoke run that each part runs once is enough: to show that it does.
    asked = [
        (part, name, how | (more or {}))
        for part in parts
        for name, how in WAYS[part].items()
        if (name in ways if ways else preset != "smoke" or not how)
    ]
    made = "import torch; print(torch.cuda.is_available())"
    if any("torch" in how for _, _, how in asked) and not (
        importlib.util.find_spec("torch") is not None and "True" in last_line(made)
    ):
        asked = [one for one in asked if "torch" not in one[2]]
    found: dict[str, Any] = {
        "preset": preset,
        **measured_on(),
        "parts": {part: {} for part in parts},
    }
    lock = threading.Lock()

    def run(one: tuple[str, str, dict[str, str]]) -> None:
        part, name, how = one
        print(f"{part}: {name}", file=sys.stderr, flush=True)
        began = time.perf_counter()
        rows = _process(preset, part, how, seconds)
        took = f"{part}: {name}: {time.perf_counter() - began:.0f} s"
        with lock:
            print(f"{took} {rows.get('failed', '')}", file=sys.stderr, flush=True)
            found["parts"][part][name] = rows
            out.write_text(json.dumps(found, indent=1) + "\n")

    if turns is None:
        for one in asked:
            run(one)
        return found
    shared = {"turns": str(turns.resolve())}
    with ThreadPoolExecutor(max(1, len(asked))) as pool:
        list(pool.map(run, [(part, name, how | shared) for part, name, how in asked]))
    for part, rows in found["parts"].items():  # as they were asked for, not as they ended
        found["parts"][part] = {name: rows[name] for name in WAYS[part] if name in rows}
    out.write_text(json.dumps(found, indent=1) + "\n")
    return found


def _environ(preset: str, how: dict[str, str]) -> dict[str, str]:
    """Of the processes: a smoke run compiles more than it computes, and is quicker without LLVM's
    optimiser; those that share a device take no more memory than they need."""
    flags = [os.environ.get("XLA_FLAGS", ""), how.get("flags", "")]
    if preset == "smoke":
        flags.append("--xla_backend_optimization_level=0")
    shared = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} if "turns" in how else {}
    return os.environ | shared | {"XLA_FLAGS": " ".join(flags).strip()}


def _process(preset: str, part: str, how: dict[str, str], seconds: int) -> dict[str, Any]:
    if part == "start":
        return _starts(preset, seconds)
    command = [sys.executable, "-m", "benchmarks.run", "--one", json.dumps([preset, part, how])]
    return rows_of(command, _environ(preset, how), seconds)


def _one(preset: str, part: str, how: dict[str, str]) -> None:
    """In a process of its own: does a part one way, and prints its rows."""
    from benchmarks.speed.sizes import sizes

    kind = "torch" if "torch" in how else "lw_jax"
    if kind == "lw_jax":  # the flags that the command line sets
        from lw_jax.launch import set_environment

        set_environment(os.environ)
    parts = importlib.import_module(f"benchmarks.speed.{kind}_parts").PARTS
    enter(how.get("turns"))
    with _profiled(how.get("profile"), kind):
        rows = parts[part](sizes(preset), how)
    print(json.dumps(rows))


def _profiled(folder: str | None, kind: str) -> AbstractContextManager[Any]:
    """Traces what runs in it, for TensorBoard and Perfetto; None: does not."""
    if folder is None or kind != "lw_jax":
        return nullcontext()
    import jax

    return jax.profiler.trace(folder)


def _starts(preset: str, seconds: int) -> dict[str, Any]:
    """From the command to the end of two steps of the small models, with an empty cache of compiled
    programs and with what that left."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        over = Path(folder) / "over.yaml"
        over.write_text(json.dumps({"stages": {"align": None, "report": None}}))
        environ = _environ(preset, {}) | {"JAX_COMPILATION_CACHE_DIR": f"{folder}/cache"}
        for name in ("cold", "warm"):
            command = [sys.executable, "-m", "lw_jax.launch", *START, "--config", str(over)]
            before, began = os.times(), time.perf_counter()
            done = subprocess.run(
                [*command, f"--run_dir={folder}/{name}"],
                cwd=ROOT,
                env=environ,
                capture_output=True,
                timeout=seconds,
                check=False,
            )
            after = os.times()
            used = sum(after[2:4]) - sum(before[2:4])
            row = {"s": round(time.perf_counter() - began, 2), "cpu_s": round(used, 2)}
            found[name] = row if not done.returncode else {"failed": done.stderr.decode()[-200:]}
    return found


def page(*runs: dict[str, Any]) -> str:
    """What is measured in docs/performance.md: a table a part, and what it was measured on; runs of
    one preset on one machine, one day and one version stand together."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for found in runs:
        own = {"parts": None, "ways": None, "beside one": None}
        groups.setdefault(json.dumps({**found, **own}), []).append(found)
    return "\n\n".join(
        _several(alike) if "several" in alike[0] else _group(alike) for alike in groups.values()
    )


def _about_of(found: dict[str, Any]) -> str:
    """A sentence: on what, when, and of which versions."""
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    return (
        f"Preset `{found['preset']}` on {found['devices']} x {found['device']}, {found['cores']} "
        f"cores ({found['machine']}), {found['date']}; Python {found['python']}, {versions}; "
        f"lw_jax {found['lw_jax']}{', commit ' + found['commit'] if 'commit' in found else ''}."
    )


def _several(runs: list[dict[str, Any]]) -> str:
    """The table of runs of `benchmarks.several`."""
    found = runs[0]
    ways = {name: rows for run in runs for name, rows in run["ways"].items()}
    beside = {name: rows for run in runs for name, rows in run["beside one"].items()}
    lines = [
        _about_of(found),
        "",
        "```",
        f"python -m benchmarks.several --preset {found['preset']} --devices {found['several']} "
        f'--ways "{";".join(ways)}" --out FILE.json',
        "```",
        "",
        "Medians after warm-up, each call waited for. A step has as many rows a device whichever",
        "way it goes; its efficiency is the rows a second of a device beside those of one alone.",
    ]
    if found.get("note"):
        lines += ["", found["note"]]
    lines += ["", "## several devices", ""]
    lines += ["| way | | ms | min to max | weights, peak GB a device | beside one |"]
    lines += ["|---|---|---|---|---|---|"]
    for name, rows in ways.items():
        if "failed" in rows:
            lines.append(f"| {name} | | failed: {rows['failed']} | | | |")
            continue
        held = rows.get("model", {}) | rows.get("step", {})
        for what, row in rows.items():
            if "ms" not in row:
                continue
            size = f"{what.partition('_')[0]} "
            gain = [
                f"{key.removeprefix(size).strip()} {value:.2f}"
                for key, value in beside.get(name, {}).items()
                if key == "efficiency" or (what.endswith("_per_token") and key.startswith(size))
            ]
            spread = f"{_ms(row['min'])} to {_ms(row['max'])}" if "min" in row else ""
            gb = f"{held.get('weights_gb', '')}, {held.get('peak_gb', '')}"
            lines.append(
                f"| {name} | {what} | {_ms(row['ms'])} | {spread} | {gb} | {'; '.join(gain)} |"
            )
    return "\n".join(lines)


def _group(runs: list[dict[str, Any]]) -> str:
    found = {**runs[0], "parts": {}}
    for run in runs:
        for part, ways in run["parts"].items():
            found["parts"].setdefault(part, {}).update(ways)
    lines = [
        _about_of(found),
        "",
        "```",
        f"python -m benchmarks.run --preset {found['preset']} --parts {','.join(found['parts'])} "
        "--out FILE.json",
        "```",
        "",
        "Medians after warm-up, each call waited for; `first` is the first call with its",
        "compilation. Ratios are to the row named, in the same run.",
    ]
    if found.get("note"):
        lines += ["", found["note"]]
    for part, ways in found["parts"].items():
        rival = ways.get(RIVALS.get(part, ""), {})
        against = RIVALS.get(part, "lw_jax")
        if not rival or "failed" in rival:  # then to the first way, lw_jax where that was asked for
            ran = (name for name, rows in ways.items() if "failed" not in rows)
            against = "lw_jax" if "lw_jax" in ways else next(ran, "lw_jax")
        lines += ["", f"## {part}", ""]
        if part == "start":
            lines += ["| cache | seconds | CPU seconds |", "|---|---|---|"]
            for name, row in ways["lw_jax"].items():
                lines.append(f"| {name} | {row.get('s', 'failed')} | {row.get('cpu_s', '')} |")
            continue
        if part == "tiles":
            lines += _tiles(ways)
            continue
        plans = " planned GB |" if part in ("step", "uneven") else ""
        lines.append(f"| | by | ms | min to max | first, s | peak GB |{plans} ratio to {against} |")
        lines.append("|---|---|---|---|---|---|---|" + ("---|" if plans else ""))
        for name, rows in ways.items():
            if "failed" in rows:
                lines.append(f"| | {name} | failed: {rows['failed']} | | | | |{' |' * bool(plans)}")
                continue
            for what, row in rows.items():
                other = ways.get(against, {}).get(what, {}).get("ms")
                ratio = f"{row['ms'] / other:.2f}" if other else ""
                began = round(row.get("compile_s", 0) + row.get("first_s", 0), 1) or ""
                planned = f" {row.get('planned_gb', '')} |" if plans else ""
                spread = f"{_ms(row['min'])} to {_ms(row['max'])}" if "min" in row else ""
                lines.append(
                    f"| {what} | {name} | {_ms(row['ms'])} | {spread} | {began} "
                    f"| {row.get('peak_gb', '')} |"
                    f"{planned} {ratio} |"
                )
        lines += _said_besides(ways)
        lines += said(ways, against)
    return "\n".join(lines)


def _said_besides(ways: dict[str, Any]) -> list[str]:
    """What a table has no column for: a text's share of the peak, and how far kernels are off."""
    lines, off = [], {}
    for name, rows in ways.items():
        for what, row in rows.items() if "failed" not in rows else ():
            if "share_of_peak" in row:
                lines.append(
                    f"{what}, {name}: {row['tflops']:.0f} TFLOP/s, {row['share_of_peak']:.2f} of "
                    f"{rows['matmul']['tflops']:.0f} of one product of 8192 x 8192 matrices; "
                    f"{row['times_latent']:.1f} times the time of reading the latent."
                )
            if "off" in row:
                off.setdefault(name, []).append(f"{row['off']:.3f}")
    if off:
        said = "; ".join(f"{name}: {', '.join(values)}" for name, values in off.items())
        lines.append(f"How far the stream after a token is from the decoder's, by rows: {said}.")
    return [line for text in lines for line in ("", text)]


def _tiles(ways: dict[str, Any]) -> list[str]:
    """Of each product XLA's time and that of the fastest cut."""
    lines = ["| product | by | microseconds | GB/s |", "|---|---|---|---|"]
    rows = next(iter(ways.values()))
    if "failed" in rows:
        return [*lines, f"| | failed: {rows['failed']} | | |"]
    for name, row in rows.items():
        product, _, kind = name.rpartition("_")
        if kind == "fastest":
            cut = "_".join(str(n) for n in row["tile"])
            for label, key in (("XLA", "xla"), (cut.replace("_", " "), cut)):
                at = rows[f"{product}_{key}"]
                lines.append(
                    f"| {product} | {label} | {at['ms'] * 1e3:.1f} | {at['gb_per_s']:.0f} |"
                )
    return lines


def _ms(value: float) -> str:
    """Milliseconds to three figures or more."""
    return f"{value:.1f}" if value >= 100 else f"{value:.2f}"


def spliced(text: str, tables: str) -> str:
    """A page with new tables between its two marks; what stands around them stays."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}"


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--preset", choices=("smoke", "h200", "real"), default="smoke")
    parser.add_argument("--parts", default=",".join(WAYS), help=f"some of {','.join(WAYS)}")
    parser.add_argument("--ways", default="", help="names of ways, ; between them; empty: all")
    parser.add_argument(
        "--set", action="append", default=[], help="of every way: texts=512,2048 or unroll=always"
    )
    parser.add_argument("--profile", help="folder for traces of lw_jax; times are longer then")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--seconds", type=int, default=550, help="that one process may take")
    parser.add_argument("--turns", type=Path, help="lock file: load side by side, measure in turn")
    parser.add_argument(
        "--page", type=Path, nargs="+", help="JSON files to write docs/performance.md from"
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        _one(*json.loads(asked.one))
        return 0
    if asked.page:
        tables = page(*(json.loads(file.read_text()) for file in asked.page))
        PAGE.write_text(spliced(PAGE.read_text(), tables))
        return 0
    parts = asked.parts.split(",")
    if asked.out is None or not set(parts) <= set(WAYS):
        parser.error(f"--out FILE.json and --parts of {','.join(WAYS)} are needed")
    ways = frozenset(asked.ways.split(";")) - {""}
    unknown = ways - {name for part in parts for name in WAYS[part]}
    if unknown:
        parser.error(f"--ways: {', '.join(sorted(unknown))}: no part has it")
    more = dict(pair.split("=", 1) for pair in asked.set)
    if asked.profile:
        more["profile"] = str(Path(asked.profile).resolve())
    found = measured(asked.preset, parts, asked.seconds, asked.out, ways, more, asked.turns)
    failed = [n for rows in found["parts"].values() for n, r in rows.items() if "failed" in r]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
