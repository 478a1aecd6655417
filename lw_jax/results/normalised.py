"""The teacher-normalised score of several seeds' runs, from their predictions on the same rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lw_jax.errors import UserError
from lw_jax.evaluate.normalised import EXACT, Groups, Line, of_lines
from lw_jax.utils.files import NUMBER, damaged, fits, read_json, read_lines

_SAID = {"f1": NUMBER, "em": NUMBER, "nll": NUMBER, "tokens": int}
ROW = {"id": str, "context_id": str, "receivers": {...: {...: _SAID}}}
"""The form of a line of predictions.jsonl, of what the scores are made of."""


def sentences(runs: Sequence[Path], text: Sequence[Path] = ()) -> list[str]:
    """What every line of every receiver carries, in sentences; intervals are over articles and
    seeds. Lines that not all runs have are left out.

    Args:
        runs: directories with `metrics.json` and `predictions.jsonl`, one for each seed.
        text: those of more receivers that were given the text and tuned for it, each evaluated by
            itself on the same rows: its line `latent`. They may be the upper end as well as the
            runs' own, and are the same for every seed.

    Raises:
        UserError: a file is missing or damaged, has no normalised score, or is of other rows.
    """
    check_different(runs)
    held = [read_evaluation(run) for run in runs]
    if len({run.name for run in text}) < len(text):
        raise UserError(f"text: two of {', '.join(map(str, text))} have the same name; rename one")
    readers = {run.name: read_evaluation(run)[1] for run in text}
    for run, (metrics, _) in zip(runs, held, strict=True):
        if not metrics.get("normalised"):
            raise UserError(
                f"{run}: its evaluation has no `normalised`, which names the score's ends"
            )
        if not fits(metrics["normalised"], {...: {"of": [str], "nothing": str}}):
            raise damaged(
                run / "metrics.json", "a receiver of `normalised` without `of`, `nothing`"
            )
    first, rows = held[0]
    by_id = on_same_rows(runs, [own for _, own in held])
    joined = on_same_rows([runs[0], *text], [rows, *readers.values()])[1:]
    more = dict(zip(readers, joined, strict=True))
    groups = groups_of(rows, len(runs))
    said = []
    for receiver, ends in first["normalised"].items():
        for run, (metrics, _) in zip(runs, held, strict=True):
            other = metrics["normalised"].get(receiver, {})
            if (other.get("of"), other.get("nothing")) != (ends["of"], ends["nothing"]):
                raise UserError(f"{run}: its normalised score has other ends than {runs[0]}")
        lines = {
            name: line_of(by_id, receiver, name)
            for name in rows[0]["receivers"].get(receiver, ())
            if all(name in row["receivers"].get(receiver, ()) for seed in by_id for row in seed)
        }
        for name, own in more.items():
            if not all("latent" in row["receivers"].get(receiver, ()) for row in own):
                raise UserError(f"{name}: no line `latent` of the receiver {receiver}")
            if name in lines:
                raise UserError(f"{name}: the runs have a line of this name")
            lines[name] = line_of([own] * len(runs), receiver, "latent")
        of = [*ends["of"], *more]
        if unknown := [name for name in (*of, ends["nothing"]) if name not in lines]:
            raise UserError(f"{runs[0]}: not all rows of all runs have the line {unknown[0]!r}")
        found = of_lines(lines, of, ends["nothing"], groups, seed=first["data"]["seed"])
        said += [f"{receiver}: {line}" for line in found["words"]]
    return said


def check_different(runs: Sequence[Path]) -> None:
    """Checks that no run stands for several seeds.

    Raises:
        UserError: one is given twice.
    """
    places = [run.resolve() for run in runs]
    for run, place in zip(runs, places, strict=True):
        if places.count(place) > 1:
            raise UserError(f"{run}: given twice; each run stands for a seed of its own")


def on_same_rows(
    runs: Sequence[Path], held: Sequence[Sequence[Mapping[str, Any]]]
) -> list[list[Mapping[str, Any]]]:
    """The rows of several evaluations in the order of the first, joined by their ids.

    Args:
        runs: directories, for messages.
        held: the rows of each.

    Raises:
        UserError: some are of other rows.
    """
    ids = [row["id"] for row in held[0]]
    by_id = []
    for run, own in zip(runs, held, strict=True):
        found = {row["id"]: row for row in own}
        if len(found) < len(own):
            raise UserError(f"{run}: several of its rows have one id, so they cannot be joined")
        if found.keys() != set(ids):
            raise UserError(
                f"{run}: other rows than {runs[0]}; evaluate with the same data and seed"
            )
        by_id.append([found[name] for name in ids])
    return by_id


def groups_of(rows: Sequence[Mapping[str, Any]], seeds: int) -> Groups:
    """Which rows are resampled together: those of an article, where it is known of all."""
    articles = [row.get("article", "") for row in rows]
    return Groups.of(articles, [row["context_id"] for row in rows], seeds)


def line_of(
    seeds: Sequence[Sequence[Mapping[str, Any]]], receiver: str, name: str
) -> dict[str, Line]:
    """A line's figures [S, n] of several seeds."""
    own = [[row["receivers"][receiver][name] for row in seed] for seed in seeds]
    tokens = [[one["tokens"] for one in seed] for seed in own]
    nats = [[one["nll"] * max(1, one["tokens"]) for one in seed] for seed in own]
    f1, em = ([[one[name] for one in seed] for seed in own] for name in ("f1", EXACT))
    return {"f1": Line(f1), "nll": Line(nats, tokens), EXACT: Line(em)}


def read_evaluation(run: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A run's metrics and predictions.

    Raises:
        UserError: a file is missing or damaged.
    """
    for name in ("metrics.json", "predictions.jsonl"):
        if not (run / name).is_file():
            raise UserError(f"{run}: no {name}; give the directory of a finished evaluation")
    metrics, path = read_json(run / "metrics.json", dict), run / "predictions.jsonl"
    rows, bad = read_lines(path, ROW)
    if bad or not rows:
        said = f"{bad} lines without id, context, f1, nll or tokens (of an earlier version?)"
        raise damaged(path, said if bad else "it is empty")
    receivers = rows[0]["receivers"].keys()
    if not receivers or any(row["receivers"].keys() != receivers for row in rows):
        raise damaged(path, "a line of other receivers than the first")
    if not fits(metrics, {"data": {"seed": int}}):
        raise damaged(run / "metrics.json", "no whole number at data.seed")
    return metrics, rows
