"""Compression figures by hand."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from lw_jax.evaluate import compression, report
from lw_jax.types import Latent
from lw_jax.wire import packet
from lw_jax.wire.codecs import CODECS
from tests.tiny.arch import decoder


def test_bytes_by_hand() -> None:
    # 16 header, 8 mark, 4 span, 32 slots -> 4 bytes of mask, 32 x 10 numbers, 2-byte scale a slot.
    expected = {
        "float32": 32 + 1280,
        "float16": 32 + 640,
        "bfloat16": 32 + 640,
        "int8": 32 + 64 + 320,
        "int6": 32 + 64 + 240,
        "int4": 32 + 64 + 160,
    }
    assert {name: packet.nbytes(32, 10, name) for name in CODECS} == expected
    assert packet.nbytes(32, 10, "int4", owners=True, span=False) == 16 + 8 + 64 + 4 + 64 + 160


def test_texts_against_slots() -> None:
    texts = ["ä" * 100, "b" * 300]  # 200 and 300 bytes
    out = compression.of_texts(texts, [10, 30], width=8)
    assert out["characters"] == 200
    assert out["characters_per_slot"] == 10
    assert out["bytes"]["utf8"] == 250
    assert out["bytes"]["zlib"] == np.mean([len(zlib.compress(t.encode(), 9)) for t in texts])
    assert out["bytes"]["float32"] == 16 + 8 + 4 + (2 + 4) / 2 + 640
    assert out["bits_per_character"]["utf8"] == pytest.approx(10)


def test_columns_count_soft_tokens_and_prefix() -> None:
    arch = decoder("llama", 300, 24, 4, 4, 2, 6, 32)
    out = compression.of_columns(["x" * 400, "x" * 200], [80, 60], [116, 116], arch)
    assert out["tokens_per_column"] == pytest.approx(70 / 116)
    assert out["characters_per_column"] == pytest.approx(300 / 116)
    assert out["kv_entries"] == 116 * 4 * 2
    assert (out["keys"], out["adapter_keys"], out["adapter_layers"]) == (116 * 4, 0, 0)


def test_keys_that_adapters_read_are_counted_besides_the_columns() -> None:
    """32 columns in four layers, and 32 keys in three of them under 8 heads."""
    arch = decoder("llama", 300, 24, 4, 4, 2, 6, 32)
    more = compression.Adapters([32, 16], 3, [32 * 3 * 8, 16 * 3 * 8])
    out = compression.of_columns(["x" * 400, "x" * 200], [80, 60], [32, 16], arch, more)
    assert out["columns"] == 24  # what budgets are matched to
    assert (out["adapter_keys"], out["adapter_layers"]) == (24, 3)
    assert out["keys"] == 24 * 4 + 24 * 3
    assert out["kv_entries"] == 24 * 4 * 2 + 24 * 3 * 8
    sizes = dict.fromkeys(("utf8", "zlib", "float32", "float16", "int4"), 1.0)
    latent = {"bytes": sizes, "sent_as": "float32", "characters_per_slot": 1.0, "slots": 24}
    metrics = {
        "verdict": {},
        "compression": {"latent": latent, "receivers": {"reader": out}},
        "data": {"candidates": [], "entity_floor": {}},
        "receivers": {"reader": {}},
        "alarms": [],
        "parameters": {},
    }
    (line,) = report.lines("reader", metrics)
    assert line.startswith("24.0 columns, and 72.0 keys in 3 layers (adapters: 24.0 each), stand")
    assert out["kv_tokens"] == 24 + 24 * 3 * 8 / (4 * 2)
    assert "Token budgets are matched to the 24.0 columns; those by K/V entries" in line
    assert line.endswith("to the 96.0 tokens that hold as many.")


@pytest.mark.parametrize("codec", CODECS)
def test_announced_bytes_are_those_written(codec: str) -> None:
    slots = np.random.default_rng(0).normal(size=(1, 7, 5)).astype(np.float32)
    latent = Latent(slots, np.ones((1, 7), bool), np.array([9.0], np.float32), owner=(0,) * 7)  # type: ignore[arg-type]
    data = packet.to_bytes(latent, codec_name=codec, mark=b"12345678")
    assert len(data) == packet.nbytes(7, 5, codec, owners=True)
