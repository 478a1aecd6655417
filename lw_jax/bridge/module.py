"""The trainable bridge, composed of its parts: the only door between flax.linen and the rest."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lw_jax.bridge.config import BridgeConfig
from lw_jax.errors import UserError
from lw_jax.layers.intermediates import Intermediates
from lw_jax.layers.transformer import Stack
from lw_jax.models.dims import BridgeDims, ModelDims, sizes
from lw_jax.models.encoder_arch import AnyArch
from lw_jax.models.frozen import Sender
from lw_jax.text.tokenizer import Tokenizer
from lw_jax.types import SHARED, Array, Delivery, Edits, Features, Latent, PyTree, Taps
from lw_jax.utils.registry import chosen
from lw_jax.wire.codecs import CODES
from lw_jax.wire.packet import nbytes


def part(stage: str, options: Any) -> tuple[Any, Any]:
    """The module and the config of the one variant chosen in a stage's folder."""
    ((name, config),) = chosen(options).items()
    return importlib.import_module(f"lw_jax.{stage}.{name}"), config


class Bridge(nn.Module):
    """source (trainable part) -> compressor -> refiner, if any -> bottleneck -> readers."""

    config: BridgeConfig
    dims: BridgeDims

    def setup(self) -> None:
        c = self.config
        source, options = part("sources", c.source)
        self.source = source.build(options, self.dims)
        compressor, options = part("compressors", c.compressor)
        self.compressor = compressor.build(options, self.dims)
        if c.refiner is not None:
            self.refiner = Stack(c.refiner.depth, c.refiner.heads)
        if chosen(c.bottleneck):
            bottleneck, options = part("bottlenecks", c.bottleneck)
            self.bottleneck = bottleneck.build(options, self.dims)
        self.readers = {
            name: {
                variant: importlib.import_module(f"lw_jax.readers.{variant}").build(options, dims)
                for variant, options in chosen(c.reader).items()
            }
            for name, dims in self.dims.receivers.items()
        }

    def encode(self, taps: Taps, train: bool = False) -> Latent:
        """The latent as it leaves the wire, after the bottleneck."""
        latent = self.compressed(taps, False, train)
        if chosen(self.config.bottleneck):
            latent = cast(Latent, self.bottleneck(latent, train))
        return latent

    def compressed(self, taps: Taps, pooled: bool, train: bool = False) -> Latent:
        """The latent before the bottleneck; pooled: as if every token were the mean of all."""
        features = self.source(taps)
        if pooled:
            weight = features.mask[..., None] / jnp.maximum(1, features.mask.sum(1))[:, None, None]
            mean = jnp.sum(features.x * weight, axis=1, keepdims=True)
            features = features.replace(x=jnp.broadcast_to(mean, features.x.shape))
        latent = cast(Latent, self.compressor({"source": features}, train))
        if self.config.refiner is not None:
            slots = self.refiner(latent.slots, latent.mask, train=train)
            latent = replace(latent, slots=jnp.where(latent.mask[..., None], slots, 0.0))
        if self.config.private:
            latent = replace(latent, owner=self._owners(latent.slots.shape[1]))
        return latent

    def _owners(self, slots: int) -> tuple[int, ...]:
        """Whose each slot is: the last ones each receiver's own, in order of the names."""
        each, receivers = self.config.private, range(len(self.dims.receivers))
        own = tuple(r for r in receivers for _ in range(each))
        return (SHARED,) * (slots - len(own)) + own

    def slots_of(self, latent: Latent, train: bool = False) -> Latent:
        """The latent whose codes [B, M, n] stand in its slots' place."""
        return cast(Latent, self.bottleneck.slots_of(latent))

    def compressor_loss(self, taps: Taps, target: Features, train: bool = True) -> Any:
        """The loss of a compressor that learns to generate `target` (flow): no latent is made.

        Raises:
            UserError: the compressor does not learn so.
        """
        if not hasattr(self.compressor, "loss"):
            (name,) = chosen(self.config.compressor)
            raise UserError(f"objectives.flow: bridge.compressor.{name} is no flow; use dit")
        return self.compressor.loss({"source": self.source(taps)}, target, train)

    def deliver(self, receiver: str, latent: Latent, train: bool = False) -> Delivery:
        """What one receiver is given, all its readers together."""
        own = readable(latent, sorted(self.dims.receivers).index(receiver))
        given = [reader(own, train) for reader in self.readers[receiver].values()]
        return merge(given)

    def __call__(self, taps: Taps) -> dict[str, Delivery]:
        latent = self.encode(taps)
        return {name: self.deliver(name, latent) for name in self.dims.receivers}


