"""Hidden states of the frozen sender at one, several or all layers.

Last layers hold the least content, middle layers more, a gated mix the most (PEERS: 49.4 last, 63.9
middle, 66.6 gated). Each tap is RMS-normed, so that no layer drowns the others, or normed by
measured statistics.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from lw_jax.errors import UserError
from lw_jax.models.arch import Arch
from lw_jax.models.decoder import embed_tokens, run
from lw_jax.party import Party
from lw_jax.sources.normaliser import Normaliser, StatisticalNormaliser
from lw_jax.types import Array, Features, Taps


@dataclass(frozen=True)
class Config:
    """Hidden states of the sender.

    Args:
        layers: taps, as the number of layers run before them (0: the embeddings); empty for all.
        mix: `concat` puts the taps side by side; `gated` adds them by learned softmax gates.
        normaliser: by statistics that a `calibrate` stage measures; null: each token by its RMS.
    """

    layers: tuple[int, ...] = ()
    mix: Literal["concat", "gated"] = "concat"
    normaliser: Normaliser | None = None

    def taps(self, sender: Arch) -> tuple[int, ...]:
        """The layers tapped, ascending.

        Raises:
            UserError: a layer lies beyond the sender's.
        """
        layers = self.layers or tuple(range(sender.layers + 1))
        for layer in layers:
            if not 0 <= layer <= sender.layers:
                raise UserError(
                    f"bridge.source.hidden_states.layers: {layer} is beyond the sender's "
                    f"{sender.layers} layers; use 0 to {sender.layers}"
                )
        return tuple(sorted(set(layers)))


class HiddenStates(nn.Module):
    """Taps [n, B, T, D] to features [B, T, n*D] (`concat`) or [B, T, D] (`gated`)."""

    config: Config

    @nn.compact
    def __call__(self, source: Taps) -> Features:
        taps = source.states.astype(jnp.float32)
        if self.config.normaliser is not None:
            normed = StatisticalNormaliser(self.config.normaliser, name="normaliser")(taps)
        else:
            rms = jnp.sqrt(jnp.mean(jnp.square(taps), axis=-1, keepdims=True) + 1e-6)
            normed = taps / rms
        if self.config.mix == "gated":
            gates = nn.softmax(self.param("gates", nn.initializers.zeros, (taps.shape[0],)))
            x = jnp.einsum("n,nbtd->btd", gates * taps.shape[0] ** 0.5, normed)
        else:
            x = jnp.moveaxis(normed, 0, 2).reshape(*normed.shape[1:3], -1)
        return Features(x, source.mask, source.ids)


def build(config: Config) -> HiddenStates:
    """The trainable part of the source."""
    return HiddenStates(config)


def extract(config: Config, sender: Party | None, batch: Mapping[str, Array]) -> Taps:
    """Run the frozen sender up to its highest tap; no gradient flows back.

    Returns:
        taps [n, B, T, D], mask [B, T] (False for BOS and primer, which are no content), ids.
    """
    assert sender is not None
    ids, lengths = batch["source/ids"], batch["source/lengths"]
    layers = config.taps(sender.arch)
    index = jnp.arange(ids.shape[1])[None, :]
    out = run(
        sender.arch,
        sender.params,
        embed_tokens(sender.params, ids),
        positions=jnp.broadcast_to(index, ids.shape),
        lengths=lengths,
        stop=max(layers),
        taps=layers,
        impl=sender.attention,
    )
    mask = (index >= batch["source/skip"][:, None]) & (index < lengths[:, None])
    assert out.taps is not None
    return Taps(jax.lax.stop_gradient(out.taps), mask, ids)


def dims(config: Config, sender: Arch | None) -> tuple[int, int, int]:
    """Width of a tap, how many taps, and entries of the sender's vocabulary."""
    if sender is None:
        raise UserError("sender: missing; bridge.source.hidden_states reads one")
    return sender.width, len(config.taps(sender)), sender.vocab_size


def depth(config: Config, sender: Arch) -> int:
    """Layers of the sender that have to be loaded: up to the highest tap."""
    return max(1, *config.taps(sender))
