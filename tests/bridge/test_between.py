"""What stands between compressor and bottleneck: layers over the slots, and whose each slot is."""

from __future__ import annotations

from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lw_jax.bridge.bridge import Bridge
from lw_jax.bridge.config import (
    BridgeConfig,
    CompressorConfig,
    ReaderConfig,
    RefinerConfig,
    SourceConfig,
)
from lw_jax.bridge.module import _averaged, readable
from lw_jax.compressors import dit, perceiver, pooled_queries, window
from lw_jax.config.parse import build
from lw_jax.config.schema import Config
from lw_jax.errors import UserError
from lw_jax.models.dims import BridgeDims, ModelDims
from lw_jax.readers import deep_prefix, soft_tokens
from lw_jax.receiver.answer import Message, occupied
from lw_jax.receiver.read import message_segment
from lw_jax.sources import hidden_states
from lw_jax.train.optimiser import groups
from lw_jax.types import SHARED, Features, Latent, Taps
from lw_jax.wire import packet
from tests.tiny.evaluation import draw

DIMS = BridgeDims(8, 1, 6, {n: ModelDims(10, 2, 1, 4) for n in ("second", "first")})
"""Not in the order of their names."""
OWN = {"first": (4, 5), "second": (6, 7)}


def config(compressor: Any = None, **options: Any) -> BridgeConfig:
    queries = CompressorConfig(pooled_queries=pooled_queries.Config(8, width=8, heads=2))
    return BridgeConfig(
        latent_dim=6,
        source=SourceConfig(hidden_states=hidden_states.Config(layers=(1,))),
        compressor=compressor or queries,
        reader=ReaderConfig(
            soft_tokens=soft_tokens.Config(film=True), deep_prefix=deep_prefix.Config(mlp_ratio=1)
        ),
        **options,
    )


def between(cfg: BridgeConfig) -> Bridge:
    return Bridge(cfg, DIMS)


def taps(rows: int = 2) -> Taps:
    states = np.random.default_rng(0).normal(size=(1, rows, 9, 8)).astype(np.float32)
    mask = np.arange(9)[None] < np.asarray([9, 5])[:rows, None]
    return Taps(states, mask, np.zeros(mask.shape, np.int32))  # type: ignore[arg-type]


def fresh(cfg: BridgeConfig) -> Any:
    return draw(jax.eval_shape(between(cfg).init, jax.random.key(0)), 1, 0.3)


def test_a_receiver_never_sees_what_is_anothers() -> None:
    cfg = config(private=2)
    params = fresh(cfg)
    latent = jax.device_get(jax.jit(between(cfg).encode)(params, {"source": taps()}))
    assert latent.owner == (SHARED,) * 4 + (0, 0, 1, 1)

    def of(name: str) -> Any:
        deliver = jax.jit(partial(between(cfg).deliver, receiver=name))
        return lambda **arguments: jax.device_get(deliver(**arguments))

    given = {name: of(name) for name in DIMS.receivers}
    plain = {name: deliver(params=params, latent=latent) for name, deliver in given.items()}
    for slot in range(8):
        slots = latent.slots.copy()
        slots[:, slot] += 3.0
        other = latent.replace(slots=slots)
        for name, deliver in given.items():
            found = deliver(params=params, latent=other)
            if slot >= 4 and slot not in OWN[name]:
                chex.assert_trees_all_equal(found, plain[name])
            else:
                assert np.abs(found.embeds - plain[name].embeds).max() > 1e-2
    for delivery in plain.values():
        assert delivery.embeds.shape == (2, 6, 10)
        assert delivery.mask.all()  # gathered, not masked
        columns = occupied(Message(message_segment(delivery, 2, 10), delivery)).tolist()
        assert columns == [12, 12] == [delivery.columns()] * 2


def test_owners_cross_the_wire_and_are_paid_for() -> None:
    cfg = config(private=2)
    params = fresh(cfg)
    latent = jax.jit(between(cfg).encode)(params, {"source": taps(1)})
    data = packet.to_bytes(packet.sendable(latent), mark=b"12345678")
    assert len(data) == between(cfg).nbytes(8) == between(config()).nbytes(8) + 2 * 8
    sent = packet.from_bytes(data).latent
    assert sent.owner == latent.owner
    for name in DIMS.receivers:
        direct, crossed = (readable(x, sorted(DIMS.receivers).index(name)) for x in (latent, sent))
        np.testing.assert_array_equal(direct.slots, crossed.slots)


