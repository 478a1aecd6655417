"""Packets that were mutated at random: each is refused in one line, or says what it said before."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest

from lw_jax.errors import UserError
from lw_jax.types import SHARED, Latent
from lw_jax.wire import packet
from lw_jax.wire.codecs import CODECS
from lw_jax.wire.limits import Limits
from tests.wire.crafted import sealed

LEVELS, MARK, KEY = (8, 5, 3), b"01234567", b"a key of 24 random bytes"
OWNERS = (SHARED,) * 5 + (0, 1)
SEED = 20_260_101


@dataclass(frozen=True)
class Kind:
    """Packets of one bridge in one codec."""

    codec: str
    private: bool
    key: bytes | None

    @property
    def limits(self) -> Limits:
        owners = OWNERS if self.private else ()
        return Limits(6, 1, 7, owners=owners, span=500.0)

    def sent(self, rng: np.random.Generator) -> bytes:
        m = 7 if self.private else int(rng.integers(1, 8))
        slots = rng.normal(size=(1, m, 6)).astype(np.float32)
        if self.codec == "codes":
            slots = rng.integers(0, LEVELS, (1, m, 3)).astype(np.int32)  # type: ignore[assignment]
        span = rng.integers(1, 500, 1).astype(np.float32)
        owner = OWNERS if self.private else ()
        latent = Latent(slots, np.ones((1, m), bool), span, owner)  # type: ignore[arg-type]
        name, levels = self.codec, LEVELS if self.codec == "codes" else ()
        return packet.to_bytes(latent, codec_name=name, levels=levels, mark=MARK, key=self.key)

    def read(self, data: bytes) -> packet.Message:
        limits = self.limits
        return packet.from_bytes(data, LEVELS, mark=MARK, limits=limits, key=self.key)


KINDS = [Kind(c, p, k) for c in (*CODECS, "codes") for p in (False, True) for k in (None, KEY)]


def mutated(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """The bytes after one to three mutations, a third of them in the header."""
    out = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        if not out:
            break
        at = int(rng.integers(0, min(28, len(out)) if rng.random() < 1 / 3 else len(out)))
        match rng.integers(0, 8):
            case 0:
                out[at] ^= 1 << rng.integers(0, 8)
            case 1:
                out[at] = rng.integers(0, 256)
            case 2:
                del out[at : at + int(rng.integers(1, 9))]
            case 3:
                out[at:at] = rng.bytes(int(rng.integers(1, 9)))
            case 4:
                out = out[:at]
            case 5:
                end = int(rng.integers(at, len(out) + 1))
                out[at:end] = other[at:end]
            case 6:
                out[at : at + 4] = [b"\0" * 4, b"\xff" * 4, b"\0\0\xc0\x7f"][rng.integers(0, 3)]
            case 7:
                there = int(rng.integers(0, len(out)))
                out[at], out[there] = out[there], out[at]
    return bytes(out)


def read(kind: Kind, data: bytes) -> tuple[packet.Message | None, str]:
    """What is read, or the line that says why nothing is."""
    try:
        return kind.read(data), ""
    except UserError as error:
        return None, str(error)


def outcome(kind: Kind, data: bytes, rng: np.random.Generator) -> str:
    """What becomes of one mutated packet; anything but a UserError of one line is raised."""
    other = kind.sent(rng)
    changed = mutated(data, other, rng)
    right = rng.random() < 0.4  # as someone would who wants to be believed
    if right and len(changed) >= 16:
        changed = sealed(changed)
    found, line = read(kind, changed)
    if found is None:
        assert line.startswith("wire: ")
        assert "\n" not in line
        return "refused"
    if changed in (data, other):  # nothing was changed, or all of it
        return "unchanged"
    assert right, "damage was read"
    assert kind.key is None, "a packet was read that nobody with the key has made"
    # Without a key a right checksum can be made by anyone; it is then a latent of this bridge.
    assert np.isfinite(found.latent.slots).all()
    kind.limits.check(found.latent)
    return "forged"


def tally(count: int) -> Counter[str]:
    rng = np.random.default_rng(SEED)
    found: Counter[str] = Counter()
    for i in range(count):
        kind = KINDS[i % len(KINDS)]
        found[outcome(kind, kind.sent(rng), rng)] += 1
    return found


def test_five_hundred_mutated_packets() -> None:
    found = tally(500)
    assert found["refused"] > 400, found
    assert found["unchanged"] + found["forged"] < 60, found


@pytest.mark.slow
def test_ten_thousand_mutated_packets() -> None:
    found = tally(10_000)
    assert found["refused"] > 9_000, found
    print(found)
