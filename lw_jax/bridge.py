"""The trainable bridge, composed of its parts: the only door between flax.linen and the rest."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from lw_jax.config.parts import BridgeConfig
from lw_jax.dims import Dims
from lw_jax.errors import UserError
from lw_jax.models.arch import Arch
from lw_jax.party import Party
from lw_jax.registry import chosen
from lw_jax.types import Array, Delivery, Latent, PyTree, Taps


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
            bottleneck, options = part("bottlenecks", self.config.bottleneck)
            latent = bottleneck.apply(options, latent)
        return latent

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
    return Bridge(config, dims).init({"params": rng}, taps)["params"]


def extract(config: BridgeConfig, sender: Party | None, batch: Mapping[str, Array]) -> Taps:
    """The frozen part of the source."""
    source, options = part("sources", config.source)
    return source.extract(options, sender, batch)


def source_dims(config: BridgeConfig, sender: Arch | None) -> tuple[int, int]:
    """Width of a source tap, and how many."""
    source, options = part("sources", config.source)
    return source.dims(options, sender)


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
    rngs = {} if rng is None else {"dropout": rng}
    module = Bridge(config, dims)
    latent = module.apply({"params": params}, taps, train, method="encode", rngs=rngs)
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
    rngs = {} if rng is None else {"dropout": rng}
    module = Bridge(config, dims)
    given = module.apply({"params": params}, receiver, latent, train, method="deliver", rngs=rngs)
    return cast(Delivery, given)


def component_counts(params: PyTree) -> dict[str, int]:
    """Trainable parameters per component (top-level name)."""
    return {
        name: int(sum(leaf.size for leaf in jax.tree.leaves(tree))) for name, tree in params.items()
    }
