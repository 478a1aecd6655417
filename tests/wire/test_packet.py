"""Latent -> bytes -> latent is exact; other bytes are refused in one line."""

from __future__ import annotations

import hmac
import itertools
import struct
import subprocess
import sys
import zlib
from typing import Any

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
from lw_jax.wire.codecs import CODECS, codec
from lw_jax.wire.limits import Limits
from tests.wire.crafted import changed, sealed


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


@pytest.mark.parametrize("name", ["int8", "int6", "int4"])
def test_a_scale_below_the_smallest_normal_number_is_one(name: str) -> None:
    """Half a step from what was sent, as any other; not zeros."""
    largest = (2 ** (int(name[3:]) - 1) - 1) * 2.0**-129
    slots = np.asarray([[[largest, -largest / 2, 0.0, largest / 3]]], np.float32)
    made = CODECS[name]
    found = made.unpack(made.pack(slots[0]), 1, 4)
    np.testing.assert_allclose(found, slots[0], atol=0.51 * 2.0**-129, rtol=0)


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


def test_version_1_is_said_to_be_that() -> None:
    old = b"LWJX" + bytes([1, 0, 5, 0]) + bytes(24)
    with pytest.raises(UserError, match="a version 1 packet; this reads version 2; encode the"):
        packet.from_bytes(old)


@pytest.mark.parametrize(
    ("at", "bit"), [(6, 0x10), (6, 0x80), (7, 1), (7, 0x80), (5, 0x80)], ids=str
)
def test_what_a_later_version_would_say_is_refused(at: int, bit: int) -> None:
    """Unknown flags, byte 7, unknown codecs: with a right checksum they are no damage."""
    data = packet.to_bytes(Latent(np.ones((1, 3, 4), np.float32), np.ones((1, 3), bool)))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="not known to version 2; a later version of lw_jax"):
        packet.from_bytes(sealed(changed(data, at, lambda b: b | bit)))