def test_without_private_slots_nothing_is_gathered() -> None:
    latent = Latent(jnp.zeros((1, 3, 2)), jnp.ones((1, 3), bool), owner=(SHARED,) * 3)
    assert readable(latent, 1) is latent
    bare = Latent(jnp.zeros((1, 3, 2)), jnp.ones((1, 3), bool))
    assert readable(bare, 0) is bare


def test_a_mean_of_tokens_is_of_the_real_ones() -> None:
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    mask = np.array([[False, True, True], [False, False, False]])
    found = _averaged(Features(jnp.asarray(x), jnp.asarray(mask), jnp.zeros((2, 3), jnp.int32)))
    mean = np.stack([x[0, 1:].mean(0), np.zeros(4)])  # a row without one has none
    np.testing.assert_allclose(found.x, np.repeat(mean[:, None], 3, axis=1))
    assert found.mask.tolist() == mask.tolist()


def test_the_refiner_mixes_the_real_slots_before_the_bottleneck() -> None:
    windows = CompressorConfig(window=window.Config(3, "mean", width=8, heads=2, depth=0))
    cfg, without = (config(windows, refiner=r) for r in (RefinerConfig(1, 2), None))
    params = fresh(cfg)
    assert set(params) - set(fresh(without)) == {"refiner"}
    assert groups(params)["refiner/blocks/block/self/query/kernel"] == "muon"
    bare = {k: v for k, v in params.items() if k != "refiner"}

    @jax.jit
    def encoded(taps: Taps) -> Any:
        views = {"source": taps}
        refined = between(cfg).encode(params, views)
        plain = between(without).encode(bare, views)
        inside, _ = between(cfg).apply(params, views, False, method="compressed")
        return refined, plain, inside

    def seen(taps: Taps) -> Any:
        return jax.device_get(encoded(taps))

    def spoilt(row: int, token: int) -> Taps:
        states = np.array(taps().states)
        states[0, row, token] += 2.0
        return taps().replace(states=states)  # type: ignore[attr-defined,no-any-return]

    refined, plain, inside = seen(taps())
    chex.assert_trees_all_equal(refined, inside)
    assert refined.mask.tolist() == [[True] * 3, [True, True, False]]
    assert not np.asarray(refined.slots)[1, 2].any()
    first, window_of = seen(spoilt(0, 0))[:2]
    assert np.abs(window_of.slots - plain.slots)[0, 1:].max() < 1e-6  # its own window alone
    assert np.abs(first.slots - refined.slots)[0, 1:].max() > 1e-3  # mixed
    shorter = Taps(taps().states[:, :, :6], taps().mask[:, :6], taps().ids[:, :6])
    alone = seen(shorter)[0]  # without the slot that is not real in the second row
    np.testing.assert_allclose(alone.slots[1], refined.slots[1, :2], atol=1e-5)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"refiner": RefinerConfig(2, 4)}, r"refiner\.heads: 4 do not divide latent_dim 6"),
        (
            {"refiner": RefinerConfig(2, 2), "compressor": CompressorConfig(dit=dit.Config(8))},
            r"refiner: the loss of compressor\.dit does not train it",
        ),
        ({"private": -1}, "private: expected at least 0"),
        (
            {"private": 1, "compressor": CompressorConfig(window=window.Config(4))},
            r"private: the number of slots of compressor\.window depends on the text",
        ),
        (
            {
                "private": 1,
                "compressor": CompressorConfig(perceiver=perceiver.Config(8, ratios=(2.0,))),
            },
            r"private: the number of slots of compressor\.perceiver depends",
        ),
    ],
)
def test_what_does_not_fit(options: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line):
        config(**options)


def test_more_private_slots_than_there_are() -> None:
    plain = {
        "name": "x",
        "sender": {"path": "a"},
        "receivers": {"one": {"path": "a"}, "two": {"path": "b"}},
        "data": {"facts": {}},
        "bridge": {
            "latent_dim": 8,
            "source": {"hidden_states": {"layers": [1]}},
            "compressor": {"perceiver": {"slots": 11}},
            "reader": {"soft_tokens": {}},
            "private": 6,
        },
        "objectives": {"answer_ce": {}},
        "stages": {"fit": {"train": {"steps": 1}}},
    }
    with pytest.raises(
        UserError, match=r"bridge\.private: 6 slots for each of 2 receivers are more"
    ):
        build(Config, plain)
