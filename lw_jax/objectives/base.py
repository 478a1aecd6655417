"""What an objective sees, and what it returns.

An objective is a module with a `Config` (fields `weight` and `schedule`) and
`terms(config, context, receiver) -> {name: Term}`. Sums and counts are returned apart, so that
masked means merge right over microbatches and devices.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct

from lw_jax.party import Parties
from lw_jax.receiver.pack import Segment
from lw_jax.receiver.read import (
    Reading,
    expand,
    head_segment,
    message_segment,
    read,
    text_message,
)
from lw_jax.types import Array, Delivery, Latent, PyTree


@struct.dataclass
class Term:
    """A sum of losses, and how many were summed (not differentiated). Both float32 scalars."""

    total: Array
    count: Array


@dataclass(frozen=True)
class Pass:
    """One run of a receiver that objectives ask for; each is computed once a step.

    message: what stands in the message's place; gradient: whether it is differentiated.
    """

    message: Literal["latent", "text", "none"]
    gradient: bool = True


@dataclass
class Context:
    """What the objectives of one microbatch see; built inside the step's trace.

    deliveries: per receiver, of the B contexts; heads: parameters of objectives that have some;
    watched: terms that are logged and not part of the loss, by name.
    """

    parties: Parties
    batch: dict[str, Array]
    latent: Latent
    deliveries: dict[str, Delivery]
    rng: Array
    heads: dict[str, PyTree] = field(default_factory=dict)
    watched: dict[str, Term] = field(default_factory=dict)
    readings: dict[tuple[str, Pass], Reading] = field(default_factory=dict)

    @property
    def valid(self) -> Array:
        """[N] bool: questions that count."""
        return self.batch["valid"]

    @property
    def questions(self) -> int:
        """Questions per context, Q."""
        return self.valid.shape[0] // self.latent.slots.shape[0]

    def reading(self, receiver: str, asked: Pass) -> Reading:
        """The receiver's states at the answer, for one pass."""
        key = (receiver, asked)
        if key not in self.readings:
            reading = answer_reading(
                self.parties,
                self.batch,
                receiver,
                asked.message,
                self.deliveries[receiver] if asked.message == "latent" else None,
                self.questions,
            )
            if not asked.gradient:
                reading = jax.lax.stop_gradient(reading)
            self.readings[key] = reading
        return self.readings[key]


def segments(
    parties: Parties,
    batch: dict[str, Array],
    receiver: str,
    message: str,
    delivery: Delivery | None,
    questions: int,
    answer: bool = True,
) -> list[Segment]:
    """The receiver's segments for N questions; the delivery is already expanded to N rows."""
    party = parties.receivers[receiver]
    rows = batch[f"{receiver}/ask/ids"].shape[0]
    width = party.params["embed"].shape[1]
    if message == "text":
        ids = jnp.repeat(batch[f"{receiver}/context/ids"], questions, axis=0)
        lengths = jnp.repeat(batch[f"{receiver}/context/lengths"], questions, axis=0)
        middle = text_message(ids, lengths)
    else:
        middle = message_segment(delivery if message == "latent" else None, rows, width)
    parts = [head_segment(party.head, rows), middle]
    for role in ("ask", "answer") if answer else ("ask",):
        ids, lengths = batch[f"{receiver}/{role}/ids"], batch[f"{receiver}/{role}/lengths"]
        parts.append(Segment(ids, None, lengths, role))
    return parts


def answer_reading(
    parties: Parties,
    batch: dict[str, Array],
    receiver: str,
    message: str,
    delivery: Delivery | None,
    questions: int,
) -> Reading:
    """Read the answers of a batch; `delivery` is per context."""
    party = parties.receivers[receiver]
    given = expand(delivery, questions)
    laid = segments(parties, batch, receiver, message, given, questions)
    return read(party.arch, party.params, laid, given, attention=party.attention)


def mean(term: Term) -> Array:
    """The mean of a term; 0 when nothing was counted."""
    return term.total / jnp.maximum(1.0, term.count)


def masked(values: Array, mask: Array) -> Term:
    """A term from values [N, A] and their mask."""
    keep = mask.astype(jnp.float32)
    return Term(jnp.sum(values * keep), jnp.sum(keep))
