"""What a method sees, and what it puts in the message's place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp
from flax import struct

from lw_jax.bridge.bridge import Bridge
from lw_jax.models.frozen import FrozenDecoder, FrozenModels
from lw_jax.receiver.answer import Message, delivered
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
        return self.bridge.extract(self.frozen.sender, batch, self.params)

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
        """What the reader makes of a latent; nothing else is seen."""
        return self.bridge.deliver(self.params, self.receiver, latent)

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
        latent: whose latent each row is given: its `own`, that of an `other` context, or None.
        codec: in which it was sent; None: the bridge's own.
        relayed: whether the rows' contexts are what the sender wrote.
        kept: from the receiver's tokenizer, a text's tokens and the bytes of its latent to how many
            of the tokens stay; None: all.
    """

    message: Callable[[EvalContext, Batch, Any], Message]
    wire_bytes: Callable[[Sent], int]
    latent: Literal["own", "other"] | None = None
    codec: str | None = None
    relayed: bool = False
    kept: Callable[[Tokenizer, Sequence[int], int], int] | None = None

    @property
    def needs_bridge(self) -> bool:
        """Whether it cannot run without trained parameters."""
        return self.latent is not None or self.kept is not None


def text_bytes(sent: Sent) -> int:
    """The whole text as UTF-8."""
    return len(sent.text.encode())


def latent_bytes(sent: Sent) -> int:
    """The latent's packet, header included."""
    return sent.latent_bytes


def nothing(sent: Sent) -> int:
    """No byte."""
    return 0
