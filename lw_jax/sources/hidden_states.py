"""Hidden states of the frozen sender at one, several or all layers.

The last layers hold the least content, middle layers more, a gated mix the most (docs/design.md
section 12: 49.4 last, 63.9 middle, 66.6 gated). Each tap is RMS-normed, so that no layer dominates;
or it is normed by measured statistics, or projected on its principal directions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from lw_jax.errors import UserError
from lw_jax.layers.low_rank import LowRank, LowRankConfig
from lw_jax.models.arch import Arch
from lw_jax.models.decoder import LayerInputs, embed_tokens, run
from lw_jax.models.dims import BridgeDims, ModelDims, sizes
from lw_jax.models.encoder_arch import AnyArch
from lw_jax.models.frozen import FrozenDecoder, Sender
from lw_jax.sources.base import Source, SourceShape
from lw_jax.sources.normaliser import Normaliser, StatisticalNormaliser
from lw_jax.sources.pca import Pca, Projection, check_alone
from lw_jax.sources.sender import decoder
from lw_jax.types import Delivery, Edits, Features, PyTree, SourceTokens, Taps
from lw_jax.utils.bounds import FEW, Layers, LayersOrNone
from lw_jax.utils.checks import distinct


@dataclass(frozen=True)
class Config(Source):
    """Hidden states of the sender.

    Args:
        layers: taps, as the number of layers run before them (0: the embeddings); empty for all.
        of: number of layers that `layers` counts in; taps are moved to the same relative depth of
            the sender (16 of 32 is 2 of 4). null: the sender's own number of layers.
        mix: `concat` puts the taps side by side; `gated` adds them with learned softmax gates.
        normaliser: normalises by statistics of a `calibrate` stage; null: each token by its RMS.
        pca: replaces the channels of each tap by principal directions that a `calibrate` stage
            fits;
            null: none.
        lora: low-rank edits of the sender's first layers, trained with the bridge; null: gradients
            stop before the sender.
    """

    layers: Annotated[tuple[LayersOrNone, ...], FEW] = ()
    of: Layers | None = None
    mix: Literal["concat", "gated"] = "concat"
    normaliser: Normaliser | None = None
    pca: Pca | None = None
    lora: LowRankConfig | None = None

    def __post_init__(self) -> None:
        distinct(self, "layers")
        check_alone(self.pca, self.normaliser)
        if self.pca is not None and self.mix == "gated":
            raise UserError(
                "mix: gated adds taps channel by channel, and components of two taps have nothing "
                "in common; use concat with a pca"
            )
        if self.lora is not None and self.lora.dropout:
            raise UserError(f"lora.dropout: a sender's edits have none; got {self.lora.dropout}")

    def taps(self, sender: Arch) -> tuple[int, ...]:
        """The tapped layers, ascending.

        Raises:
            UserError: the sender does not have such a layer.
        """
        count = self.of or sender.layers
        layers = self.layers or tuple(range(count + 1))
        for layer in layers:
            if not 0 <= layer <= count:
                raise UserError(
                    f"bridge.source.hidden_states.layers: {layer} is beyond the sender's "
                    f"{count} layers; use 0 to {count}"
                )
        scaled = (math.floor(layer * sender.layers / count + 0.5) for layer in layers)
        return tuple(sorted(set(scaled)))

    def build(self, dims: BridgeDims) -> HiddenStates:
        """The trainable part of the source."""
        return HiddenStates(self, dims.sender)

    def extract(self, sender: Sender | None, tokens: SourceTokens, params: PyTree | None) -> Taps:
        """Runs the sender up to its highest tap; gradients reach only its LoRA, if it has one.

        Args:
            sender: the frozen sender.
            tokens: the texts.
            params: the source's parameters; None leaves out the LoRA.

        Returns:
            Taps [n, B, T, D], mask [B, T] (False for BOS and primer, which are not content), ids.
        """
        assert isinstance(sender, FrozenDecoder)
        layers = self.taps(sender.arch)
        edits = Edits()
        if self.lora is not None and params is not None:
            edits = edits_of(self.lora, sizes(sender.arch, max(layers)), params["lora"])
        index = jnp.arange(tokens.ids.shape[1])[None, :]
        out = run(
            sender.arch,
            sender.params,
            embed_tokens(sender.params, tokens.ids),
            positions=jnp.broadcast_to(index, tokens.ids.shape),
            lengths=tokens.lengths,
            stop=max(layers),
            taps=layers,
            delivery=LayerInputs(edits=edits),
            impl=sender.attention,
            remat=sender.remat,
        )
        assert out.taps is not None
        states = out.taps if edits.lora is not None else jax.lax.stop_gradient(out.taps)
        return Taps(states, tokens.content, tokens.ids)

    def shape(self, sender: AnyArch | None) -> SourceShape:
        """Width of a tap, number of taps, and the size of the sender's vocabulary.

        Raises:
            UserError: there is no sender or it is an encoder, a tap or a LoRA is beyond the layers
                that are run, or the PCA has more directions than there are channels.
        """
        read = decoder(sender, "hidden_states")
        deep, edited = max(self.taps(read)), self.lora and self.lora.layers
        if self.lora is not None and not 1 <= (edited or 1) <= deep:
            raise UserError(
                f"bridge.source.hidden_states.lora.layers: {edited or 'all'} of the {deep} layers "
                "run up to the highest tap; edit fewer, or tap a higher one"
            )
        if self.pca is not None:
            self.pca.check_width("hidden_states", read.width)
        return SourceShape(read.width, len(self.taps(read)), read.vocab_size)

    def sender_layers(self, sender: AnyArch) -> int:
        """Number of the sender's layers that have to be loaded: up to the highest tap."""
        return max(1, *self.taps(decoder(sender, "hidden_states")))


class HiddenStates(nn.Module):
    """Taps [n, B, T, D] to features [B, T, n*D] (`concat`) or [B, T, D] (`gated`).

    With a PCA the C components of a tap replace its D channels.
    """

    config: Config
    sender: ModelDims | None = None

    @nn.compact
    def __call__(self, source: Taps) -> Features:
        if self.config.lora is not None and self.is_initializing():
            assert self.sender is not None
            LowRank(self.config.lora, self.sender, name="lora")(None)  # `extract` reads them
        taps = source.states.astype(jnp.float32)
        if self.config.normaliser is not None:
            normed = StatisticalNormaliser(self.config.normaliser, name="normaliser")(taps)
        elif self.config.pca is not None:
            normed = Projection(self.config.pca, name="pca")(taps)
        else:
            rms = jnp.sqrt(jnp.mean(jnp.square(taps), axis=-1, keepdims=True) + 1e-6)
            normed = taps / rms
        if self.config.mix == "gated":
            gates = nn.softmax(self.param("gates", nn.initializers.zeros, (taps.shape[0],)))
            x = jnp.einsum("n,nbtd->btd", gates * taps.shape[0] ** 0.5, normed)
        else:
            x = rearrange(normed, "n b t d -> b t (n d)")
        return Features(x, source.mask, source.ids)


def edits_of(config: LowRankConfig, sender: ModelDims, params: PyTree) -> Edits:
    """The edits of the sender's layers."""
    given = LowRank(config, sender).apply({"params": params}, None)
    assert isinstance(given, Delivery) and given.edits is not None
    return given.edits
