"""What an evaluation method is, and what it sees.

A file of this folder with `METHOD = Method(...)` is a method; its name is the file's. A file with
`FAMILY = Family(...)` makes a method of every name that begins with its prefix. Nothing else lists
them: the table, the defaults and the controls are what the methods say of themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp
from flax import struct

from lw_jax.bridge.bridge import Bridge
from lw_jax.models.frozen import FrozenDecoder, FrozenModels
from lw_jax.receiver.answer import Message, delivered, occupied
from lw_jax.receiver.read import text_message
from lw_jax.receiver.transform import transformed
from lw_jax.text.budget import Cut
from lw_jax.text.layout import Prompt
from lw_jax.text.tokenizer import Tokenizer
from lw_jax.types import Array, Delivery, Latent, PyTree, Taps

Batch = Mapping[str, Array]


@struct.dataclass
class EvalContext:
    """One receiver and the wire that leads to it; arrays are arguments of the jitted step.

    Attributes:
        frozen: the frozen models.
        params: of the bridge; None where no method needs one.
        mean: training-set mean of the slots [M + 1, d]; None likewise.
        bridge: the bridge.
        receiver: which one reads.
    """

    frozen: FrozenModels
    params: PyTree
    mean: Array | None
    bridge: Bridge = struct.field(pytree_node=False)
    receiver: str = struct.field(pytree_node=False)

    @property
    def model(self) -> FrozenDecoder:
        """The receiver."""
        return self.frozen.receivers[self.receiver]

    def views(self, batch: Batch) -> dict[str, Taps]:
        """The frozen part of every view of the rows' source: here the sender runs."""
        return self.bridge.extract(self.frozen.sender, batch, self.params, self.frozen.receivers)

    @property
    def prompt(self) -> Prompt:
        """What the layout puts around the receiver's message."""
        return self.frozen.prompt(self.receiver)

    def encode(self, batch: Batch) -> Latent:
        """The latent of every row's source, as it leaves the wire."""
        return self.bridge.encode(self.params, self.views(batch))

    def received(self, sent: Latent) -> Latent:
        """The latent that was sent: codes become slots again, slots stay as they are."""
        if not jnp.issubdtype(sent.slots.dtype, jnp.integer):
            return sent
        return self.bridge.from_wire(self.params, sent)

    def deliver(self, latent: Latent) -> Delivery:
        """What the reader makes of a latent, changed as the layout says; nothing else is seen."""
        given = self.bridge.deliver(self.params, self.receiver, latent)
        rms = self.bridge.dims.receivers[self.receiver].embed_rms
        return transformed(self.model, self.prompt, given, rms)

    def delivered(self, batch: Batch, latent: Latent) -> Message:
        """What the reader makes of a latent, as the layout has it."""
        return delivered(self.model, self.prompt, self.deliver(latent), *self.context(batch))

    def context(self, batch: Batch) -> tuple[Array, Array]:
        """Token ids [N, T] of the text that the latent replaces, and lengths [N]."""
        return batch[f"{self.receiver}/context/ids"], batch[f"{self.receiver}/context/lengths"]


@dataclass(frozen=True)
class Sent:
    """One row's message on the host.

    Attributes:
        text: that the latent replaces.
        ids: its ids in the receiver's tokens.
        columns: receiver columns of the message.
        tokenizer: the receiver's.
        latent_bytes: of the row's latent on the wire, in the codec of the method.
        embedding_bytes: of one embedding of the receiver.
    """

    text: str
    ids: list[int]
    columns: int
    tokenizer: Tokenizer
    latent_bytes: int
    embedding_bytes: int


@dataclass(frozen=True)
class Method:
    """One line of the table.

    Attributes:
        message: traced; from a batch, and the latent that its row was sent (None where `latent`
            says so), to what stands in the message's place.
        wire_bytes: what had to cross the wire for one row.
        order: of the line in the table, from the top; those alike in the order of their names.
        latent: whose latent each row is given: its `own`, that of an `other` context, that of a
            `near` one, which is another of the same article (rows without one do not count), or
            None.
        codec: in which it was sent; None: the bridge's own.
        mean: whether it reads the training set's mean slots (`EvalContext.mean`).
        prepare: on the host; from the context and a batch of host arrays to what `message` finds in
            its batch besides, host arrays [N, ...] by key; None: nothing.
        relayed: whether the rows' contexts are what the sender wrote.
        kept: from the receiver's tokenizer, a text's tokens and the bytes of its latent to how many
            of the tokens stay; None: all.
        cut: from a row's text to the tokens that stay, no more than the latent has columns; None:
            all.
        by_entries: whether `cut` has as many tokens as hold the message's K/V entries, instead of
            its columns.
        surprisal: whether `cut` asks for the nats of every token under the sender.
        default: whether it is run where no methods are named.
        control: whether it is always run with `latent`, which says nothing without it.
        wire: whether the decode controls that are meant for the wire act on it; None: where it is
            given a latent or is a control, which must be decoded as the latent is.
    """

    message: Callable[[EvalContext, Batch, Any], Message]
    wire_bytes: Callable[[Sent], int]
    order: int
    latent: Literal["own", "other", "near"] | None = None
    codec: str | None = None
    mean: bool = False
    prepare: Callable[[EvalContext, Mapping[str, Any]], dict[str, Any]] | None = None
    relayed: bool = False
    kept: Callable[[Tokenizer, Sequence[int], int], int] | None = None
    cut: Callable[[Cut], Sequence[int]] | None = None
    by_entries: bool = False
    surprisal: bool = False
    default: bool = True
    control: bool = False
    wire: bool | None = None

    @property
    def of_the_wire(self) -> bool:
        """Whether it is decoded as the latent is (docs/design.md section 8, decoding)."""
        return self.latent is not None or self.control if self.wire is None else self.wire

    @property
    def needs_bridge(self) -> bool:
        """Whether it cannot run without trained parameters."""
        return any(part is not None for part in (self.latent, self.kept, self.cut))


@dataclass(frozen=True)
class Family:
    """Methods whose names end in what they are made of: `latent_int8`, `latent_int4`, ...

    Attributes:
        prefix: how the names begin.
        make: from the rest of the name to the method; UserError if there is none of that name.
        ends: what may follow the prefix, for people.
    """

    prefix: str
    make: Callable[[str], Method]
    ends: str


# What methods have in common


def reads_text(ctx: EvalContext, batch: Batch, latent: Any) -> Message:
    """The row's text stands in the message's place, as the clean receiver's own tokens."""
    return Message(text_message(*ctx.context(batch)))


def reads_latent(ctx: EvalContext, batch: Batch, latent: Latent) -> Message:
    """What the reader makes of the latent that the row was sent."""
    return ctx.delivered(batch, latent)


def budget(ctx: EvalContext, batch: Batch, own: Latent) -> Array:
    """[N] receiver columns of the row's own latent message."""
    return occupied(ctx.delivered(batch, own))


def text_bytes(sent: Sent) -> int:
    """The whole text as UTF-8."""
    return len(sent.text.encode())


def latent_bytes(sent: Sent) -> int:
    """The latent's packet, header included."""
    return sent.latent_bytes


def left_bytes(sent: Sent) -> int:
    """UTF-8 bytes of the tokens that were left of the text."""
    return len(sent.tokenizer.backend.decode(sent.ids).encode())


def nothing(sent: Sent) -> int:
    """No byte."""
    return 0


def embedding_bytes(sent: Sent) -> int:
    """One embedding a column, in the receiver's dtype."""
    return sent.columns * sent.embedding_bytes