def readable(latent: Latent, receiver: int) -> Latent:
    """What one receiver may read of a latent: the shared slots and its own, others' left out.

    Left out, not masked: what is real of a message stands first, and takes columns.
    """
    columns = [i for i, owner in enumerate(latent.owner) if owner in (SHARED, receiver)]
    if len(columns) == len(latent.owner):
        return latent
    at = np.asarray(columns, np.int32)
    return Latent(latent.slots[:, at], latent.mask[:, at], latent.span)


def merge(parts: list[Delivery]) -> Delivery:
    """Several readers' deliveries as one: each field, and each kind of edit, is one reader's.

    The message advances by the longest `advance`.

    Raises:
        UserError: two readers fill the same field, or make the same kind of edit.
    """
    fields = {name: _of_one(name, parts) for name in ("embeds", "mask", "positions", "kv")}
    advances = [d.advance for d in parts if d.advance is not None]
    edits = [d.edits for d in parts if d.edits is not None]
    kinds = ("lora", "blocks", "k_delta", "v_delta")
    return Delivery(
        **fields,
        advance=functools.reduce(jnp.maximum, advances) if advances else None,
        edits=Edits(**{name: _of_one(name, edits) for name in kinds}) if edits else None,
    )


def _of_one(name: str, parts: Sequence[Any]) -> Any:
    """The field `name` of the one part that has it; None where none has."""
    found = [value for value in (getattr(one, name) for one in parts) if value is not None]
    if len(found) > 1:
        raise UserError(
            f"bridge.reader: {len(found)} readers deliver `{name}`, which only one can; drop one"
        )
    return found[0] if found else None


def check_readers(config: BridgeConfig) -> None:
    """Readers that cannot stand together (SPEC section 5).

    Raises:
        UserError: names the pair.
    """
    readers = chosen(config.reader)
    if "coprocessor" in readers and "deep_prefix" in readers:
        raise UserError("bridge.reader: coprocessor and deep_prefix exclude each other; set one")
    if "coprocessor" in readers and "soft_tokens" not in readers:
        raise UserError("bridge.reader: coprocessor adds to soft tokens; set soft_tokens as well")


def init_bridge(
    config: BridgeConfig, dims: BridgeDims, rng: Array, source_tokens: int = 8
) -> PyTree:
    """Fresh parameters, float32."""
    check_readers(config)
    taps = Taps(
        jnp.zeros((dims.taps, 1, source_tokens, dims.source_width), jnp.float32),
        jnp.ones((1, source_tokens), bool),
        jnp.zeros((1, source_tokens), jnp.int32),
    )
    return Bridge(config, dims).init({"params": rng, "noise": rng}, taps)["params"]


def at_ratio(config: BridgeConfig, ratio: float) -> BridgeConfig:
    """The same bridge, with another number of source tokens a slot.

    Raises:
        UserError: its compressor has one number of slots only.
    """
    compressor, options = part("compressors", config.compressor)
    (name,) = chosen(config.compressor)
    if not hasattr(compressor, "at_ratio") or not options.ratios:
        raise UserError(
            f"ratio: bridge.compressor.{name} was not trained for several ratios; "
            "give it `ratios` (perceiver), or leave ratio out"
        )
    other = replace(config.compressor, **{name: compressor.at_ratio(options, ratio)})
    return replace(config, compressor=other)


def extract(
    config: BridgeConfig,
    sender: Sender | None,
    batch: Mapping[str, Array],
    params: PyTree | None,
) -> Taps:
    """The frozen part of the source, with the source's edits of the sender, if it makes some.

    params: the bridge's; None: the sender as it was found.
    """
    source, options = part("sources", config.source)
    own = None if params is None else params.get("source", {})
    return source.extract(options, sender, batch, own)


def source_tokenizer(config: BridgeConfig, sender: Tokenizer | None) -> Tokenizer | None:
    """In whose tokens the source is read: the sender's, unless the source has its own."""
    source, options = part("sources", config.source)
    return source.text_tokenizer(options) if hasattr(source, "text_tokenizer") else sender


