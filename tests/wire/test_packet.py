"""Latent -> bytes -> latent is exact; other bytes are refused in one line."""

from __future__ import annotations

import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from ml_dtypes import bfloat16

import lw_jax
from lw_jax.errors import UserError
from lw_jax.types import SHARED, Latent
from lw_jax.wire import packet
from lw_jax.wire.codecs import CODECS


@st.composite
def latents(draw: st.DrawFn, dtype: str = "float32") -> Latent:
    m, d = draw(st.integers(1, 20)), draw(st.integers(1, 9))
    width = int(dtype[5:])
    numbers = st.floats(width=width, allow_nan=False, allow_infinity=False)
    slots = draw(hnp.arrays(dtype, (1, m, d), elements=numbers)).astype("float32")
    mask = draw(hnp.arrays(bool, (1, m)))
    span = draw(st.none() | hnp.arrays("float32", (1,), elements=st.floats(0, 1e6, width=32)))
    owner = draw(st.just(()) | st.tuples(*[st.integers(SHARED, 5)] * m))
    return Latent(slots, mask, span, owner)


def _same(a: Latent, b: Latent) -> None:
    np.testing.assert_array_equal(np.asarray(a.slots), np.asarray(b.slots))
    assert np.asarray(a.slots).tobytes() == np.asarray(b.slots).tobytes()  # also -0.0
    assert np.asarray(a.slots).dtype == np.asarray(b.slots).dtype
    np.testing.assert_array_equal(a.mask, b.mask)
    assert (a.span is None) == (b.span is None)
    if a.span is not None:
        np.testing.assert_array_equal(a.span, b.span)
    assert a.owner == b.owner


@given(latents("float32"), st.none() | st.binary(min_size=8, max_size=8))
def test_float32_round_trip_is_exact(latent: Latent, mark: bytes | None) -> None:
    got = packet.from_bytes(packet.to_bytes(latent, mark=mark))
    _same(latent, got.latent)
    assert (got.codec, got.fingerprint) == ("float32", mark)


@given(latents("float16"), st.sampled_from(["float16", "bfloat16"]))
def test_values_on_the_grid_of_a_short_float_are_exact(latent: Latent, name: str) -> None:
    dtype = np.float16 if name == "float16" else bfloat16
    latent = latent.replace(slots=latent.slots.astype(dtype).astype(np.float32))
    _same(latent, packet.from_bytes(packet.to_bytes(latent, codec_name=name)).latent)


@given(latents("float32"), st.sampled_from(["int8", "int6", "int4"]))
def test_integer_codecs_are_close_and_then_exact(latent: Latent, name: str) -> None:
    data = packet.to_bytes(latent, codec_name=name)
    once = packet.from_bytes(data).latent
    assert packet.to_bytes(once, codec_name=name) == data
    _same(once, packet.from_bytes(packet.to_bytes(once, codec_name=name)).latent)
    limit = 2 ** (int(name[3:]) - 1) - 1
    largest = np.abs(latent.slots).max(-1, keepdims=True)
    # Half a step, or what the scale's truncation to 8 bits (2^-7) takes from the largest value.
    bound = largest * max(0.5 / limit, 2**-7) * 1.001 + 1e-36
    assert (np.abs(np.asarray(once.slots, np.float64) - latent.slots) <= bound).all()


def test_device_arrays_and_their_bytes() -> None:
    slots = jnp.arange(24, dtype=jnp.float32).reshape(1, 4, 6) / 7
    latent = Latent(slots, jnp.asarray([[True, True, False, True]]), jnp.asarray([17.0]))
    data = packet.to_bytes(latent)
    assert len(data) == packet.nbytes(4, 6, "float32", mark=False) == 16 + 4 + 1 + 96
    _same(latent, packet.from_bytes(data).latent)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda b: b"", "no lw_jax latent"),
        (lambda b: b"PK\x03\x04" + b[4:], "no lw_jax latent"),
        (lambda b: b[:-1], "bytes where its header says"),
        (lambda b: b + b"\0", "bytes where its header says"),
        (lambda b: b[:4] + b"\x07" + b[5:], "version 7"),
        (lambda b: b[:-3] + bytes([b[-3] ^ 1]) + b[-2:], "checksum"),
    ],
)
@pytest.mark.parametrize("codec", CODECS)
def test_other_bytes_are_refused_in_one_line(codec: str, spoil, words: str) -> None:
    slots = np.ones((1, 3, 4), np.float32)
    data = packet.to_bytes(Latent(slots, np.ones((1, 3), bool)), codec_name=codec)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=words) as caught:
        packet.from_bytes(spoil(data))
    assert "\n" not in str(caught.value)


def test_what_cannot_be_sent_is_refused() -> None:
    mask = np.ones((1, 3), bool)
    big = np.full((1, 3, 4), 1e6, np.float32)
    with pytest.raises(UserError, match="float16"):
        packet.to_bytes(Latent(big, mask), codec_name="float16")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="one of float32"):
        packet.to_bytes(Latent(big, mask), codec_name="int3")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="one text at a time"):
        packet.to_bytes(Latent(np.ones((2, 3, 4)), mask))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="not finite"):
        packet.to_bytes(Latent(big * np.nan, mask), codec_name="int8")  # type: ignore[arg-type]


def test_what_says_nothing_is_not_sent() -> None:
    slots = np.arange(24, dtype=np.float32).reshape(1, 4, 6)
    mask = np.array([[True, False, True, False]])
    latent = Latent(slots, mask, owner=(SHARED,) * 4)  # type: ignore[arg-type]
    cut = packet.sendable(latent)
    assert cut.slots.shape == (1, 3, 6)
    assert cut.owner == ()
    _same(cut, packet.from_bytes(packet.to_bytes(cut)).latent)
    private = packet.sendable(latent.replace(owner=(SHARED, SHARED, 0, 1)))
    assert private.owner == (SHARED, SHARED, 0)


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, lw_jax; sys.exit(any(m in sys.modules for m in ('jax', 'numpy', 'flax')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    with pytest.raises(AttributeError, match="no attribute 'bridges'"):
        lw_jax.bridges  # noqa: B018
