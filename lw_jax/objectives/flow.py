"""Rectified flow towards the receiver's own embeddings of a text (docs/design.md section 4).

The same loss with every row's condition replaced by another row's is logged with it: a flow that
does not see its condition has both alike. Only a compressor with a `loss` can have it (dit).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp

from lw_jax.models.decoder import embed_tokens
from lw_jax.objectives.base import Objective, Terms, masked
from lw_jax.objectives.common.context import Context
from lw_jax.types import Array, Features, Taps

_PARTS = {"answer": "answer", "question": "ask", "context": "context"}
KEY = 64
"""Of its noise and its times, the same under every condition."""


@dataclass(frozen=True)
class Config(Objective):
    """Flow to the receiver's embeddings.

    Args:
        target: the text whose embeddings are generated: the `answer` with its EOS, the `question`
            with the anchor, or the `context`.
    """

    target: Literal["answer", "question", "context"] = "answer"

    def terms(self, ctx: Context, receiver: str) -> Terms:
        """Squared error of the velocity per slot, and nats of the length where it is predicted.

        Shuffled is the loss under other contexts' conditions, with the same noise and the same
        times. Watched: `flow/zero`, the loss of a velocity of zero; `flow/cut`, the share of
        targets longer than the slots.
        """
        part = _PARTS[self.target]
        ids = ctx.batch[f"{receiver}/{part}/ids"]
        lengths = ctx.batch[f"{receiver}/{part}/lengths"]
        valid = ctx.valid_contexts if part == "context" else ctx.valid
        mask = (jnp.arange(ids.shape[1])[None] < lengths[:, None]) & valid[:, None]
        x = embed_tokens(ctx.frozen.receivers[receiver].params, ids)
        target = Features(x, mask, ids)
        contexts = ctx.taps.mask.shape[0]
        each = ids.shape[0] // contexts

        def loss_under(views: Mapping[str, Taps]) -> Any:
            rows = _contexts(views, partial(jnp.repeat, repeats=each))
            return ctx.apply(rows, target, method="compressor_loss", key=KEY)[0]

        loss = loss_under(ctx.views)
        counted = loss.mask & valid[:, None]
        shuffled = None
        if contexts > 1:
            other = loss_under(_contexts(ctx.views, partial(jnp.roll, shift=1)))
            shuffled = masked(jax.lax.stop_gradient(other).error, counted)
        found = {"": masked(loss.error, counted)}
        if loss.length_nll is not None:
            found["length"] = masked(loss.length_nll, valid)
        watched = {
            "flow/zero": masked(loss.still, counted),
            "flow/cut": masked(loss.cut.astype(jnp.float32), valid),
        }
        return Terms(found, watched, shuffled=shuffled)


def _contexts(views: Mapping[str, Taps], change: Callable[..., Array]) -> dict[str, Taps]:
    """Views whose contexts are changed along their axis."""
    return {
        name: Taps(change(taps.states, axis=1), change(taps.mask, axis=0), change(taps.ids, axis=0))
        for name, taps in views.items()
    }
