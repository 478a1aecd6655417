"""Parts of a message as one delivery, by hand."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from lw_jax.receiver.join import joined
from lw_jax.types import KV, Delivery

EMBEDS = jnp.asarray([[[1.0], [2.0]], [[3.0], [4.0]], [[5.0], [6.0]], [[7.0], [8.0]]])
"""Two parts of two messages, of two soft tokens each."""
BOTH = jnp.ones(4, bool)


def test_soft_tokens_of_a_part_come_after_those_of_the_part_before() -> None:
    found = joined(Delivery(EMBEDS), 2, BOTH)
    assert found.embeds is not None and found.mask is not None and found.positions is not None
    assert found.embeds[..., 0].tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert found.mask.all()
    assert found.positions.tolist() == [[0, 1, 2, 3]] * 2
    assert found.advance is not None and found.advance.tolist() == [4, 4]


@pytest.mark.parametrize("real", [True, False])
def test_what_is_no_token_comes_last_and_takes_no_place(real: bool) -> None:
    """Of the first part one token; the last part may only fill its message up."""
    mask = jnp.ones((4, 2), bool).at[0, 1].set(False)
    found = joined(Delivery(EMBEDS, mask), 2, BOTH.at[3].set(real))
    assert found.embeds is not None and found.mask is not None and found.positions is not None
    assert found.embeds[0, :, 0].tolist() == [1, 3, 4, 2]
    assert found.mask.tolist() == [[True, True, True, False], [True, True, real, real]]
    assert found.positions[0, :3].tolist() == [0, 1, 2]
    assert found.advance is not None and found.advance.tolist() == [3, 4 if real else 2]


def test_columns_in_every_layer_go_on_from_the_end_of_the_part_before() -> None:
    """Three columns and two soft tokens: a part takes three positions."""
    values = jnp.arange(24.0).reshape(2, 4, 3, 1, 1)
    at = jnp.tile(jnp.arange(3.0)[None], (4, 1))
    kv = KV(values, -values, jnp.ones((4, 3), bool), at)
    found = joined(Delivery(EMBEDS, kv=kv), 2, BOTH)
    assert found.kv is not None and found.positions is not None
    np.testing.assert_array_equal(found.kv.k.reshape(2, 2, 6), values.reshape(2, 2, 6))
    np.testing.assert_array_equal(found.kv.v, -found.kv.k)
    assert found.kv.mask.shape == (2, 6) and found.kv.mask.all()
    assert found.kv.positions.tolist() == [[0, 1, 2, 3, 4, 5]] * 2
    assert found.positions.tolist() == [[0, 1, 3, 4]] * 2
    assert found.advance is not None and found.advance.tolist() == [6, 6]