def sender_dims(config: BridgeConfig, sender: AnyArch | None) -> ModelDims | None:
    """Sizes of the layers of the sender that are run; None without a sender."""
    source, options = part("sources", config.source)
    return None if sender is None else sizes(sender, source.depth(options, sender))


def source_dims(config: BridgeConfig, sender: AnyArch | None) -> tuple[int, int, int]:
    """Width of a source tap, how many there are, and entries of the source's vocabulary."""
    source, options = part("sources", config.source)
    return source.dims(options, sender)


def apply(
    config: BridgeConfig,
    dims: BridgeDims,
    params: PyTree,
    *arguments: Any,
    method: str,
    train: bool = False,
    rng: Array | None = None,
) -> tuple[Any, Intermediates]:
    """A method of the bridge, and what its parts noted.

    rng: of dropout and of generated noise; without one the noise is the same at every call.
    """
    key = jax.random.key(0) if rng is None else rng
    rngs = {"noise": jax.random.fold_in(key, 1)} | ({} if rng is None else {"dropout": rng})
    module = Bridge(config, dims)
    value, sown = module.apply(
        {"params": params}, *arguments, train, method=method, rngs=rngs, mutable=["intermediates"]
    )
    return value, sown.get("intermediates", {})


def encode(
    config: BridgeConfig,
    dims: BridgeDims,
    params: PyTree,
    taps: Taps,
    *,
    train: bool = False,
    rng: Array | None = None,
) -> Latent:
    """Taps -> Latent."""
    latent, _ = apply(config, dims, params, taps, method="encode", train=train, rng=rng)
    return cast(Latent, latent)


def deliver(
    config: BridgeConfig,
    dims: BridgeDims,
    params: PyTree,
    receiver: str,
    latent: Latent,
    *,
    train: bool = False,
    rng: Array | None = None,
) -> Delivery:
    """Latent -> Delivery of one receiver. Nothing but the latent is seen."""
    given, _ = apply(config, dims, params, receiver, latent, method="deliver", train=train, rng=rng)
    return cast(Delivery, given)


def levels_of(config: BridgeConfig) -> tuple[int, ...]:
    """How many values each code of a slot has; () where the bottleneck has no codes."""
    if not chosen(config.bottleneck):
        return ()
    bottleneck, options = part("bottlenecks", config.bottleneck)
    return bottleneck.levels(options) if hasattr(bottleneck, "levels") else ()


def to_wire(config: BridgeConfig, dims: BridgeDims, params: PyTree, taps: Taps) -> Latent:
    """The latent of a bridge with codes as it is sent: codes [B, M, n] int32 in the slots' place,
    -1 where a slot is masked."""
    latent, intermediates = apply(config, dims, params, taps, method="encode")
    return replace(latent, slots=intermediates["bottleneck"]["codes"])


def from_wire(config: BridgeConfig, dims: BridgeDims, params: PyTree, sent: Latent) -> Latent:
    """The latent that codes of `to_wire` stand for, slot for slot."""
    latent, _ = apply(config, dims, params, sent, method="slots_of")
    return cast(Latent, latent)


def moves_itself(config: BridgeConfig) -> bool:
    """Whether the bottleneck moves parameters of its own after a step (a codebook's dead codes).

    It then defines `after_step(options, params, notes, rng) -> params`.
    """
    if not chosen(config.bottleneck):
        return False
    return hasattr(part("bottlenecks", config.bottleneck)[0], "after_step")


def after_step(
    config: BridgeConfig, params: PyTree, intermediates: Intermediates, rng: Array
) -> PyTree:
    """The bridge's parameters after its bottleneck has moved its own."""
    bottleneck, options = part("bottlenecks", config.bottleneck)
    own = bottleneck.after_step(options, params["bottleneck"], intermediates["bottleneck"], rng)
    return {**params, "bottleneck": own}


def codec_of(config: BridgeConfig) -> str:
    """The codec that holds a bridge's latent exactly: its bottleneck's, else float32."""
    if not chosen(config.bottleneck):
        return "float32"
    bottleneck, options = part("bottlenecks", config.bottleneck)
    return bottleneck.wire_dtype(options)


def bytes_of(config: BridgeConfig, m: int, codec_name: str | None = None) -> int:
    """Bytes of a message of M slots of this bridge, by default in the codec that is its own."""
    name, levels = codec_name or codec_of(config), levels_of(config)
    width = len(levels) if name == CODES else config.latent_dim
    return nbytes(m, width, name, levels=levels, owners=config.private > 0)
