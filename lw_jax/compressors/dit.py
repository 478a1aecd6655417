"""DiT bridge: the slots are generated from noise by rectified flow (docs/design.md section 4).

A diffusion transformer with adaLN-Zero blocks (Peebles & Xie 2023, arXiv:2212.09748) generates the
receiver's own embeddings of a target text, conditioned on the source. It learns by `loss`, for
which no latent is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from annotated_types import Ge, Le
from flax import struct

from lw_jax.compressors.base import Compressor, only
from lw_jax.compressors.dit_blocks import Condition, Conditioning, Velocity
from lw_jax.compressors.rectified_flow import SAMPLERS, Time, squared_error, times
from lw_jax.errors import UserError
from lw_jax.models.dims import BridgeDims
from lw_jax.types import SHARED, Array, Features, Latent, Views
from lw_jax.utils.bounds import Heads, Layers, MlpRatio, Slots, Width


@dataclass(frozen=True)
class Config(Compressor):
    """DiT with rectified flow.

    Args:
        slots: latent slots M; longer targets are cut.
        width: width of the transformer.
        heads: attention heads of the transformer.
        depth: layers of the transformer.
        mlp_ratio: hidden width of the MLPs over the width.
        conditioning: `mean` adds the mean-pooled source to the timestep embedding; `cross` attends
            to all source tokens; `attention_pool` does so, and adds what a learned query reads.
        sampler: `euler` (one velocity a step) or `heun` (two).
        steps: steps of the sampler.
        time: how training draws t.
        length: `predicted` by a head, or `full`: all M slots, zero past the end of a target.
        unit_targets: flow between noise and targets of RMS 1; false: targets as they are, so small
            under unit noise that the flow cannot see its condition.
    """

    slots: Slots
    width: Width = 512
    heads: Heads = 8
    depth: Layers = 4
    mlp_ratio: MlpRatio = 4
    conditioning: Conditioning = "cross"
    sampler: Literal["euler", "heun"] = "euler"
    steps: Annotated[int, Ge(1), Le(10_000)] = 10
    time: Time = "uniform"
    length: Literal["predicted", "full"] = "predicted"
    unit_targets: bool = True

    generates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise UserError(f"heads: {self.heads} does not divide width {self.width}")

    @property
    def fixed_slots(self) -> int:
        """Number of slots of every text."""
        return self.slots

    @property
    def sent_slots(self) -> tuple[int, int | None]:
        """The fewest and the most real slots of a text."""
        return (0 if self.length == "predicted" else self.slots), self.slots

    def build(self, dims: BridgeDims) -> Dit:
        """The compressor."""
        return Dit(self, dims)


@struct.dataclass
class FlowLoss:
    """The loss of a batch of targets, unreduced.

    Attributes:
        error: [B, M] mean squared error of the velocity.
        mask: [B, M] bool, where the error counts.
        still: [B, M] the same error for a velocity of zero.
        length_nll: [B] nats, of the predicted length; None: the length is not predicted.
        cut: [B] bool, targets longer than M.
    """

    error: Array
    mask: Array
    still: Array
    length_nll: Array | None
    cut: Array


class Dit(nn.Module):
    """Views -> Latent with up to M slots."""

    config: Config
    dims: BridgeDims

    def setup(self) -> None:
        c = self.config
        self.condition = Condition(c.width, c.heads, c.conditioning)
        self.velocity = Velocity(
            c.width, c.heads, c.depth, c.mlp_ratio, c.conditioning != "mean", self.dims.latent_dim
        )
        if c.length == "predicted":
            self.length = nn.Dense(c.slots + 1)

    @property
    def unit(self) -> float:
        """The scale that counts as 1 in the flow: by default the RMS of the receiver's embeddings.

        Raises:
            UserError: there are several receivers, each with embeddings of its own.
        """
        if len(self.dims.receivers) != 1:
            raise UserError(
                "bridge.compressor.dit: generates the embeddings of one receiver; "
                f"got {len(self.dims.receivers)} ({', '.join(self.dims.receivers)}); keep one"
            )
        (receiver,) = self.dims.receivers.values()
        return receiver.embed_rms if self.config.unit_targets else 1.0

    def __call__(self, views: Views, train: bool = False) -> Latent:
        """A latent sampled from noise.

        Except in training, every row starts from the same noise, so that the latent of a text does
        not depend on its place in a batch.
        """
        c = self.config
        view = only(views)
        given = self.condition(view)
        rows = view.mask.shape[0]
        mask = jnp.ones((rows, c.slots), bool)
        if c.length == "predicted":
            mask = _first(jnp.argmax(self.length(given.summary), axis=-1), c.slots)
        shape = (rows if train else 1, c.slots, self.dims.latent_dim)
        noise = jax.random.normal(self.make_rng("noise"), shape)
        noise = jnp.broadcast_to(noise, (rows, *shape[1:]))
        if self.is_initializing():
            self.velocity(noise, jnp.zeros(rows), mask, given)
        # Inside a loop a linen module must be a pure function of its parameters.
        net, variables = self.velocity.unbind()

        def velocity(x: Array, t: Array) -> Array:
            return cast(Array, net.apply(variables, x, t, mask, given))

        slots = SAMPLERS[c.sampler](velocity, noise, c.steps) * self.unit * mask[..., None]
        span = view.mask.sum(axis=1).astype(jnp.float32)
        return Latent(slots, mask, span, (SHARED,) * c.slots)

    def loss(self, views: Views, target: Features, train: bool = True) -> FlowLoss:
        """The flow towards targets of any length, with one noise and one t for each row.

        Args:
            views: features of the source.
            target: features [B, T, latent_dim] to generate.
            train: whether this is a training step.

        Raises:
            UserError: the target is not as wide as a slot.
        """
        c = self.config
        width = target.x.shape[-1]
        if width != self.dims.latent_dim:
            raise UserError(
                f"bridge.latent_dim: {self.dims.latent_dim}, but the flow goes to embeddings of "
                f"width {width}; set it to {width}"
            )
        given = self.condition(only(views))
        wanted = target.mask.sum(axis=1)
        lengths = jnp.minimum(wanted, c.slots)
        real = _first(lengths, c.slots)
        data = _resized(target.x.astype(jnp.float32), c.slots) / self.unit * real[..., None]
        mask = jnp.ones_like(real) if c.length == "full" else real
        for_noise, for_time = jax.random.split(self.make_rng("noise"))
        noise = jax.random.normal(for_noise, data.shape)
        t = times(for_time, data.shape[0], c.time)
        error = squared_error(lambda x, t: self.velocity(x, t, mask, given), data, noise, t)
        still = squared_error(lambda x, t: jnp.zeros_like(x), data, noise, t)
        nll = None
        if c.length == "predicted":
            chances = nn.log_softmax(self.length(given.summary))
            nll = -jnp.take_along_axis(chances, lengths[:, None], axis=1)[:, 0]
        return FlowLoss(error, mask, still, nll, wanted > c.slots)


def _first(lengths: Array, size: int) -> Array:
    """[B, size] bool: the first `lengths` [B] entries of every row."""
    return jnp.arange(size)[None] < lengths[:, None]


def _resized(x: Array, size: int) -> Array:
    """[B, T, D] -> [B, size, D], cut or padded with zeros at the end."""
    x = x[:, :size]
    return jnp.pad(x, ((0, 0), (0, size - x.shape[1]), (0, 0)))
