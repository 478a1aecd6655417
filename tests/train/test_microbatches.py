"""A batch in parts gives what it gives at once: loss, gradients, and what was sown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lw_jax.objectives.base import Term
from lw_jax.train.microbatches import Seen, microbatched

X = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], np.float32)
MASK = np.array([True, True, True, False, False, True])
KEY = ("fit", "r/fit")


def loss_fn(slope: Any, batch: Any, rng: Any, counts: Mapping[Any, Any] | None) -> tuple[Any, Seen]:
    """The mean of (slope x)^2 over the rows that count; rows and their largest value are sown."""
    del rng
    made = slope * batch["x"]
    term = Term(jnp.sum(made**2 * batch["mask"]), jnp.sum(batch["mask"].astype(jnp.float32)))
    count = term.count if counts is None else counts[KEY]
    sown = {"part": {"rows": made[:, None], "largest": jnp.max(made)}}
    watched = {"r/x": Term(jnp.sum(made), jnp.float32(len(made)))}
    return term.total / count, Seen({KEY: term}, watched, sown)


@pytest.mark.parametrize(
    ("parts", "largest"), [(1, 12.0), (2, (6 + 12) / 2), (3, (4 + 8 + 12) / 3)]
)
def test_parts_of_unlike_counts_give_what_the_batch_gives(parts: int, largest: float) -> None:
    """Rows 1, 2, 3 and 6 count; a scalar that is sown is the mean over the parts."""
    batch = {"x": jnp.asarray(X), "mask": jnp.asarray(MASK)}
    gradients = jax.jit(microbatched(loss_fn, parts))
    (loss, seen), slope = gradients(jnp.float32(2.0), batch, jax.random.key(0))
    squares = 1 + 4 + 9 + 36
    assert float(loss) == pytest.approx(4 * squares / 4)
    assert float(slope) == pytest.approx(2 * 2 * squares / 4)
    assert (float(seen.terms[KEY].total), float(seen.terms[KEY].count)) == (4 * squares, 4)
    assert (float(seen.watched["r/x"].total), float(seen.watched["r/x"].count)) == (42, 6)
    sown: Any = seen.intermediates["part"]
    np.testing.assert_array_equal(sown["rows"], 2 * X[:, None])
    assert sown["largest"].shape == ()
    assert float(sown["largest"]) == pytest.approx(largest)


@pytest.mark.parametrize("parts", [1, 2])
def test_a_batch_at_once_has_the_steps_own_randomness_and_parts_have_parts_of_it(
    parts: int,
) -> None:
    def drawn(slope: Any, batch: Any, rng: Any, counts: Any) -> tuple[Any, Seen]:
        del counts
        noise = jax.random.normal(rng)
        term = Term(slope * noise, jnp.float32(1.0))
        return slope * noise, Seen({KEY: term}, {}, {"noise": noise[None]})

    key = jax.random.key(7)
    (_, seen), _ = microbatched(drawn, parts)(jnp.float32(1.0), {"x": jnp.asarray(X)}, key)
    keys = [key] if parts == 1 else list(jax.random.split(key, parts))
    wanted = [float(jax.random.normal(own)) for own in keys]
    found: Any = seen.intermediates["noise"]
    assert found.tolist() == pytest.approx(wanted)
    assert len(set(wanted)) == parts
