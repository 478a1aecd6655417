"""What an objective is: it gives terms of the loss for one receiver.

A file of this folder with a dataclass `Config(Objective)` is an objective; its name is the file's.
"""

from __future__ import annotations

import dataclasses
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import struct

from lw_jax.errors import UserError
from lw_jax.models.dims import BridgeDims
from lw_jax.objectives.common.context import Context
from lw_jax.types import Array, PyTree
from lw_jax.utils.bounds import Checked, Weight
from lw_jax.utils.schedule import Schedule


@struct.dataclass
class Term:
    """A sum and a count, apart, so that means merge right over microbatches and devices.

    Attributes:
        total: float32 scalar, the sum of what was counted.
        count: float32 scalar, how much was counted (not differentiated).
    """

    total: Array
    count: Array


def mean(term: Term) -> Array:
    """The mean of a term; 0 when nothing was counted."""
    return term.total / jnp.maximum(1.0, term.count)


def masked(values: Array, mask: Array) -> Term:
    """A term from values [N, A] and their mask."""
    keep = mask.astype(jnp.float32)
    return Term(jnp.sum(values * keep), jnp.sum(keep))


@dataclass(frozen=True)
class Terms:
    """What an objective gives for one receiver.

    Attributes:
        loss: what is minimised: one term, or several by name. A name "x" is logged as
            `<objective>_x`, and "" as the objective itself.
        watched: what is logged and is no part of the loss, by name.
        cosine: of what is reconstructed with the source, where the objective reconstructs it;
            weights may be gated on it (`Schedule.gate`). Logged as `reconstruction_cosine`.
        shuffled: the same loss where every row is conditioned on another row's text; alike, it
            raises the alarm `blind_flow`. Logged as `<objective>/shuffled`.
    """

    loss: Term | Mapping[str, Term]
    watched: Mapping[str, Term] = field(default_factory=dict)
    cosine: Term | None = None
    shuffled: Term | None = None


@dataclass(frozen=True, kw_only=True)
class Objective(Checked, ABC):
    """Base of every objective's `Config`.

    Args:
        weight: of this objective in the loss.
        schedule: factor of the weight over the steps.
    """

    at_rest: ClassVar[float] = -math.inf
    """Of a constraint: the loss at or below which it is met, and needs no gradient."""
    has_gradient: ClassVar[bool] = True
    """Whether it trains anything; False for what is only there to be looked at."""
    optimizer_rules: ClassVar[Mapping[str, str]] = {}
    """What its leaves are to the optimiser, by regular expressions on their paths below it:
    "matrix" [..., in, out], "heads_out" [..., D, H, h], "heads_in" [..., H, h, D], or "adam", which
    is no matrix. Without a rule a leaf of two axes is a matrix; see `lw_jax.train.optimiser`."""

    weight: Weight = 1.0
    schedule: Schedule = Schedule()

    def init(self, dims: BridgeDims, rng: Array) -> PyTree | None:
        """Fresh parameters of its heads, which `terms` finds as `ctx.heads`; None: it has none."""
        return None

    def teacher_tau(self) -> float | None:
        """Of an objective that compares the answers' distributions with those of the receiver on
        the text: its temperature, so that both it and the scores of the answers come from one pass
        of the head (`Context.answers`). None: it does not."""
        return None

    @abstractmethod
    def terms(self, ctx: Context, receiver: str) -> Terms:
        """Its terms for one receiver.

        Raises:
            UserError: it does not suit this bridge. The line begins with the option that is wrong
                ("head: ..."), if it is one of its own; the objective's name is put before it.
        """


def checked_terms(name: str, found: Any) -> Terms:
    """What an objective's `terms` returned, if it is what the contract asks for.

    Raises:
        UserError: it is something else.
    """
    where = f"objectives.{name}: terms returned"
    if not isinstance(found, Terms):
        raise UserError(
            f"{where} {_kind(found)}; expected lw_jax.objectives.base.Terms, as in "
            "Terms(masked(values, mask))"
        )
    for key, term in named_terms(found).items():
        if not isinstance(term, Term):
            raise UserError(
                f"{where} {_kind(term)} as {key}; expected a Term, as in masked(values, mask)"
            )
        shapes = [jnp.shape(x) for x in (term.total, term.count)]
        if shapes != [(), ()]:
            raise UserError(
                f"{where} a Term of shapes {shapes[0]} and {shapes[1]} as {key}; expected two "
                "scalars, a sum and a count: use masked(values, mask)"
            )
    return found


def _kind(value: Any) -> str:
    return "an array" if isinstance(value, Array) else f"a {type(value).__name__}"


def named_terms(terms: Terms) -> dict[str, Term]:
    """All terms by the attribute, and the name, that they are given as."""
    loss = terms.loss if isinstance(terms.loss, Mapping) else {"": terms.loss}
    found = {f"loss[{key!r}]" if key else "loss": term for key, term in loss.items()}
    found |= {f"watched[{key!r}]": term for key, term in terms.watched.items()}
    own = {"cosine": terms.cosine, "shuffled": terms.shuffled}
    return found | {key: term for key, term in own.items() if term is not None}


@contextmanager
def naming(name: str, config: Objective) -> Iterator[None]:
    """Put the objective's key before a UserError inside that names no key of the bridge's."""
    try:
        yield
    except UserError as error:
        text = str(error)
        if re.match(r"(bridge|objectives)[\w.]*:", text):
            raise
        option = re.match(r"(\w+)[\w.]*:", text)
        own = option is not None and option[1] in {f.name for f in dataclasses.fields(config)}
        raise UserError(f"objectives.{name}{'.' if own else ': '}{text}") from error
