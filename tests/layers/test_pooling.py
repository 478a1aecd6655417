"""Stretches of a text that slots share: exact, whatever program they are compiled into."""

import jax
import numpy as np

from lw_jax.layers.pooling import stretch_weights, stretches

LENGTHS, SLOTS = range(1, 121), 40


def by_hand(length: int, used: int) -> np.ndarray:
    """[SLOTS, T] which tokens a slot averages."""
    inside = np.zeros((SLOTS, LENGTHS[-1]), bool)
    for slot in range(used):
        low, high = slot * length // used, -((slot + 1) * length // -used)  # rounded up
        inside[slot, low : max(high, low + 1)] = True
    inside[:, length:] = False
    return inside


def test_a_token_at_a_border_is_in_the_stretch_that_begins_there() -> None:
    """Borders such as 4 * 28 / 7 are whole numbers; as floats they fell to either side, by program
    and mesh, and the same text had another latent."""
    index = np.broadcast_to(np.arange(LENGTHS[-1]), (len(LENGTHS), LENGTHS[-1]))
    mask = index < np.asarray(LENGTHS)[:, None]
    asked = jax.jit(stretch_weights, static_argnums=3)
    for used in range(1, SLOTS + 1):
        weights = np.asarray(asked(index, mask, np.full(len(LENGTHS), used), SLOTS))
        whole = np.stack([by_hand(length, used) for length in LENGTHS])
        np.testing.assert_array_equal(weights > 0, whole, err_msg=f"{used} slots")
        sums = weights.sum(axis=-1)
        np.testing.assert_allclose(sums[whole.any(axis=-1)], 1.0, rtol=1e-6)


def test_long_texts_do_not_overflow() -> None:
    length, slots = 2**17, 2**15
    index = np.arange(length - 4, length)[None]
    asked = jax.jit(stretches, static_argnums=3)
    last = np.asarray(asked(index, np.array([length]), np.array([slots]), slots))[0, -2:]
    np.testing.assert_array_equal(last, [[False] * 4, [True] * 4])
