"""Frozen models as jitted functions see them: arrays are arguments, everything else is static."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeAlias, TypeGuard

from flax import struct

from lw_jax.errors import UserError
from lw_jax.models.apart import is_apart
from lw_jax.models.arch import Arch
from lw_jax.models.decoder import NONE_NEEDS_APART, Remat
from lw_jax.models.encoder_arch import EncoderArch
from lw_jax.text.layout import Prompt
from lw_jax.types import Delivery


@struct.dataclass
class FrozenDecoder:
    """A frozen language model; it knows nothing of layouts.

    Attributes:
        params: its weights on the mesh, perhaps of its first layers only, perhaps without the
            output head; never donated, never differentiated.
        arch: its architecture, with all of its layers; static.
        attention: implementation, see `attention.check`; static.
        remat: what a backward pass through it computes again, see `decoder.run`; static.
        fused: whether new tokens go through `kernels` where these fit; static.
    """

    params: Any
    arch: Arch = struct.field(pytree_node=False)
    attention: str = struct.field(pytree_node=False, default="xla")
    remat: Remat = struct.field(pytree_node=False, default="full")
    fused: bool = struct.field(pytree_node=False, default=False)


@struct.dataclass
class FrozenEncoder:
    """A frozen sentence encoder.

    Its weights lie on the mesh like a decoder's: heads, MLP columns and vocabulary are split over
    `model` where that divides them, and replicated where it does not.

    Attributes:
        params: its weights on the mesh, perhaps of its first layers only.
        arch: its architecture, with all of its layers; static.
        attention: implementation, see `attention.check`; static.
    """

    params: Any
    arch: EncoderArch = struct.field(pytree_node=False)
    attention: str = struct.field(pytree_node=False, default="xla")


Frozen: TypeAlias = FrozenDecoder | FrozenEncoder
Sender: TypeAlias = Frozen


@struct.dataclass
class Elsewhere:
    """A sender on devices of its own, as the programs of other devices know it: a batch has its
    taps (`lw_jax.bridge.apart`).

    Attributes:
        arch: its architecture, with all of its layers; static.
        attention: implementation, see `attention.check`; static.
    """

    arch: Arch | EncoderArch = struct.field(pytree_node=False)
    attention: str = struct.field(pytree_node=False, default="xla")


@struct.dataclass
class Teacher:
    """A tuned receiver that reads the text itself, which a bridge is distilled from.

    Attributes:
        delivery: what it is given besides the text, of one row.
        prompt: what its layout puts around the message; static.
        digest: tells it from all other teachers of the same receiver; static.
    """

    delivery: Delivery
    prompt: Prompt = struct.field(pytree_node=False)
    digest: str = struct.field(pytree_node=False)


@struct.dataclass
class FrozenModels:
    """The frozen side of a stage: the models, and what the stage's layout puts around the message.

    Two layouts share the models; only `prompts` differ.

    Attributes:
        sender: the model that the sources read; None: they need none.
        receivers: the receivers by name.
        prompts: what the layout puts around the message, by receiver; static.
        teachers: tuned receivers, by receiver; without one, a receiver's teacher is itself.
    """

    sender: Sender | Elsewhere | None
    receivers: dict[str, FrozenDecoder]
    prompts: tuple[tuple[str, Prompt], ...] = struct.field(pytree_node=False, default=())
    teachers: dict[str, Teacher] = struct.field(default_factory=dict)

    @classmethod
    def of(
        cls,
        sender: Sender | Elsewhere | None,
        receivers: Mapping[str, FrozenDecoder],
        prompts: Mapping[str, Prompt],
    ) -> FrozenModels:
        """The models with prompts by receiver."""
        return cls(sender, dict(receivers), tuple(prompts.items()))

    @property
    def apart(self) -> bool:
        """Whether the layers of all decoders are apart."""
        decoders = [m for m in (self.sender, *self.receivers.values()) if _decodes(m)]
        return all(is_apart(model.params) for model in decoders)

    def rematerialised(self, remat: Remat) -> FrozenModels:
        """The same models; a backward pass computes again what `remat` says.

        Raises:
            UserError: `none`, and the layers of a decoder are stacked.
        """
        if remat == "none" and not self.apart:
            raise UserError(NONE_NEEDS_APART)

        def of(model: Any) -> Any:
            return replace(model, remat=remat) if _decodes(model) else model

        receivers = {name: of(model) for name, model in self.receivers.items()}
        return replace(self, sender=of(self.sender), receivers=receivers)

    def prompt(self, receiver: str) -> Prompt:
        """What the layout puts around the message of a receiver."""
        return dict(self.prompts)[receiver]


def _decodes(model: Any) -> TypeGuard[FrozenDecoder]:
    return isinstance(model, FrozenDecoder)
