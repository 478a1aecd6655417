"""A record: what a run measured, in one line, small enough to keep in the repository.

A file `<topic>.jsonl` holds a line for each run: its name; the config's keys that are not at their
default; of each train stage the steps, seconds, logged losses and the alarms with the steps at
which each first and last fired; and of each evaluation the figures that a page can show
(`lw_jax.results.columns`, `lw_jax.results.figures`). A probe (`lw-jax probe`) stands there as an
evaluation `probe_<kind>`, whose methods are the lines of its table. A run that was stopped in
training has a record of it, and no evaluations.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from lw_jax.errors import UserError
from lw_jax.evaluate.metrics import metrics
from lw_jax.utils.files import DIAGNOSTICS_LINE, damaged, read_json, read_lines, write_text

COUNTS = ("n", "compared", "columns", "wire_bytes", "seconds", "seconds_writing", "seconds_reading")
SLOTS = ("rms_ratio", "codes_perplexity", "codes_distinct")
_ALARM = "/alarm/"


def record_of(run_dir: Path) -> dict[str, Any]:
    """The record of a run directory.

    Raises:
        UserError: there is no run, or it has neither trained nor evaluated.
    """
    from lw_jax.runs.directory import read_config  # pages are written without jax

    config = read_config(run_dir)
    evaluations = dict(_evaluations(run_dir))
    lines, _ = read_lines(run_dir / "diagnostics.jsonl", DIAGNOSTICS_LINE)
    if not evaluations and not any(line["kind"] == "train" for line in lines):
        raise UserError(f"{run_dir}: neither metrics.json nor training there; let the run go on")
    ended = run_dir / "finished.json"
    seconds = read_json(ended, dict) if ended.is_file() else {}
    trained = [name for name, stage in config.stages.items() if stage.train is not None]
    return {
        "name": run_dir.name,
        "config": changed(dataclasses.replace(config, run_dir=None)),
        "training": {
            name: training([line for line in lines if line["stage"] == name])
            | {"seconds": seconds.get(name)}
            for name in trained
        },
        "evaluations": evaluations,
    }


def changed(value: Any) -> Any:
    """A config as plain values, without the keys that are at their default."""
    if dataclasses.is_dataclass(value):
        held = {f.name: (getattr(value, f.name), f) for f in dataclasses.fields(value)}
        return {name: changed(v) for name, (v, f) in held.items() if v != _default(f)}
    if isinstance(value, Mapping):
        return {name: changed(below) for name, below in value.items()}
    if isinstance(value, list | tuple):
        return [changed(below) for below in value]
    return value


def _default(field: dataclasses.Field[Any]) -> Any:
    made = field.default_factory
    return field.default if made is dataclasses.MISSING else made()


def training(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Steps, median seconds per step, losses and alarms from a train stage's diagnostics.

    `course` has steps and losses, `watched` the last step at which alarms could fire (0: never),
    `looks` the median share of the time that a look between quick evaluations takes, after the
    first, which may wait for its program; there only where a stage has two.
    """
    # an interval without a finite step has no loss
    steps = [line for line in lines if line["kind"] == "train" and _is_number(line, "loss")]
    timed = [line["seconds_per_step"] for line in steps if _is_number(line, "seconds_per_step")]
    watched = [line for line in lines if line["kind"] == "evaluate"]
    looks = [line["share_of_time"] for line in lines if _is_number(line, "share_of_time")]
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
        "seconds_per_step": median(timed) if timed else None,
        "loss": last.get("loss"),
        "course": [[line["step"], line["loss"]] for line in steps],
        "watched": watched[-1]["step"] if watched else 0,
        "alarms": fired,
        "alarms_last": last_fired,
    } | ({"looks": median(looks[1:])} if looks[1:] else {})


def _is_number(line: Mapping[str, Any], key: str) -> bool:
    return isinstance(line.get(key), int | float)


