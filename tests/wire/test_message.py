"""A message: packets of a text one after another, and what they say of themselves."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from lw_jax.errors import UserError
from lw_jax.types import Latent
from lw_jax.wire import packet
from lw_jax.wire.message import _HEADER, Message, Part

MARK = bytes(range(8))


def sent(seed: int, slots: int = 4, **given: object) -> bytes:
    values = np.random.default_rng(seed).normal(size=(1, slots, 8)).astype(np.float32)
    latent = Latent(values, np.ones((1, slots), bool), np.float32([10 * slots]))  # type: ignore[arg-type]
    options = {"codec_name": "float16", "mark": MARK} | given
    return packet.to_bytes(latent, **options)  # type: ignore[arg-type]


def several(count: int = 3) -> Message:
    return Message(tuple(Part(sent(i, 2 + i), 100 * (i + 1)) for i in range(count)))


def test_a_packet_is_a_message_and_says_what_it_is() -> None:
    data = sent(0)
    message = Message.from_bytes(data)
    assert message.to_bytes() == data
    assert (message.bridge, message.codec, message.slots) == (MARK.hex(), "float16", 4)
    assert (message.width, message.tokens, message.characters) == (8, 40, None)
    assert (len(message), message.nbytes) == (1, len(data))
    assert repr(message) == (
        f"<lw_jax.Message of bridge {MARK.hex()}: 4 slots of 8 (float16), {len(data)} bytes>"
    )


def test_codes_say_what_they_are_without_their_bridge() -> None:
    codes = Latent(np.ones((1, 3, 2), np.int32), np.ones((1, 3), bool), None)  # type: ignore[arg-type]
    data = packet.to_bytes(codes, codec_name="codes", levels=(5, 7), mark=MARK, key=b"k" * 16)
    facts = packet.facts(data)
    assert facts == packet.Facts("codes", 3, 2, MARK, None, True)
    with pytest.raises(UserError, match="wire: the checksum differs"):
        packet.facts(data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])
    with pytest.raises(UserError, match="wire: 20 bytes where its header says"):
        packet.facts(data[:20])


def test_a_packet_says_what_it_has_and_no_more() -> None:
    """Neither mark nor span; with owners, which stand before the span."""
    assert packet.facts(sent(0, mark=None)) == packet.Facts("float16", 4, 8, None, 40, False)
    values, mask = np.ones((1, 2, 8), np.float32), np.ones((1, 2), bool)
    for span in (None, np.float32([70])):
        for owner in ((-1, -1), (0, 1)):
            latent = Latent(values, mask, span, owner)  # type: ignore[arg-type]
            data = packet.to_bytes(latent, codec_name="int8", mark=MARK)
            said = None if span is None else 70
            assert packet.facts(data) == packet.Facts("int8", 2, 8, MARK, said, False)


def test_several_parts_cross_as_they_are() -> None:
    message = several()
    data = message.to_bytes()
    assert len(data) == message.nbytes
    again = Message.from_bytes(data)
    assert again == message
    assert (again.slots, again.characters, again.tokens, len(again)) == (9, 600, 90, 3)
    assert "3 parts, 9 slots" in repr(again)
    assert "for 600 characters" in repr(again)
    unknown = message + sent(7)
    assert Message.from_bytes(unknown.to_bytes()) == unknown
    assert unknown.characters is None


def test_the_checksum_is_of_every_byte_but_its_own() -> None:
    data = several().to_bytes()
    at = _HEADER.size - 4
    blank = data[:at] + bytes(4) + data[at + 4 :]
    assert int.from_bytes(data[at : at + 4], "little") == zlib.crc32(blank)


def test_parts_are_appended_replaced_and_dropped() -> None:
    a, b, c = several()
    assert Message.of([a, b, c]) == a + b + c == several()
    whole = a + b + c
    assert whole.dropped(1) == a + c
    assert whole.replaced(1, c + a) == a + c + a + c
    assert whole.replaced(-1, a) == a + b + a
    assert (whole[0], whole[-1], whole[1:]) == (a, c, b + c)
    assert a + sent(9) == Message((*a.parts, Part(sent(9))))
    for wrong in (lambda: whole[3], lambda: whole.dropped(-4), lambda: whole.replaced(3, a)):
        with pytest.raises(UserError, match=r"message: part -?\d of 3; there is none"):
            wrong()
    with pytest.raises(UserError, match="a message has one at least"):
        a.dropped(0)
    with pytest.raises(UserError, match="part 1 is of another bridge than part 0"):
        a + sent(0, mark=bytes(8))


def test_a_message_that_was_changed_is_refused() -> None:
    data = several().to_bytes()
    for at in range(len(data)):
        for bit in (1, 128):
            wrong = data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :]
            with pytest.raises(UserError, match=r"^(message|wire): [^\n]*$"):
                Message.from_bytes(wrong)
    for size in range(len(data)):
        with pytest.raises(UserError, match=r"^(message|wire): [^\n]*$"):
            Message.from_bytes(data[:size])
    with pytest.raises(UserError, match="message: expected bytes; got a value of type str"):
        Message.from_bytes("LWJM")  # type: ignore[arg-type]
