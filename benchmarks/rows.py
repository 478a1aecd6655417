"""How fast rows are made: microseconds a row of facts and of the pretraining mixture, and
milliseconds a batch in process.

    python benchmarks/rows.py

Medians over 5 rounds of 1,000 rows (10 batches), after one that is not counted.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from lw_jax.data.facts import FactsRows
from lw_jax.data.stream import Stream
from lw_jax.pretrain.mixture import Shares, mixture

ROUNDS, ROWS, BATCHES, BATCH = 5, 1000, 10, 128


def seconds(work: Callable[[], object]) -> float:
    """Median time of a round."""
    work()
    found = []
    for _ in range(ROUNDS):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return statistics.median(found)


def main() -> None:
    """Print one line each."""
    facts = FactsRows("train", 0, 6, 10**8, questions=3)
    mixed = mixture(Shares(gsm8k_copy=0.0, gsm8k_solve=0.0), "train", 0)
    stream = Stream(facts, list, BATCH, questions=3)
    one_row = 1e6 / ROWS
    print(
        f"facts, 6 sentences, 3 questions: {one_row * seconds(lambda: _read(facts)):.0f} us a row"
    )
    print(f"pretraining mixture of facts: {one_row * seconds(lambda: _read(mixed)):.0f} us a row")
    batches = seconds(lambda: [stream.batch(step) for step in range(BATCHES)])
    print(f"facts, batch {BATCH}, uncollated: {1e3 / BATCHES * batches:.1f} ms a batch")


def _read(rows: object) -> None:
    for i in range(ROWS):
        rows[i]  # type: ignore[index]


if __name__ == "__main__":
    main()
