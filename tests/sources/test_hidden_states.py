"""Which layers of a sender are tapped."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lw_jax.errors import UserError
from lw_jax.sources import hidden_states
from tests.tiny.receiver import arch


@pytest.mark.parametrize(
    ("layers", "of", "deep", "taps"),
    [
        ((16,), 32, 32, (16,)),
        ((16,), 32, 4, (2,)),
        ((20,), 32, 4, (3,)),  # 2.5 goes up
        ((0, 8, 32), 32, 4, (0, 1, 4)),
        ((1, 2), 32, 4, (0,)),  # two layers of a deep sender are one of a shallow one
        ((3, 1), None, 4, (1, 3)),
        ((), None, 2, (0, 1, 2)),
        ((), 32, 2, (0, 1, 2)),
    ],
)
def test_layers_are_taken_at_the_same_share(
    layers: tuple[int, ...], of: int | None, deep: int, taps: tuple[int, ...]
) -> None:
    sender = replace(arch("llama"), layers=deep)
    assert hidden_states.Config(layers=layers, of=of).taps(sender) == taps


def test_a_layer_beyond_those_counted_is_refused() -> None:
    with pytest.raises(UserError, match="33 is beyond the sender's 32 layers"):
        hidden_states.Config(layers=(33,), of=32).taps(arch("llama"))