def evaluation(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What a page can show of an evaluation's `metrics.json`."""
    latent = metrics["compression"].get("latent", {})
    found = {
        "receivers": {
            receiver: {name: _method(held) for name, held in methods.items()}
            for receiver, methods in metrics["receivers"].items()
        },
        "joint": {
            which: {"em": held["em"], "ci": _only(held["ci"], ("em",))}
            for which, held in metrics["joint"].items()
            if which in ("rescored", "oracle")
        },
        "verdict": {
            receiver: _only(held, ("carries", "share"))
            for receiver, held in metrics["verdict"].items()
        },
        "normalised": {
            receiver: {
                line: {figure: _only(one, ("share", "ci")) for figure, one in scores.items() if one}
                for line, scores in held["lines"].items()
            }
            for receiver, held in metrics.get("normalised", {}).items()
        },
        "probe": {
            who: _only(held, ("accuracy", "ci")) for who, held in metrics.get("probe", {}).items()
        },
        "compression": {
            "receivers": {
                receiver: _only(held, ("tokens_per_column", "characters_per_column"))
                for receiver, held in metrics["compression"].get("receivers", {}).items()
            },
            "latent": _only(latent, ("bytes",)),
        },
        "parameters": _only(metrics["parameters"], ("total",)),
        "data": _only(metrics["data"], ("rows", "entity_floor")),
        "versions": _only(metrics["versions"], ("jax", "device")),
    }
    return {k: v for k, v in found.items() if v or k not in ("joint", "normalised", "probe")}


def _method(held: Mapping[str, Any]) -> dict[str, Any]:
    kept = tuple(name for name, metric in metrics().items() if metric.recorded)
    found = _only(held, kept + COUNTS)
    for name, keys in (("ci", kept), ("slots", SLOTS)):
        if part := _only(held.get(name, {}), keys):
            found[name] = part
    return found


def _only(held: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: held[key] for key in keys if key in held}


def _evaluations(run_dir: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Stage and figures of every evaluation; repeated ones are `<stage>@<number>`."""
    for path in sorted(run_dir.glob("*/metrics.json")) + [run_dir / "metrics.json"]:
        if path.is_file():
            yield _evaluation(path)
    for path in sorted(run_dir.glob("probe_*.json")):
        yield path.stem, _probe(path)
    for path in sorted(run_dir.glob("evaluations/*/metrics.json")):
        stage, found = _evaluation(path)
        yield f"{stage}@{path.parent.name}", found


def _evaluation(path: Path) -> tuple[str, dict[str, Any]]:
    """The stage of an evaluation's `metrics.json`, and its figures.

    Raises:
        UserError: the file is damaged.
    """
    metrics = read_json(path, dict)
    try:
        if not isinstance(metrics["stage"], str):
            raise TypeError("its stage is no text")
        return metrics["stage"], evaluation(metrics)
    except (KeyError, TypeError, AttributeError) as error:
        raise damaged(path, f"{type(error).__name__}: {error}") from None


def _probe(path: Path) -> dict[str, Any]:
    """The figures of a probe (`lw_jax.probes`), each of its lines as a method's.

    Raises:
        UserError: the file is damaged.
    """
    held = read_json(path, dict)
    try:
        lines = {
            line: {name: one["value"] for name, one in figures.items()}
            | {"ci": {name: one["ci"] for name, one in figures.items()}}
            | {"n": max((one["n"] for one in figures.values()), default=0)}
            for line, figures in held["figures"].items()
        }
        return {
            "receivers": {held["receiver"]: lines},
            "asked": held["asked"],
            "seconds": held["seconds"],
            "versions": _only(held["versions"], ("jax", "device")),
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise damaged(path, f"{type(error).__name__}: {error}") from None


def write_record(run_dir: Path, where: Path) -> Path:
    """Adds a run's record to a file (see `put`).

    Returns:
        The file's path.
    """
    return put(record_of(run_dir), where)


def put(record: Mapping[str, Any], where: Path) -> Path:
    """Adds a record, with figures of six digits, or replaces the one of its name.

    Args:
        record: the record.
        where: a file `<topic>.jsonl`, or the folder of such files if one of them has the name.

    Returns:
        The file's path.

    Raises:
        UserError: no file has the name, or another one than `where`.
    """
    named = where.suffix == ".jsonl"
    folder, name = where.parent if named else where, record["name"]
    files = {path: _read(path) for path in sorted(folder.glob("*.jsonl"))}
    holding = next((path for path, held in files.items() if name in held), None)
    if holding is None and not named:
        there = ", ".join(path.name for path in files) or "none"
        raise UserError(
            f"{folder}: no record {name!r} yet; name its file, TOPIC.jsonl (there are {there})"
        )
    if named and holding not in (None, where):
        raise UserError(f"{where}: {name!r} is in {holding}; give that file, or the folder")
    path = holding or where
    held = files.get(path, {}) | {name: _rounded(record)}
    lines = [
        json.dumps(held[name], ensure_ascii=False, separators=(",", ":")) + "\n"
        for name in sorted(held)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(lines))
    return path


def read_records(folder: Path) -> dict[str, dict[str, Any]]:
    """The records of a folder by the runs' names.

    Raises:
        UserError: a line that is no record, or a name that two lines have.
    """
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        held = _read(path)
        if twice := sorted(set(found) & set(held)):
            raise UserError(f"{path}: {twice[0]!r} is in another file as well; remove one")
        found |= held
    return found


def _read(path: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    # not splitlines, which also cuts at what stands inside a text, such as U+2028
    for number, line in enumerate(path.read_bytes().removesuffix(b"\n").split(b"\n"), 1):
        if not line and number == 1:
            continue  # the file is empty
        try:
            record = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError):
            record = None
        name = record.get("name") if isinstance(record, dict) else None
        if not isinstance(name, str):
            raise UserError(f"{path}, line {number}: no record (JSON with a name)")
        if name in found:
            raise UserError(f"{path}, line {number}: {name!r} is there twice; remove one")
        found[name] = record
    return found


def _rounded(content: Any) -> Any:
    if isinstance(content, float):
        return float(f"{content:.6g}")
    if isinstance(content, Mapping):
        return {k: _rounded(v) for k, v in content.items()}
    if isinstance(content, list | tuple):
        return [_rounded(v) for v in content]
    return content