def test_every_flipped_bit_is_refused() -> None:
    rng = np.random.default_rng(0)
    mask, span = np.ones((1, 5), bool), np.array([17.0], np.float32)
    small = rng.normal(size=(1, 5, 6)).astype(np.float32)
    plain = Latent(small, mask, span, (SHARED, SHARED, 0, 1, 1))  # type: ignore[arg-type]
    codes = Latent(rng.integers(0, 5, (1, 5, 3)).astype(np.int32), mask, span)  # type: ignore[arg-type]
    whole = [packet.to_bytes(plain, codec_name=name, mark=b"01234567") for name in CODECS]
    whole += [packet.to_bytes(plain), packet.to_bytes(plain, mark=b"01234567", key=KEY)]
    whole += [packet.to_bytes(codes, codec_name="codes", levels=(5, 5, 5))]
    for data in whole:
        key = KEY if data[6] & 8 else None
        packet.from_bytes(data, (5, 5, 5), key=key)
        for bit in range(8 * len(data)):
            flipped = changed(data, bit // 8, lambda b, bit=bit: b ^ (1 << bit % 8))
            with pytest.raises(UserError):
                packet.from_bytes(flipped, (5, 5, 5), key=key)


KEY = b"a key of 24 random bytes"


def test_with_a_key_nothing_else_is_accepted() -> None:
    latent = Latent(np.ones((1, 3, 4), np.float32), np.ones((1, 3), bool))  # type: ignore[arg-type]
    plain, tagged = packet.to_bytes(latent), packet.to_bytes(latent, key=KEY)
    assert (
        len(tagged)
        == len(plain) + 16
        == packet.nbytes(3, 4, "float32", span=False, mark=False, key=True)
    )
    _same(latent, packet.from_bytes(tagged, key=KEY).latent)
    forged = sealed(changed(tagged, 30, lambda b: b ^ 1))
    for data, key, words in (
        (plain, KEY, "made without a key, and this bridge asks for one"),
        (tagged, None, "made with a key; load the bridge with the same one"),
        (tagged, b"another key of 26 bytes it", "made with another key, or changed by someone"),
        (forged, KEY, "made with another key, or changed by someone"),
    ):
        with pytest.raises(UserError, match=words):
            packet.from_bytes(data, key=key)


def test_bits_left_over_say_nothing_else() -> None:
    """Each latent has one encoding: padding of mask and codes is 0, no code is out of range."""
    slots = np.arange(1, 16, dtype=np.float32).reshape(1, 3, 5)
    data = packet.to_bytes(Latent(slots, np.ones((1, 3), bool)), codec_name="int4")  # type: ignore[arg-type]
    for at, bit, words in (
        (16, 1, "the mask goes on after the last slot"),
        (-1, 1, "no int4 that a sender writes"),  # 60 bits in 8 bytes
        (17 + 1, 0x80, "no int4 that a sender writes"),  # a negative scale
    ):
        place = at % len(data)
        with pytest.raises(UserError, match=words):
            packet.from_bytes(sealed(changed(data, place, lambda b, bit=bit: b | bit)))


def test_what_another_bridge_would_send_is_refused() -> None:
    """One line each, before anything is made with the sizes."""
    limits = Limits(width=4, fewest=3, most=3, span=100.0, largest=65504.0)
    mask, span = np.ones((1, 3), bool), np.array([9.0], np.float32)
    slots = np.ones((1, 3, 4), np.float32)

    def refused(words: str, own: Limits = limits, **parts: Any) -> None:
        given = {"slots": slots, "mask": mask, "span": span, **parts}
        with pytest.raises(UserError, match=words) as caught:
            packet.from_bytes(packet.to_bytes(Latent(**given)), limits=own)
        assert "\n" not in str(caught.value)

    packet.from_bytes(packet.to_bytes(Latent(slots, mask, span)), limits=limits)  # type: ignore[arg-type]
    refused("slots of width 5, where those of this bridge have 4", slots=np.ones((1, 3, 5)))
    refused("4 slots, where this bridge sends 3$", slots=np.ones((1, 4, 4)), mask=np.ones((1, 4)))
    refused("0 slots, where this bridge", slots=np.ones((1, 0, 4)), mask=np.ones((1, 0)))
    refused("2 of its 3 slots are used", mask=np.array([[True, False, True]]))
    refused("0 of its 3 slots are used", mask=np.zeros((1, 3)))
    refused("an entry of a slot is 1e.30, where those of this bridge are 65504", slots=slots * 1e30)
    refused("a text of 1e.30 source tokens, where this bridge reads 0 to 100", span=span * 0 + 1e30)
    refused("a text of -1 source tokens", span=span * 0 - 1)
    refused("no length of the text, where this bridge sends one", span=None)
    refused(r"the owners of its slots \(7, 0, 0\) are not this bridge's", owner=(7, 0, 0))
    refused("a length of the text, where this bridge sends none", Limits(4, span=None))
    free = Limits(4, most=None)
    refused("3 slots for 2 source tokens", free, span=np.array([2.0], np.float32))
    private = Limits(4, 3, 3, owners=(SHARED, SHARED, 0))
    refused(r"owners of its slots \(none\)", private)
    refused("owners of its slots", private, owner=(SHARED, 0, 0))
    own = Latent(slots, mask, span, (SHARED, SHARED, 0))  # type: ignore[arg-type]
    _same(own, packet.from_bytes(packet.to_bytes(own), limits=private).latent)


@pytest.mark.parametrize(("slots", "taken"), [(1, False), (2, True), (3, True), (4, False)])
def test_as_many_slots_as_a_bridge_sends_are_taken(slots: int, taken: bool) -> None:
    """From the fewest to the most, both of them too, and the line says which these are."""
    limits = Limits(width=4, fewest=2, most=3)
    if taken:
        limits.check_size(slots, 4)
        return
    with pytest.raises(UserError, match=f"^wire: {slots} slots, where this bridge sends 2 to 3$"):
        limits.check_size(slots, 4)
    Limits(width=4, fewest=slots, most=None).check_size(slots, 4)
    with pytest.raises(UserError, match=f"sends {slots + 1} or more$"):
        Limits(width=4, fewest=slots + 1, most=None).check_size(slots, 4)


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
    for wrong, words in (
        ({"slots": big * np.inf}, "a slot is not finite"),
        ({"span": np.array([np.nan])}, "expected one finite span"),
        ({"mask": np.ones((1, 4), bool)}, r"3 slots with a mask \[1, 4\] and 0 owners"),
        ({"owner": (0,)}, "3 slots with a mask .* and 1 owners"),
        ({"slots": np.ones((1, 3, 70_000))}, "3 slots of width 70000, where a packet holds 65535"),
    ):
        with pytest.raises(UserError, match=words):
            packet.to_bytes(Latent(**{"slots": big, "mask": mask, **wrong}))
    with pytest.raises(UserError, match="a mark has 8 bytes; got 9"):
        packet.to_bytes(Latent(big, mask), mark=b"012345678")  # type: ignore[arg-type]


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


PARTS = [
    dict(zip(("mark", "owners", "span", "key"), flags, strict=True))
    for flags in itertools.product([False, True], repeat=4)
]


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("name", ["float32", "int4", "codes"])
def test_a_packet_byte_by_byte(parts: dict[str, bool], name: str) -> None:
    """As the module says, of 9 slots: the mask takes two bytes."""
    m, levels = 9, (3, 7) if name == "codes" else ()
    slots = np.asarray([[[7, i - 5, -i % 7] for i in range(m)]], np.float32) / 2
    if name == "codes":
        slots = np.arange(18, dtype=np.int32).reshape(1, m, 2) % np.asarray([3, 7], np.int32)
    mask = np.arange(m)[None] % 3 > 0
    owner = (SHARED,) * 4 + (0, 1, 2, 300, 4) if parts["owners"] else ()
    span = np.asarray([17.5], np.float32) if parts["span"] else None
    mark, key = (b"12345678" if parts["mark"] else None), (b"secret" if parts["key"] else None)
    latent = Latent(slots, mask, span, owner)  # type: ignore[arg-type]
    data = packet.to_bytes(latent, codec_name=name, levels=levels, mark=mark, key=key)

    flags = sum(bit for bit, there in zip((1, 2, 4, 8), parts.values(), strict=True) if there)
    tag, d = {"float32": (0, 3), "int4": (5, 3), "codes": (6, 2)}[name]
    own = codec(name, levels).pack(slots[0])
    assert len(own) == {"float32": 108, "int4": 18 + 14, "codes": 6}[name]
    body = (mark or b"") + (struct.pack("<9h", *owner) if owner else b"")
    body += struct.pack("<f", 17.5) if parts["span"] else b""
    body += np.packbits(mask[0]).tobytes() + own
    blank = struct.pack("<4sBBBBHHI", b"LWJX", 2, tag, flags, 0, m, d, 0) + body
    if key is not None:
        blank += hmac.digest(key, blank, "sha256")[:16]
    whole = blank[:12] + struct.pack("<I", zlib.crc32(blank)) + blank[16:]
    assert data == whole

    sizes = {n: parts[n] for n in ("owners", "span", "mark", "key")}
    assert len(data) == packet.nbytes(m, d, name, levels=levels, **sizes)
    got = packet.from_bytes(data, levels, mark=mark, key=key)
    _same(latent, got.latent)
    assert (got.codec, got.fingerprint) == (name, mark)
    said = packet.facts(data)
    assert said == (name, m, d, mark, 17.5 if parts["span"] else None, parts["key"])


def test_the_largest_number_of_slots_that_a_header_holds() -> None:
    for m, d in ((2**16 - 1, 1), (1, 2**16 - 1)):
        latent = Latent(np.zeros((1, m, d), np.float32), np.ones((1, m), bool))  # type: ignore[arg-type]
        assert packet.from_bytes(packet.to_bytes(latent)).latent.slots.shape == (1, m, d)
    for m, d in ((2**16, 1), (1, 2**16)):
        latent = Latent(np.zeros((1, m, d), np.float32), np.ones((1, m), bool))  # type: ignore[arg-type]
        with pytest.raises(UserError, match="a packet holds 65535 of each"):
            packet.to_bytes(latent)
