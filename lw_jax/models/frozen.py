"""A frozen model as the jitted step sees it: arrays are arguments, everything else is static."""

from __future__ import annotations

from typing import Any, TypeAlias

from flax import struct

from lw_jax.models.arch import Arch
from lw_jax.models.encoder_arch import EncoderArch


@struct.dataclass
class FrozenDecoder:
    """A frozen decoder taking part in a step.

    params: its weights (never donated, never differentiated); arch, attention: static; head: ids of
    [BOS] and primer, static; with_text: it reads the text as well, right after what is delivered.
    """

    params: Any
    arch: Arch = struct.field(pytree_node=False)
    head: tuple[int, ...] = struct.field(pytree_node=False, default=())
    attention: str = struct.field(pytree_node=False, default="xla")
    with_text: bool = struct.field(pytree_node=False, default=False)


@struct.dataclass
class FrozenEncoder:
    """A frozen sentence encoder as the jitted step sees it; fields as in `FrozenDecoder`.

    Its weights lie on the mesh as a decoder's: heads, MLP columns and vocabulary over `model` where
    that divides them, copied to every device where it does not.
    """

    params: Any
    arch: EncoderArch = struct.field(pytree_node=False)
    attention: str = struct.field(pytree_node=False, default="xla")


Sender: TypeAlias = FrozenDecoder | FrozenEncoder


@struct.dataclass
class FrozenModels:
    """The frozen side of a run: a sender (None for sources that need none) and the receivers."""

    sender: Sender | None
    receivers: dict[str, FrozenDecoder]
