"""Which kind of frozen model a source reads."""

from __future__ import annotations

from lw_jax.errors import UserError
from lw_jax.models.arch import Arch
from lw_jax.models.encoder_arch import AnyArch, EncoderArch


def decoder(sender: AnyArch | None, source: str) -> Arch:
    """The sender, for a source that reads a language model.

    Raises:
        UserError: there is none, or it is an encoder.
    """
    if sender is None:
        raise UserError(f"sender: missing; bridge.source.{source} reads one")
    if isinstance(sender, EncoderArch):
        raise UserError(
            f"sender: a {sender.family} encoder, and bridge.source.{source} reads a language "
            "model; use bridge.source.sentence_encoder, or another sender"
        )
    return sender


def encoder(sender: AnyArch | None, source: str) -> EncoderArch:
    """The sender, for a source that reads a sentence encoder.

    Raises:
        UserError: there is none, or it is a decoder.
    """
    if sender is None:
        raise UserError(f"sender: missing; bridge.source.{source} reads a sentence encoder")
    if not isinstance(sender, EncoderArch):
        raise UserError(
            f"sender: a {sender.family} decoder, and bridge.source.{source} reads a sentence "
            "encoder; use bridge.source.hidden_states, or another sender"
        )
    return sender
