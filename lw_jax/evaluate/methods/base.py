"""What a method sees, and what it puts in the message's place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flax import struct

from lw_jax.bridge.bridge import Bridge
from lw_jax.models.frozen import FrozenDecoder, FrozenModels
from lw_jax.receiver.answer import Message, delivered
from lw_jax.text.tokenizer import Tokenizer
from lw_jax.types import Array, Delivery, Latent, PyTree

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

    def encode(self, batch: Batch) -> Latent:
        """The latent of every row's source, as it leaves the wire."""
        taps = self.bridge.extract(self.frozen.sender, batch, self.params)
        return self.bridge.encode(self.params, taps)

    def send(self, batch: Batch) -> Latent:
        """The same, with the bottleneck's codes in the slots' place."""
        taps = self.bridge.extract(self.frozen.sender, batch, self.params)
        return self.bridge.to_wire(self.params, taps)

    def received(self, sent: Latent) -> Latent:
        """The latent that codes stand for."""
        return self.bridge.from_wire(self.params, sent)

    def deliver(self, latent: Latent) -> Delivery:
        """What the reader makes of a latent; nothing else is seen."""
        return self.bridge.deliver(self.params, self.receiver, latent)

    def delivered(self, batch: Batch, latent: Latent) -> Message:
        """What the reader makes of a latent, as the layout has it."""
        return delivered(self.model, self.deliver(latent), *self.context(batch))

    def context(self, batch: Batch) -> tuple[Array, Array]:
        """Token ids [N, T] of the text that the latent replaces, and lengths [N]."""
        return batch[f"{self.receiver}/context/ids"], batch[f"{self.receiver}/context/lengths"]


@dataclass(frozen=True)
class Sent:
    """One row's message on the host: its text, its ids in the receiver's tokens, its columns."""

    text: str
    ids: list[int]
    columns: int
    tokenizer: Tokenizer
    latent_bytes: int
    embedding_bytes: int


@dataclass(frozen=True)
class Method:
    """One line of the table.

    message: traced; from a batch to what stands in the message's place. wire_bytes: what had to
    cross the wire for one row. other_source: the sources of the batch are other contexts'.
    needs_bridge: it cannot run without trained parameters. relayed: the rows' contexts are what the
    sender wrote. kept: from the receiver's speaker, a text's tokens and the bytes of its latent to
    how many of the tokens stay; None: all.
    """

    message: Callable[[EvalContext, Batch], Message]
    wire_bytes: Callable[[Sent], int]
    other_source: bool = False
    needs_bridge: bool = False
    relayed: bool = False
    kept: Callable[[Tokenizer, Sequence[int], int], int] | None = None


def text_bytes(sent: Sent) -> int:
    """The whole text as UTF-8."""
    return len(sent.text.encode())


def latent_bytes(sent: Sent) -> int:
    """A latent in float32, header included."""
    return sent.latent_bytes


def nothing(sent: Any) -> int:
    """No byte."""
    return 0
