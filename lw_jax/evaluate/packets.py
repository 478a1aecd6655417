"""The texts of an evaluation as bytes: the sender runs once a text, and all else reads the bytes.

Every method, receiver, codec and control, the slots' statistics and the Python API are given what
`lw_jax.wire.packet` wrote and nothing else, so what is reported of the wire is what crossed it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from lw_jax.bridge.bridge import Bridge
from lw_jax.errors import UserError
from lw_jax.evaluate import latents
from lw_jax.evaluate.methods.base import Batch, EvalContext
from lw_jax.mesh import fetch
from lw_jax.types import SHARED, Array, Latent
from lw_jax.wire import packet
from lw_jax.wire.codecs import CODES
from lw_jax.wire.codecs import codec as check
from lw_jax.wire.limits import Limits


@struct.dataclass
class Encoded:
    """What one run of the sender gives.

    Attributes:
        latent: as it leaves the wire.
        codes: [B, M, n] int32 of a bottleneck that has codes, which are sent in the slots' place.
        seen: figures of how the latent was made; {} where nobody looked.
    """

    latent: Latent
    codes: Array | None
    seen: dict[str, Any]


@partial(jax.jit, static_argnames="look")
def encode(ctx: EvalContext, batch: Batch, look: bool = False) -> Encoded:
    """The latents of a batch, and what the sending side alone can say of them.

    Args:
        ctx: its bridge; the receiver plays no part.
        batch: the texts, in the sources' tokens.
        look: whether to look at how the latents were made (`lw_jax.evaluate.latents.making`).
    """
    views = ctx.views(batch)
    latent, sown = ctx.bridge.apply(ctx.params, views, method="encode")
    codes = sown["bottleneck"]["codes"] if ctx.bridge.levels else None
    seen = latents.making(ctx.bridge, ctx.params, views, sown) if look else {}
    return Encoded(latent, codes, seen)


def to_packets(
    bridge: Bridge,
    sent: Encoded,
    codec: str | None,
    mark: bytes,
    fit: bool = False,
    key: bytes | None = None,
) -> list[bytes]:
    """The bytes of every row of a batch that is on the host.

    Args:
        bridge: the sending one.
        sent: what its sender has given.
        codec: of the slots; None: the one that holds exactly what the bridge sends.
        mark: names the bridge.
        fit: what a 16-bit float cannot hold becomes its largest number.
        key: that both ends share; None: packets have no tag.

    Raises:
        UserError: the codec is unknown or cannot hold the slots.
    """
    name = codec or bridge.codec
    check(name, bridge.levels)
    latent = sent.latent
    if name == CODES:
        assert sent.codes is not None
        latent = replace(latent, slots=sent.codes)
    elif fit and name in ("float16", "bfloat16"):
        limit = float(jnp.finfo(name).max)
        latent = replace(latent, slots=np.clip(np.asarray(latent.slots), -limit, limit))
    rows = range(latent.mask.shape[0])
    return [
        packet.to_bytes(
            packet.sendable(_row(latent, i)),
            codec_name=name,
            levels=bridge.levels,
            mark=mark,
            key=key,
        )
        for i in rows
    ]


def _row(latent: Latent, i: int) -> Latent:
    return jax.tree.map(lambda x: np.asarray(x)[i : i + 1], latent)


def opened(
    bridge: Bridge,
    data: bytes,
    mark: bytes,
    limits: Limits | None = None,
    key: bytes | None = None,
) -> Latent:
    """What the bytes of one row say: slots, or codes in their place.

    Args:
        bridge: the receiving one.
        data: the bytes.
        mark: names the bridge.
        limits: what a packet can be; None: the bridge's own limits.
        key: that both ends share; None: packets have no tag.

    Raises:
        UserError: they are no latent, damaged, another bridge's, or nothing that it sends.
    """
    limits = bridge.limits if limits is None else limits
    return packet.from_bytes(data, bridge.levels, mark=mark, limits=limits, key=key).latent


def filled(rows: Sequence[Latent], slots: int) -> Latent:
    """Latents of one row each as one batch on the host, with masked slots at the end of each.

    Args:
        rows: as they were sent, without the masked slots at their end.
        slots: M of the batch, at least as many as any row has.
    """
    owner = max((one.owner for one in rows), key=len)
    more = [slots - one.mask.shape[1] for one in rows]
    spans = [one.span for one in rows if one.span is not None]
    return Latent(
        slots=np.concatenate(
            [np.pad(one.slots, ((0, 0), (0, n), (0, 0))) for one, n in zip(rows, more, strict=True)]
        ),  # type: ignore[arg-type]
        mask=np.concatenate(
            [np.pad(one.mask, ((0, 0), (0, n))) for one, n in zip(rows, more, strict=True)]
        ),  # type: ignore[arg-type]
        span=np.concatenate(spans) if spans else None,  # type: ignore[arg-type]
        owner=(*owner, *(SHARED,) * (slots - len(owner))) if owner else (),
    )


@dataclass(frozen=True)
class Packets:
    """All rows of an evaluation as they cross the wire, in one codec or more.

    Attributes:
        bridge: that sent them.
        mark: names its parameters.
        slots: M that every latent is filled up to, so that a program serves all batches.
        by_codec: bytes of every row by codec, the bridge's own among them.
        seconds: that sending took, by codec: the sender's and the codec's own.
        seen: of the batches that were looked at, how their latents were made.
    """

    bridge: Bridge
    mark: bytes
    slots: int
    by_codec: Mapping[str, Sequence[bytes]]
    seconds: Mapping[str, float]
    seen: Sequence[Mapping[str, Any]] = field(default=())

    def of(self, codec: str | None) -> Sequence[bytes]:
        """The packets in a codec; None: in the bridge's own."""
        return self.by_codec[codec or self.bridge.codec]

    def received(self, codec: str | None, rows: Iterable[int]) -> Latent:
        """What the bytes of some rows say, as one batch on the host; the codes of a bridge that
        sends codes.

        Raises:
            UserError: the bytes of a row were damaged; names the row.
        """
        held, found = self.of(codec), []
        for row in rows:
            try:
                found.append(opened(self.bridge, held[row], self.mark))
            except UserError as error:
                raise UserError(f"row {row}: {error}") from error
        return filled(found, self.slots)

    def sizes(self, codec: str | None) -> list[int]:
        """Bytes of every row."""
        return [len(data) for data in self.of(codec)]

    @cached_property
    def counts(self) -> list[int]:
        """Real slots of every row."""
        return [int(opened(self.bridge, data, self.mark).mask.sum()) for data in self.of(None)]


