"""Texts of uneven length: the tokens of a real sample, and the batches that come of them.

    python -m benchmarks.speed.uneven DATA.json MODEL.gguf --out docs/performance/lengths.json

counts the tokens of contexts of SQuAD's nested form by a model's tokenizer. A step then has either
one of six lengths, the rows put together as `train.buckets` does, or the length of its longest row.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.speed.process import ROOT
from benchmarks.speed.sizes import Sizes
from lw_jax.data.stream import WINDOW, Stream
from lw_jax.text.buckets import TILE, borders

LENGTHS = ROOT / "docs" / "performance" / "lengths.json"
COUNT = 6
"""Lengths of a bucketed step."""
SAMPLE = 2048
"""Contexts, as many as a run measures."""


@dataclass(frozen=True)
class Batches:
    """The steps of an epoch, by the tokens that each text is padded to.

    Attributes:
        bucketed: each step's length, one of `COUNT`.
        longest: each step's longest text, its rows drawn without regard to length; rounded up to
            multiples of `TILE`, as each length is compiled.
        exact: the same, not rounded.
        mean, spread: tokens of a text, and their standard deviation.
        left_out: share of the texts that are too long.
    """

    bucketed: tuple[int, ...]
    longest: tuple[int, ...]
    exact: tuple[int, ...]
    mean: float
    spread: float
    left_out: float


@dataclass(frozen=True)
class _Rows:
    """Contexts by index: (tokens, pieces)."""

    rows: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int, /) -> tuple[tuple[int, int]]:
        return (self.rows[index],)


def batches(s: Sizes, file: Path = LENGTHS) -> Batches:
    """An epoch of a sample of texts.

    Args:
        s: rows of a step, and the longest text's tokens.
        file: JSON of `tokens` and `pieces` of each text.
    """
    found = json.loads(file.read_text())
    every = list(zip(found["tokens"], found["pieces"], strict=True))
    rows = _Rows(tuple(row for row in every if row[0] <= s.longest))
    tokens = np.asarray([row[0] for row in rows.rows])
    sizes = np.minimum(_rounded(np.sort(tokens)), s.longest)
    sizes[-1] = s.longest
    lengths = sorted({int(sizes[end]) for end in borders(sizes, COUNT)})

    def steps(pooled: bool) -> list[int]:
        stream: Stream[Any, Any] = Stream(
            rows, list, s.rows, length=(lambda row: int(row[0][1])) if pooled else None
        )
        each = (stream.indices(step) for step in range(len(rows) // s.rows))
        return [int(tokens[places].max()) for places in each]

    exact = steps(False)
    return Batches(
        tuple(min(size for size in lengths if size >= most) for most in steps(True)),
        tuple(int(size) for size in np.minimum(_rounded(np.asarray(exact)), s.longest)),
        tuple(exact),
        float(tokens.mean()),
        float(tokens.std()),
        1 - len(rows) / len(every),
    )


def _rounded(tokens: np.ndarray) -> np.ndarray:
    return -(-np.maximum(tokens, 1) // TILE) * TILE


def summary(each: dict[int, dict[str, Any]], of: Batches, kind: str, took: float) -> Any:
    """The rows of one way of padding.

    Args:
        each: times of a step of each length.
        of: the epoch's batches.
        kind: `bucketed` or `longest`.
        took: what `in_order` gives of them.
    """
    steps: tuple[int, ...] = getattr(of, kind)
    held = Counter(steps)
    weighed = sum(each[size]["ms"] * count for size, count in held.items()) / len(steps)
    row = {
        "ms": round(weighed, 4),
        "padded": round(sum(steps) / len(steps) / of.mean, 3),
        "steps": {str(size): held[size] for size in sorted(held)},
        "text_mean": round(of.mean, 1),
        "text_spread": round(of.spread, 1),
        "left_out": round(of.left_out, 4),
    }
    if kind == "longest":  # were each step as long as its longest text, and no longer
        sizes = sorted(each)
        times = np.interp(of.exact, sizes, [each[size]["ms"] for size in sizes])
        row["unrounded_ms"] = round(float(times.mean()), 4)
    return {kind: row, f"{kind}_unwaited": {"ms": round(took, 4)}}


def in_order(
    once: Callable[[int], Any], wait: Callable[[Any], Any], steps: tuple[int, ...]
) -> float:
    """Milliseconds a step of the first `WINDOW` steps, in which all ways have the same texts, in
    their order and not waited for one by one.

    Args:
        once: a step of this length, that was compiled.
        wait: waits for what it returned.
        steps: the lengths of an epoch's steps.
    """
    began = time.perf_counter()
    for size in steps[:WINDOW]:
        last = once(size)
    wait(last)
    return (time.perf_counter() - began) * 1e3 / len(steps[:WINDOW])


def said(ways: dict[str, Any], against: str) -> list[str]:
    """Of the page: what the texts are, and each way beside a rival that pads to the longest.

    Args:
        ways: the rows of each way of a part; of other parts nothing is said.
        against: the rival.
    """
    other = ways.get(against, {})
    row = other.get("longest")
    if row is None:
        return []
    lines = [
        f"Texts of {row['text_mean']:.0f} tokens, standard deviation {row['text_spread']:.0f}, "
        f"{100 * row['left_out']:.1f} % left out as too long. `bucketed` and `longest` are means "
        f"over the {sum(row['steps'].values())} steps of an epoch, by the times of their lengths; "
        "`unwaited` are steps in their order, as training goes. `longest` is rounded up to lengths "
        f"that are compiled; unrounded it would take {row['unrounded_ms']:.1f} ms, interpolated."
    ]
    for name, rows in ways.items():
        if "bucketed" in rows:
            own = rows["bucketed"]
            going = other["longest_unwaited"]["ms"] / rows["bucketed_unwaited"]["ms"]
            lines.append(
                f"{name}: padded {own['padded']:.2f} times in lengths that all share "
                f"({row['padded']:.2f} to the longest); {row['ms'] / own['ms']:.2f} times as fast "
                f"as {against} that pads to the longest, {row['unrounded_ms'] / own['ms']:.2f} as "
                f"one that does not round, {going:.2f} as training goes."
            )
    return [line for text in lines for line in ("", text)]


def main() -> int:
    """Counts tokens."""
    from lw_jax.data import squad
    from lw_jax.data.config import DataConfig
    from lw_jax.data.example import pieces
    from lw_jax.data.load import load_rows, sample
    from lw_jax.models.config import ModelConfig
    from lw_jax.models.spec import open_model

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("model")
    parser.add_argument("--out", type=Path, default=LENGTHS)
    asked = parser.parse_args()
    tokenizer = open_model("model", ModelConfig(asked.model)).tokenizer
    rows = load_rows(DataConfig(squad=squad.Config(train=asked.data, eval=None)), "train", 0)
    groups = sample(rows, SAMPLE)
    said = {
        "data": Path(asked.data).name,
        "tokenizer": Path(asked.model).name,
        "contexts": len(groups),
        "tokens": [len(tokenizer.encode(group[0].context)) for group in groups],
        "pieces": [pieces(group) for group in groups],
    }
    asked.out.write_text(json.dumps(said) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
