"""Where the slots of a message stand."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from lw_jax.readers.positions import slot_positions
from lw_jax.types import Latent

MASK = jnp.asarray([[True, True, False], [True, True, True], [False, False, False]])
LATENT = Latent(jnp.zeros((3, 3, 4)), MASK, jnp.asarray([6.0, 3.0, 0.0]), (-1,) * 3)


def test_slots_stand_in_the_middle_of_their_share_of_the_text() -> None:
    """Of a text without a slot they are numbers as well: one that is none would spread."""
    at, advance = slot_positions("spread", LATENT)
    np.testing.assert_allclose(at, [[1.5, 4.5, 7.5], [0.5, 1.5, 2.5], [0, 0, 0]])
    assert advance is LATENT.span


def test_columns_are_counted() -> None:
    for how, latent in (("columns", LATENT), ("spread", LATENT.replace(span=None))):  # type: ignore[attr-defined]
        at, advance = slot_positions(how, latent)
        np.testing.assert_array_equal(at, [[0, 1, 2]] * 3)
        assert advance is None
