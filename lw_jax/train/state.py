"""What a training step carries on: parameters, optimiser, averages, step and random key."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax
from flax import struct

from lw_jax.types import Array, PyTree

SOUND, UPDATE_SOUND = "sound", "update_sound"
"""Names of what `keep_finite` adds to a step's metrics."""


@struct.dataclass
class TrainState:
    """All that a checkpoint holds of a stage.

    Attributes:
        params: the parameters.
        opt_state: optax's state.
        step: int32 scalar, steps taken.
        rng: typed key of the stage. A step folds its number in, so the key never changes.
        ema: averaged parameters; None: the stage keeps none.
    """

    params: PyTree
    opt_state: PyTree
    step: Array
    rng: Array
    ema: PyTree | None = None

    def step_rng(self) -> Array:
        """The key of the step to come."""
        return jax.random.fold_in(self.rng, self.step)

    def evaluated(self) -> PyTree:
        """The parameters that are evaluated and shipped: averaged where there is an average."""
        return self.params if self.ema is None else self.ema


def new_state(
    params: PyTree, optimiser: optax.GradientTransformation, rng: Array, ema: float | None = None
) -> TrainState:
    """The state before the first step. rng: typed key (`jax.random.key`)."""
    copy = None if ema is None else jax.tree.map(jnp.copy, params)
    return TrainState(params, optimiser.init(params), jnp.zeros((), jnp.int32), rng, copy)


def decay_at(ema: float, step: Array) -> Array:
    """The decay of the step taken after `step` steps: at most (1 + step) / (10 + step).

    With 0.999 throughout, three quarters of what is evaluated after 250 steps would be the random
    parameters of the start. The warm-up is that of TensorFlow's `ExponentialMovingAverage`.
    """
    taken = step.astype(jnp.float32)
    return jnp.minimum(ema, (1.0 + taken) / (10.0 + taken))


def apply_gradients(
    state: TrainState,
    grads: PyTree,
    optimiser: optax.GradientTransformation,
    ema: float | None = None,
) -> TrainState:
    """One optimiser step.

    ema: decay of the average, `new = decay * old + (1 - decay) * params`; smaller over the first
    steps (`decay_at`).
    """
    updates, opt_state = optimiser.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    mean = state.ema
    if ema is not None:
        # In this form the average of a leaf that does not change is that very leaf.
        share = 1.0 - decay_at(ema, state.step)
        mean = jax.tree.map(lambda old, new: old + share * (new - old), mean, params)
    return state.replace(  # type: ignore[attr-defined]
        params=params, opt_state=opt_state, step=state.step + 1, ema=mean
    )


def keep_finite(
    old: TrainState, new: TrainState, metrics: Mapping[str, Array]
) -> tuple[TrainState, dict[str, Array]]:
    """The state after a step, or that before it if the step went wrong.

    A step goes wrong where the loss, the gradients' norm, or anything in the new state is no finite
    number, or where the parameters are so large that their norm is none. Then parameters, optimiser
    (with its own counts, which its schedule follows) and average stay as they are; `step` counts
    the batch, and the next one has a key of its own.

    Args:
        old: the state before the step.
        new: the state after it.
        metrics: of the step: `loss`, `grad_norm` and others.

    Returns:
        The state, and the metrics with `sound` and `update_sound`, bool scalars: whether the step
        counts, and whether the new state alone was finite.
    """

    def real(tree: PyTree) -> list[Array]:
        return [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]

    norms = [jnp.sum(jnp.square(x.astype(jnp.float32))) for x in real((new.params, new.ema))]
    each = [jnp.isfinite(x) for x in norms] + [jnp.isfinite(x).all() for x in real(new.opt_state)]
    update = jnp.stack(each).all()
    sound = update & jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])

    def kept(before: PyTree, after: PyTree) -> PyTree:
        return jax.tree.map(lambda a, b: jnp.where(sound, b, a), before, after)

    state = new.replace(  # type: ignore[attr-defined]
        params=kept(old.params, new.params),
        opt_state=kept(old.opt_state, new.opt_state),
        ema=kept(old.ema, new.ema),
    )
    return state, {**metrics, SOUND: sound, UPDATE_SOUND: update}