def send(
    ctx: EvalContext,
    batches: Iterable[tuple[int, Any]],
    *,
    rows: int,
    codecs: Sequence[str],
    mark: bytes,
    looked: Callable[[int], bool],
    clock: Callable[[], float],
) -> Packets:
    """Run the sender over all batches, once, and keep what it says as bytes.

    Args:
        ctx: the bridge, and the frozen models.
        batches: first row and arrays on the mesh; the last batch may be filled up.
        rows: how many are no filling.
        codecs: in which the latents are wanted besides the bridge's own.
        mark: names the bridge.
        looked: whether to look at how the latents of the batch that begins there are made.
        clock: seconds.
    """
    names = list(dict.fromkeys([ctx.bridge.codec, *codecs]))
    held: dict[str, list[bytes]] = {name: [] for name in names}
    seconds = dict.fromkeys(names, 0.0)
    seen, slots = [], 0
    for begin, batch in batches:
        began = clock()
        sent = fetch(encode(ctx, batch, looked(begin)))
        sender = clock() - began
        slots = sent.latent.mask.shape[1]
        for name in names:
            began = clock()
            data = to_packets(ctx.bridge, sent, name, mark, fit=True)
            held[name] += data[: rows - begin]  # the rows beyond are filling
            seconds[name] += sender + clock() - began
        if looked(begin):
            seen.append(sent.seen)
    return Packets(ctx.bridge, mark, slots, held, seconds, seen)
