"""Rectified flow towards the receiver's own embeddings of a text (docs/design.md section 4).

Beside the loss stands the same loss with every row's condition replaced by another row's: a flow
that does not see its condition has both alike. Only a compressor with a `loss` can have it (dit).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp

from lw_jax.models.decoder import embed_tokens
from lw_jax.objectives.base import Term, masked
from lw_jax.objectives.context import Context
from lw_jax.types import Array, Features, Taps
from lw_jax.utils.schedule import Schedule

_PARTS = {"answer": "answer", "question": "ask", "context": "context"}
KEY = 64
"""Of its noise and its times, the same under every condition."""


@dataclass(frozen=True)
class Config:
    """Flow to the receiver's embeddings.

    Args:
        weight: of this objective in the loss.
        schedule: factor of the weight over the steps.
        target: the text whose embeddings are generated: the `answer` with its EOS, the `question`
            with the anchor, or the `context`.
    """

    weight: float = 1.0
    schedule: Schedule = Schedule()
    target: Literal["answer", "question", "context"] = "answer"


def terms(config: Config, context: Context, receiver: str) -> dict[str, Term]:
    """Squared error of the velocity per slot, and nats of the length where it is predicted.

    Watched: `flow/shuffled`, the loss under other contexts' conditions (same noise, same t);
    `flow/zero`, that of a velocity of zero; `flow/cut`, the share of targets longer than the slots.
    """
    part = _PARTS[config.target]
    ids = context.batch[f"{receiver}/{part}/ids"]
    lengths = context.batch[f"{receiver}/{part}/lengths"]
    valid = context.valid_contexts if part == "context" else context.valid
    mask = (jnp.arange(ids.shape[1])[None] < lengths[:, None]) & valid[:, None]
    x = embed_tokens(context.frozen.receivers[receiver].params, ids)
    target = Features(x, mask, ids)
    contexts = context.taps.mask.shape[0]
    each = ids.shape[0] // contexts

    def loss_under(views: Mapping[str, Taps]) -> Any:
        rows = _contexts(views, partial(jnp.repeat, repeats=each))
        return context.apply(rows, target, method="compressor_loss", key=KEY)[0]

    loss = loss_under(context.views)
    counted = loss.mask & valid[:, None]
    watched = {
        "zero": masked(loss.still, counted),
        "cut": masked(loss.cut.astype(jnp.float32), valid),
    }
    if contexts > 1:
        other = _contexts(context.views, partial(jnp.roll, shift=1))
        shuffled = jax.lax.stop_gradient(loss_under(other))
        watched["shuffled"] = masked(shuffled.error, counted)
    context.watched |= {f"{receiver}/flow/{name}": term for name, term in watched.items()}
    found = {"flow": masked(loss.error, counted)}
    if loss.length_nll is not None:
        found["flow_length"] = masked(loss.length_nll, valid)
    return found


def _contexts(views: Mapping[str, Taps], change: Callable[..., Array]) -> dict[str, Taps]:
    """Views whose contexts are changed along their axis."""
    return {
        name: Taps(change(x.states, axis=1), change(x.mask, axis=0), change(x.ids, axis=0))
        for name, x in views.items()
    }
