"""The inverter: from what is seen of a message to the tokens of its text, all at once.

Queries, one for each token of the text, attend to what is seen, and to each other. It is no
language model: what it writes is what the message says, and what texts of this kind have in common.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from lw_jax.errors import UserError
from lw_jax.layers.transformer import Stack, sinusoid
from lw_jax.train.loop import largest
from lw_jax.train.optimiser import make_optimiser
from lw_jax.train.optimiser_config import OptimiserConfig
from lw_jax.types import Array, PyTree
from lw_jax.utils.schedule import Schedule

WARM = 0.05
"""Share of the steps in which the rate rises."""

LOOKS = 10
"""How often in its training an inverter is tried on pairs that it does not learn from."""


@struct.dataclass
class Seen:
    """What an inverter sees of N messages.

    Attributes:
        x: [N, C, F] floats.
        mask: [N, C] bool, which columns are real.
        at: [N, C] float32, where in the text each column stands, in its tokens.
    """

    x: Any
    mask: Any
    at: Any

    def of(self, rows: Any) -> Seen:
        """Some rows."""
        return jax.tree.map(lambda one: one[rows], self)


class Inverter(nn.Module):
    """Logits [N, T, V + 1] of a text's tokens; the last class is "the text has ended".

    Attributes:
        length: T, tokens of the longest text.
        vocab: V.
        width: of the stream.
        depth: layers.
        heads: attention heads of a layer.
    """

    length: int
    vocab: int
    width: int
    depth: int
    heads: int

    @nn.compact
    def __call__(self, seen: Seen) -> Array:
        rows = seen.x.shape[0]
        dense = partial(nn.Dense, use_bias=False)
        y = nn.RMSNorm(name="seen_norm")(
            dense(self.width, name="seen_in")(seen.x.astype(jnp.float32))
        )
        y = Stack(1, self.heads, name="columns")(y, seen.mask, at=seen.at)
        at = jnp.broadcast_to(jnp.arange(self.length, dtype=jnp.float32), (rows, self.length))
        x = dense(self.width, name="queries_in")(sinusoid(at, self.width))
        every = jnp.ones(at.shape, bool)
        x = Stack(self.depth, self.heads, cross=True, name="tokens")(
            x, every, y, seen.mask, at=at, y_at=seen.at
        )
        return dense(self.vocab + 1, name="head_out")(nn.RMSNorm(name="head_norm")(x))


@dataclass(frozen=True)
class Trained:
    """A trained inverter.

    Attributes:
        module: the inverter.
        params: its parameters.
        loss: nats a token, a running mean over the last steps.
        curve: share of tokens at their place in pairs that it did not learn from, by the steps done
            before; empty without such pairs.
    """

    module: Inverter
    params: PyTree
    loss: float
    curve: Mapping[int, float] = field(default_factory=dict)

    @property
    def late(self) -> float | None:
        """How much the share of tokens rose over the last third of the steps; None without pairs
        that it did not learn from. Much of it says that more steps would teach more."""
        if not self.curve:
            return None
        steps = [*self.curve]
        before = max(s for s in steps if s <= steps[-1] * 2 / 3)
        return self.curve[steps[-1]] - self.curve[before]

    def write(self, seen: Seen, batch_size: int) -> np.ndarray:
        """The most probable tokens [N, T] int32; V from where a text has ended."""
        rows = seen.x.shape[0]
        found = []
        for begin in range(0, rows, batch_size):
            at = np.minimum(np.arange(begin, begin + batch_size), rows - 1)
            found.append(np.asarray(_best(self.module, self.params, seen.of(at))))
        return np.concatenate(found)[:rows]


def train(
    module: Inverter,
    seen: Seen,
    tokens: np.ndarray,
    *,
    steps: int,
    batch_size: int,
    lr: float,
    seed: int,
    step: Callable[..., None],
    apart: int = 0,
) -> Trained:
    """An inverter that has learned from pairs of messages and texts.

    Args:
        module: the inverter.
        seen: of N messages.
        tokens: [N, T] int32 of their texts; V where a text has ended.
        steps: of training.
        batch_size: rows of each.
        lr: the rate at its highest.
        seed: of the parameters and of the order of rows.
        step: called after each step.
        apart: the last pairs, that many, are not learned from; they say how far it has come.

    Raises:
        UserError: it blew up: what it wrote then would look as if nothing could be recovered.
    """
    rng, rows = np.random.default_rng(seed), len(tokens) - apart
    batch_size = min(batch_size, rows)
    warm = max(1, round(WARM * steps))
    schedule = Schedule(shape="cosine", ramp=warm, final=0.05)
    cfg = OptimiserConfig(name="muon", lr=lr, adam_lr=lr / 10, schedule=schedule)
    params, state = _begin(module, cfg, jax.random.key(seed), seen.of(np.arange(1)))
    update, mean = partial(_step, module, cfg, steps), float("nan")
    order = np.concatenate([rng.permutation(rows) for _ in range(-(-steps * batch_size // rows))])
    held, gold, curve = seen.of(np.arange(rows, rows + apart)), tokens[rows:], {0: 0.0}
    for i in range(steps):
        at = order[i * batch_size : (i + 1) * batch_size]
        params, state, loss = update(params, state, seen.of(at), tokens[at])
        if i % 20 == 0 or i == steps - 1:
            last = float(loss)
            if not np.isfinite(last):
                raise _blown_up(f"its loss is {last} at step {i + 1} of {steps}", lr)
            mean = last if np.isnan(mean) else 0.7 * mean + 0.3 * last
        step(1, f"loss {mean:.3f}")
        if apart and ((i + 1) * LOOKS // steps > i * LOOKS // steps):
            wrote = Trained(module, params, mean).write(held, batch_size)
            real = gold < module.vocab
            curve[i + 1] = float((wrote == gold)[real].mean())
    if not np.isfinite(largest(params)):
        raise _blown_up("its parameters are not finite after the last step", lr)
    return Trained(module, params, mean, curve if apart else {})


def _blown_up(what: str, lr: float) -> UserError:
    return UserError(f"lr: the inverter blew up ({what}); lower it (here {lr:g})")


# The optimiser is made inside: inverters that are alike share the programs that it is in.


@partial(jax.jit, static_argnums=(0, 1))
def _begin(module: Inverter, cfg: OptimiserConfig, rng: Array, seen: Seen) -> tuple[PyTree, Any]:
    """Parameters, and the optimiser's state, which is the same for any number of steps."""
    params: PyTree = {"params": module.init(rng, seen)["params"]}
    return params, make_optimiser(cfg, params, 1).init(params)


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=(3, 4))
def _step(
    module: Inverter,
    cfg: OptimiserConfig,
    steps: int,
    params: PyTree,
    state: Any,
    seen: Seen,
    tokens: Array,
) -> tuple[PyTree, Any, Array]:
    """Parameters and state after a step, and the loss before it."""

    def loss_of(params: PyTree) -> Array:
        logits = _logits(module, params, seen)
        # Of what comes after the end only its first token teaches anything.
        ended = (tokens == module.vocab).astype(jnp.float32)
        weight = jnp.where(jnp.cumsum(ended, axis=1) <= 1, 1.0, 0.0)
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, tokens)
        return jnp.sum(nll * weight) / jnp.sum(weight)

    optimiser = make_optimiser(cfg, params, steps)
    loss, grads = jax.value_and_grad(loss_of)(params)
    updates, state = optimiser.update(grads, state, params)
    return optax.apply_updates(params, updates), state, loss


@partial(jax.jit, static_argnums=0)
def _best(module: Inverter, params: PyTree, seen: Seen) -> Array:
    return jnp.argmax(_logits(module, params, seen), axis=-1).astype(jnp.int32)


def _logits(module: Inverter, params: PyTree, seen: Seen) -> Array:
    return cast(Array, module.apply(params, seen))
