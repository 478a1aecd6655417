"""Frequencies of rotary positions, by the formula of Llama 3.1 written out."""

from dataclasses import replace
from math import pi

import numpy as np
import pytest

from lw_jax.models.arch import Llama3Scaling, Rope
from lw_jax.models.rope import inverse_frequencies
from tests.tiny.arch import decoder


@pytest.mark.parametrize(("low", "high"), [(1.0, 4.0), (4.0, 16.0), (0.5, 2.0)])
def test_llama_3_slows_long_waves_and_blends_between(low: float, high: float) -> None:
    """In turns within the original context: from `high` on as they are, up to `low` slower by the
    factor, in between a mixture of both."""
    factor, original, theta, width = 8.0, 256, 1e4, 32
    arch = replace(
        decoder(head_dim=width), rope=Rope(theta, Llama3Scaling(factor, low, high, original))
    )
    wanted, kinds = [], set()
    for pair in range(width // 2):
        plain = theta ** (-2 * pair / width)
        turns = original * plain / (2 * pi)
        share = (turns - low) / (high - low)
        kinds.add("kept" if share > 1 else "slowed" if share < 0 else "blended")
        share = min(1.0, max(0.0, share))
        wanted.append(share * plain + (1 - share) * plain / factor)
    assert kinds == {"kept", "slowed", "blended"}
    np.testing.assert_allclose(inverse_frequencies(arch), wanted, rtol=1e-5)
