"""The trainable bridge, composed of its parts: the only door between flax.linen and the rest."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from lw_jax.config.parts import BridgeConfig
from lw_jax.dims import Dims
from lw_jax.errors import UserError
from lw_jax.models.arch import Arch
from lw_jax.notes import Notes
from lw_jax.party import Party
from lw_jax.registry import chosen
from lw_jax.types import Array, Delivery, Features, Latent, PyTree, Taps


def part(stage: str, options: Any) -> tuple[Any, Any]:
    """The module and the config of the one variant chosen in a stage's folder."""
    ((name, config),) = chosen(options).items()
    return importlib.import_module(f"lw_jax.{stage}.{name}"), config


class Bridge(nn.Module):
    """source (trainable part) -> compressor -> bottleneck -> readers."""

    config: BridgeConfig
    dims: Dims

    def setup(self) -> None:
        c = self.config
        source, options = part("sources", c.source)
        self.source = source.build(options)
        compressor, options = part("compressors", c.compressor)
        self.compressor = compressor.build(options, self.dims)
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
        latent = self.compressor({"source": self.source(taps)}, train)
        if chosen(self.config.bottleneck):
            latent = self.bottleneck(latent, train)
        return cast(Latent, latent)

    def compressor_loss(self, taps: Taps, target: Features, train: bool = True) -> Any:
        """The loss of a compressor that learns to generate `target` (flow): no latent is made."""
        return self.compressor.loss({"source": self.source(taps)}, target, train)

    def deliver(self, receiver: str, latent: Latent, train: bool = False) -> Delivery:
        """What one receiver is given, all its readers together."""
        given = [reader(latent, train) for reader in self.readers[receiver].values()]
        return merge(given)

    def __call__(self, taps: Taps) -> dict[str, Delivery]:
        latent = self.encode(taps)
        return {name: self.deliver(name, latent) for name in self.dims.receivers}


def merge(parts: list[Delivery]) -> Delivery:
    """Several readers' deliveries as one. Each field comes from the one reader that fills it."""
    merged: dict[str, Any] = {}
    for delivery in parts:
        for name in ("embeds", "mask", "positions", "kv", "advance", "edits"):
            value = getattr(delivery, name)
            if value is not None and (name == "advance" or name not in merged):
                old = merged.get(name)
                merged[name] = value if old is None else jnp.maximum(old, value)
    return Delivery(**merged)


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


def init_bridge(config: BridgeConfig, dims: Dims, rng: Array, source_tokens: int = 8) -> PyTree:
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
            f"evaluate.ratio: bridge.compressor.{name} was not trained for several ratios; "
            "give it `ratios` (perceiver), or leave evaluate.ratio out"
        )
    other = replace(config.compressor, **{name: compressor.at_ratio(options, ratio)})
    return replace(config, compressor=other)


def extract(config: BridgeConfig, sender: Party | None, batch: Mapping[str, Array]) -> Taps:
    """The frozen part of the source."""
    source, options = part("sources", config.source)
    return source.extract(options, sender, batch)


def source_dims(config: BridgeConfig, sender: Arch | None) -> tuple[int, int, int]:
    """Width of a source tap, how many there are, and entries of the source's vocabulary."""
    source, options = part("sources", config.source)
    return source.dims(options, sender)


def apply(
    config: BridgeConfig,
    dims: Dims,
    params: PyTree,
    *arguments: Any,
    method: str,
    train: bool = False,
    rng: Array | None = None,
) -> tuple[Any, Notes]:
    """A method of the bridge, and what its parts noted.

    rng: of dropout and of generated noise; without one the noise is the same at every call.
    """
    key = jax.random.key(0) if rng is None else rng
    rngs = {"noise": jax.random.fold_in(key, 1)} | ({} if rng is None else {"dropout": rng})
    module = Bridge(config, dims)
    value, noted = module.apply(
        {"params": params}, *arguments, train, method=method, rngs=rngs, mutable=["notes"]
    )
    return value, noted.get("notes", {})


def encode(
    config: BridgeConfig,
    dims: Dims,
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
    dims: Dims,
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


def after_step(config: BridgeConfig, params: PyTree, notes: Notes, rng: Array) -> PyTree:
    """Parameters that a part moves by itself after an optimiser step (a codebook's dead codes).

    A bottleneck may define `after_step(options, params, notes, rng) -> params` over its own.
    """
    if not chosen(config.bottleneck):
        return params
    bottleneck, options = part("bottlenecks", config.bottleneck)
    if not hasattr(bottleneck, "after_step"):
        return params
    own = bottleneck.after_step(options, params["bottleneck"], notes["bottleneck"], rng)
    return {**params, "bottleneck": own}
