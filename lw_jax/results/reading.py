"""Whose reading a latent is: the bridge minus the best of those that read less than a sender says.

The others, at equal steps, read the sender's token embeddings alone, bytes, a sender of random
weights or the receiver's own embeddings (`configs/real/whose/`). What the bridge has over the best
of them is what the sender contributes. If its interval holds 0, it is compression and no
communication.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lw_jax.errors import UserError
from lw_jax.evaluate.normalised import Resampled
from lw_jax.results.normalised import (
    check_different,
    groups_of,
    line_of,
    on_same_rows,
    read_evaluation,
)

LATENT = "latent"
"""The line that is compared, and the name of the bridge's own runs."""
RESAMPLES = 10_000


def parsed(words: Sequence[str]) -> dict[str, list[Path]]:
    """`name=RUN,RUN` as runs by name, one for each seed.

    Raises:
        UserError: a word is of another form, a name or one of its runs is given twice, or `latent`
            or all others are missing.
    """
    found: dict[str, list[Path]] = {}
    for word in words:
        name, equals, runs = word.partition("=")
        if not (name and equals and all(runs.split(","))):
            raise UserError(f"reading: expected NAME=RUN or NAME=RUN,RUN,...; got {word!r}")
        if name in found:
            raise UserError(f"reading: {name} is given twice; list its runs after one =")
        found[name] = [Path(run) for run in runs.split(",")]
        check_different(found[name])
    if LATENT not in found or len(found) < 2:
        raise UserError(
            f"reading: give {LATENT}=RUN, the bridge's, and one or more others to hold it against"
        )
    return found


def reading(runs: Mapping[str, Sequence[Path]], resamples: int = RESAMPLES) -> list[str]:
    """What the sender contributes, in F1, in sentences: one for each other bridge of each receiver,
    and one for the best of these. Intervals are over articles and seeds.

    Args:
        runs: evaluations on the same rows by name, one for each seed; `latent` is the bridge.
        resamples: draws of the bootstrap.

    Raises:
        UserError: a file is missing or damaged, or is of other rows or receivers.
    """
    every = [(name, run) for name, own in runs.items() for run in own]
    held = {run: read_evaluation(run) for _, run in every}
    metrics, rows = held[every[0][1]]
    paths = list(held)
    by_run = dict(zip(paths, on_same_rows(paths, [held[run][1] for run in paths]), strict=True))
    counts = {len(own) for own in runs.values()}
    groups = groups_of(rows, max(counts))
    said = []
    for receiver in rows[0]["receivers"]:
        for run in paths:
            if any(LATENT not in row["receivers"].get(receiver, {}) for row in by_run[run]):
                raise UserError(f"{run}: no line {LATENT} of {receiver} in every row")
        lines = {
            name: line_of([by_run[run] for run in own], receiver, LATENT)["f1"]
            for name, own in runs.items()
        }
        names = [LATENT, *(name for name in lines if name != LATENT)]
        both = Resampled.of(
            [lines[name] for name in names], groups.labels, metrics["data"]["seed"], resamples
        )
        means = dict(zip(names, both.means, strict=True))
        best = max(names[1:], key=lambda name: means[name])
        for place, name in enumerate(names[1:], 1):
            low, high = both.interval(both.drawn[:, 0] - both.drawn[:, place], bounds=(-1, 1))
            gap = means[LATENT] - means[name]
            ends = f" [{low:+.3f}, {high:+.3f}]" if both.known else ""
            said.append(
                f"{receiver}: {LATENT} {means[LATENT]:.3f} F1, {name} {means[name]:.3f}: "
                f"{gap:+.3f}{ends}"
            )
            if name == best:
                told = _told(low, high) if both.known else "no interval: nothing can be said"
                last = (
                    f"{receiver}: the sender contributes {gap:+.3f}{ends} F1 ({LATENT} minus the "
                    f"best of these, {best}): {told}; over {groups}."
                )
        said.append(last)
    return said


def _told(low: float, high: float) -> str:
    if low > 0:
        return "communication, the sender's reading crosses"
    if high < 0:
        return "less than none, what it reads would do better without it"
    return "the interval holds 0, so this is compression, not communication"
