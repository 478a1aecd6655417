"""Compression figures by hand."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from lw_jax import wire
from lw_jax.codecs import CODECS
from lw_jax.evaluate import compression
from lw_jax.types import Latent


def test_bytes_by_hand() -> None:
    # 16 header, 4 span, 32 slots -> 4 bytes of mask, 32 x 10 numbers, 2-byte scale a slot.
    shape = compression.Shape(slots=32, width=10)
    expected = {
        "float32": 24 + 1280,
        "float16": 24 + 640,
        "bfloat16": 24 + 640,
        "int8": 24 + 64 + 320,
        "int6": 24 + 64 + 240,
        "int4": 24 + 64 + 160,
    }
    assert {name: shape.nbytes(name) for name in CODECS} == expected
    more = compression.Shape(slots=32, width=10, owners=True, mark=True, span=False)
    assert more.nbytes("int4") == 16 + 8 + 64 + 4 + 64 + 160


def test_texts_against_slots() -> None:
    texts = ["ä" * 100, "b" * 300]  # 200 and 300 bytes
    out = compression.of_texts(texts, compression.Shape(slots=20, width=8))
    assert out["characters"] == 200
    assert out["characters_per_slot"] == 10
    assert out["bytes"]["utf8"] == 250
    assert out["bytes"]["zlib"] == np.mean([len(zlib.compress(t.encode(), 9)) for t in texts])
    assert out["bytes"]["float32"] == 16 + 4 + 3 + 640
    assert out["bits_per_character"]["utf8"] == pytest.approx(10)


def test_columns_count_soft_tokens_and_prefix() -> None:
    out = compression.of_columns(["x" * 400, "x" * 200], [80, 60], [116, 116], 116 * 4 * 2)
    assert out["tokens_per_column"] == pytest.approx(70 / 116)
    assert out["characters_per_column"] == pytest.approx(300 / 116)
    assert out["kv_entries"] == 928


@pytest.mark.parametrize("codec", CODECS)
def test_announced_bytes_are_those_written(codec: str) -> None:
    slots = np.random.default_rng(0).normal(size=(1, 7, 5)).astype(np.float32)
    latent = Latent(slots, np.ones((1, 7), bool), np.array([9.0], np.float32), owner=(0,) * 7)  # type: ignore[arg-type]
    shape = compression.Shape(7, 5, owners=True, span=True, mark=True)
    data = wire.to_bytes(latent, codec_name=codec, mark=b"12345678")
    assert len(data) == shape.nbytes(codec)
