"""An evaluation's latents cross the wire as bytes, once a text; methods read nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache

import jax
import numpy as np
import pytest
from rich.console import Console

from lw_jax.bottlenecks import fsq
from lw_jax.bridge.config import BottleneckConfig, ReaderConfig
from lw_jax.errors import UserError
from lw_jax.evaluate.compare import Comparison
from lw_jax.evaluate.config import DecodeConfig, EvaluateConfig
from lw_jax.evaluate.packets import Packets, encode, filled, opened, to_packets
from lw_jax.mesh import MeshConfig, make_mesh
from lw_jax.pipeline import Pipeline
from lw_jax.readers import soft_tokens
from lw_jax.text.collate import Collate
from lw_jax.types import SHARED, Latent
from tests.tiny.evaluation import LAYOUT, MARK, RECEIVER, SLOTS, World, make_world

ROWS, SIZE = 6, 4
READER = ReaderConfig(soft_tokens=soft_tokens.Config())
CODES = BottleneckConfig(fsq=fsq.Config((8, 5, 2, 9)))


@cache
def world(codes: bool = False) -> World:
    parts = {"bottleneck": CODES} if codes else {}
    return make_world(ROWS).with_parts(5, reader=READER, **parts)


@cache
def compared(codes: bool = False) -> Comparison:
    """Six rows in two batches, sent as they are and in int8."""
    made = world(codes)
    pipeline = Pipeline(
        layout=LAYOUT,
        bridge=made.ctx.bridge,
        frozen=made.ctx.frozen,
        sources=made.sender,
        receivers={RECEIVER: made.tokenizer},
        fingerprints={},
        mesh=make_mesh(MeshConfig(data=1)),
    )
    config = EvaluateConfig(batch_size=SIZE, decode=DecodeConfig(max_new_tokens=3))
    others = [(i + 1) % ROWS for i in range(ROWS)]
    console = Console(quiet=True)
    asked = Comparison(
        pipeline, config, made.examples, others, made.collate, console, lambda: False
    )
    return asked.sent(made.ctx, MARK, ["int8"])


def nlls(asked: Comparison, name: str, codes: bool = False) -> list[float]:
    said, seconds = asked.run(world(codes).ctx, name)
    assert seconds > 0
    return [p.nll for p in said]


def packets_of(asked: Comparison) -> Packets:
    assert asked.packets is not None
    return asked.packets


def changed(codec: str, data: Sequence[bytes], codes: bool = False) -> Comparison:
    """The same rows with other packets in one codec."""
    held: Mapping[str, Sequence[bytes]] = packets_of(compared(codes)).by_codec
    packets = replace(packets_of(compared(codes)), by_codec={**held, codec: data})
    return replace(compared(codes), packets=packets)


@pytest.mark.parametrize("codes", [False, True])
def test_what_is_received_is_what_the_sender_made(codes: bool) -> None:
    ctx, packets = world(codes).ctx, packets_of(compared(codes))
    made = jax.device_get(jax.jit(lambda c, b: c.encode(b))(ctx, world(codes).batch(0, SIZE)))
    sent = packets.received(None, range(SIZE))
    got = jax.device_get(jax.jit(lambda c, z: c.received(z))(ctx, sent))
    np.testing.assert_array_equal(got.slots, made.slots)
    np.testing.assert_array_equal(got.mask, made.mask)
    np.testing.assert_array_equal(got.span, made.span)
    assert packets.counts == [SLOTS] * ROWS
    assert compared(codes).latent_bytes() == [ctx.bridge.nbytes(SLOTS)] * ROWS
    assert compared(codes).latent_bytes("int8") == [ctx.bridge.nbytes(SLOTS, "int8")] * ROWS


def test_a_codecs_method_reads_its_own_bytes() -> None:
    """Of other rows' packets in int8, `latent_int8` hears other rows, and `latent` its own."""
    held = packets_of(compared()).by_codec["int8"]
    moved = changed("int8", [*held[1:], held[0]])
    assert nlls(moved, "latent") == nlls(compared(), "latent")
    own = nlls(compared(), "latent_int8")
    assert all(a != b for a, b in zip(nlls(moved, "latent_int8"), own, strict=True))
    assert own != nlls(compared(), "latent")


@pytest.mark.parametrize("codes", [False, True])
def test_the_deranged_row_hears_another_rows_packet(codes: bool) -> None:
    held = packets_of(compared(codes)).of(None)
    moved = changed(world(codes).ctx.bridge.codec, [*held[1:], held[0]], codes)
    assert nlls(compared(codes), "deranged", codes) == nlls(moved, "latent", codes)


@pytest.mark.parametrize("name", ["latent", "deranged", "token_budget_first"])
def test_a_damaged_packet_in_the_middle_is_noticed(name: str) -> None:
    held = list(packets_of(compared()).of(None))
    held[4] = held[4][:40] + bytes([held[4][40] ^ 1]) + held[4][41:]
    damaged = changed("float32", held)
    with pytest.raises(UserError, match="row 4: wire: the checksum differs"):
        damaged.run(world().ctx, name)
    assert nlls(damaged, "text") == nlls(compared(), "text")


def test_bytes_of_another_bridge_are_refused() -> None:
    data = packets_of(compared()).of(None)[0]
    with pytest.raises(UserError, match="of another bridge"):
        opened(world().ctx.bridge, data, b"another!")


def test_rows_are_collated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = replace(compared())  # nothing is remembered
    calls: list[int] = []
    right = Collate.__call__

    def counted(self: Collate, groups: Sequence[object]) -> object:
        calls.append(len(groups))
        return right(self, groups)  # type: ignore[arg-type]

    monkeypatch.setattr(Collate, "__call__", counted)
    for name in ("latent", "deranged", "text"):
        nlls(asked, name)
    asked.columns(world().ctx)
    assert calls == [SIZE, SIZE]


def test_what_a_16_bit_float_cannot_hold_becomes_its_largest() -> None:
    ctx = world().ctx
    sent = jax.device_get(encode(ctx, world().batch(0, 1)))
    loud = sent.replace(latent=sent.latent.replace(slots=sent.latent.slots * 1e9))
    with pytest.raises(UserError, match="send it as float32"):
        to_packets(ctx.bridge, loud, "float16", MARK)
    (data,) = to_packets(ctx.bridge, loud, "float16", MARK, fit=True)
    assert np.abs(opened(ctx.bridge, data, MARK).slots).max() == 65504


def test_rows_of_fewer_slots_are_filled_up_with_masked_ones() -> None:
    def row(slots: int, owner: tuple[int, ...] = ()) -> Latent:
        values = np.full((1, slots, 2), slots, np.float32)
        return Latent(values, np.ones((1, slots), bool), np.ones(1, np.float32), owner)  # type: ignore[arg-type]

    whole = filled([row(2), row(3)], 4)
    assert whole.mask.tolist() == [[True, True, False, False], [True, True, True, False]]
    assert whole.slots[..., 0].tolist() == [[2, 2, 0, 0], [3, 3, 3, 0]]
    assert whole.owner == ()
    assert filled([row(2, (SHARED, 0)), row(2, (SHARED, 0))], 3).owner == (SHARED, 0, SHARED)
