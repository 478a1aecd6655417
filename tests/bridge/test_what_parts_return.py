"""What a part returns is what its contract asks for, or one line names the part."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import pytest

from lw_jax.bridge.module import made
from lw_jax.bridge.paths import chosen_parts, readable
from lw_jax.errors import UserError
from lw_jax.types import Delivery, Features, Latent

MASK = jnp.ones((2, 3), bool)
LATENT = Latent(jnp.zeros((2, 3, 4)), MASK)


@pytest.mark.parametrize(
    ("kind", "value", "part", "message"),
    [
        (Latent, LATENT.slots, "compressor", r"returned a \w+ where its contract"),
        (
            Delivery,
            LATENT,
            "reader",
            r"returned a Latent where its contract .* asks for a Delivery",
        ),
        (Latent, Latent(LATENT.slots, MASK[:, 1:]), "compressor", "a Latent of wrong shapes"),
        (Latent, Latent(LATENT.slots, jnp.ones((2, 3))), "bottleneck", "a Latent of wrong shapes"),
        (Latent, Latent(LATENT.slots, MASK, owner=(-1,)), "compressor", "1 owners of 3 slots"),
        (Delivery, Delivery(LATENT.slots, MASK[:1]), "reader", "a Delivery of wrong shapes"),
        (Features, Features(LATENT.slots[0], MASK, MASK), "source", "a Features of wrong shapes"),
    ],
)
def test_a_wrong_value_is_one_line(kind: Any, value: Any, part: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        made(kind, value, part, "mine")
    assert str(caught.value).startswith(f"bridge.{part}: mine returned a")
    assert "\n" not in str(caught.value)


def test_a_right_value_passes() -> None:
    assert made(Latent, LATENT, "compressor", "mine") is LATENT


def test_all_readers_of_a_receiver_by_linens_name() -> None:
    tree = {"readers": {"qwen": {"lora": 1}, "qwen2": {"lora": 2}}}
    name = readable("readers_qwen", ["qwen", "qwen2"])
    assert chosen_parts(tree, [name]) == {("readers", "qwen", "lora"): 1}
