"""The trainable parts of a bridge as one linen module; `lw_jax.bridge.bridge` calls it."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar, cast

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from lw_jax.bridge.config import SOURCE, BridgeConfig
from lw_jax.errors import UserError
from lw_jax.layers.transformer import Stack
from lw_jax.models.dims import BridgeDims
from lw_jax.types import SHARED, Delivery, Edits, Features, Latent, Taps
from lw_jax.utils.registry import chosen

T = TypeVar("T", Latent, Features, Delivery)


class BridgeModule(nn.Module):
    """source (trainable part) -> compressor -> refiner, if any -> bottleneck -> readers."""

    config: BridgeConfig
    dims: BridgeDims

    def setup(self) -> None:
        c = self.config
        if c.sources:
            self.sources = {n: o.build(self.dims.of_view(n)) for n, o in c.views.items()}
        else:
            self.source = c.views[SOURCE].build(self.dims)
        self.compressor = c.chosen_compressor.build(self.dims)
        if c.refiner is not None:
            self.refiner = Stack(c.refiner.depth, c.refiner.heads)
        if c.chosen_bottleneck is not None:
            self.bottleneck = c.chosen_bottleneck.build(self.dims)
        self.readers = {
            name: {variant: options.build(dims) for variant, options in chosen(c.reader).items()}
            for name, dims in self.dims.receivers.items()
        }

    def encode(self, taps: Mapping[str, Taps], train: bool = False) -> Latent:
        """The latent after the bottleneck."""
        latent = self.compressed(taps, False, train)
        if self.config.chosen_bottleneck is not None:
            latent = made(
                Latent,
                self.bottleneck(latent, train),
                "bottleneck",
                *chosen(self.config.bottleneck),
            )
        return latent

    def views(self, taps: Mapping[str, Taps]) -> dict[str, Features]:
        """The features of every view."""
        modules = self.sources if self.config.sources else {SOURCE: self.source}
        return {n: made(Features, m(taps[n]), "source", n) for n, m in modules.items()}

    def compressed(self, taps: Mapping[str, Taps], pooled: bool, train: bool = False) -> Latent:
        """The latent before the bottleneck.

        Args:
            taps: what the sources read, by view.
            pooled: whether every token is replaced by the mean of all tokens.
            train: whether this is a training step.
        """
        views = self.views(taps)
        if pooled:
            views = {name: _averaged(features) for name, features in views.items()}
        latent = made(
            Latent, self.compressor(views, train), "compressor", *chosen(self.config.compressor)
        )
        if self.config.refiner is not None:
            slots = self.refiner(latent.slots, latent.mask, train=train)
            latent = replace(latent, slots=jnp.where(latent.mask[..., None], slots, 0.0))
        if self.config.private:
            latent = replace(
                latent,
                owner=owners(latent.slots.shape[1], self.config.private, len(self.dims.receivers)),
            )
        return latent

    def slots_of(self, latent: Latent, train: bool = False) -> Latent:
        """The latent whose codes [B, M, n] are in place of its slots."""
        return cast(Latent, self.bottleneck.slots_of(latent))

    def narrowed(self, latent: Latent, train: bool = False) -> Latent:
        """A latent after the bottleneck, whatever has made it."""
        return cast(Latent, self.bottleneck(latent, train))

    def compressor_loss(
        self, taps: Mapping[str, Taps], target: Features, train: bool = True
    ) -> Any:
        """The loss of a compressor that learns to generate `target` (flow); no latent is made.

        Raises:
            UserError: the compressor is trained in another way.
        """
        if not self.config.chosen_compressor.generates:
            (name,) = chosen(self.config.compressor)
            raise UserError(f"bridge.compressor.{name} is no flow; use one that generates")
        return self.compressor.loss(self.views(taps), target, train)

    def deliver(self, receiver: str, latent: Latent, train: bool = False) -> Delivery:
        """What one receiver is given, by all its readers together."""
        own = readable(latent, sorted(self.dims.receivers).index(receiver))
        given = [
            made(Delivery, reader(own, train), "reader", name)
            for name, reader in self.readers[receiver].items()
        ]
        return merge(given)

    def __call__(self, taps: Mapping[str, Taps]) -> dict[str, Delivery]:
        latent = self.encode(taps)
        return {name: self.deliver(name, latent) for name in self.dims.receivers}


def owners(slots: int, private: int, receivers: int) -> tuple[int, ...]:
    """The owner of each slot: shared slots first, then each receiver's own, sorted by name.

    Args:
        slots: number of slots of a text.
        private: slots of each receiver's own.
        receivers: number of receivers.
    """
    own = tuple(r for r in range(receivers) for _ in range(private))
    return (SHARED,) * (slots - len(own)) + own


def made(kind: type[T], value: Any, part: str, name: str) -> T:
    """A value that a part has made, if it is what the part's contract asks for.

    Args:
        kind: the type that is asked for.
        value: what the part returned.
        part: kind of part.
        name: name of the part, or of its view.

    Raises:
        UserError: the value has another type, or wrong shapes; names the part.
    """
    where = f"bridge.{part}: {name} returned a"
    if not isinstance(value, kind):
        raise UserError(
            f"{where} {type(value).__name__} where its contract (lw_jax/{part}s/base.py) asks for "
            f"a {kind.__name__}"
        )
    try:
        value.check()
    except AssertionError as error:
        line = " ".join(str(error).split())
        raise UserError(f"{where} {kind.__name__} of wrong shapes: {line}") from error
    return value


def _averaged(features: Features) -> Features:
    """Features in which every token is the mean of all."""
    weight = features.mask[..., None] / jnp.maximum(1, features.mask.sum(1))[:, None, None]
    mean = jnp.sum(features.x * weight, axis=1, keepdims=True)
    return replace(features, x=jnp.broadcast_to(mean, features.x.shape))


def readable(latent: Latent, receiver: int) -> Latent:
    """The slots that one receiver may read: shared ones and its own.

    The others are removed, not masked: real slots have to come first, and every slot takes a
    column.
    """
    columns = [i for i, owner in enumerate(latent.owner) if owner in (SHARED, receiver)]
    if len(columns) == len(latent.owner):
        return latent
    at = np.asarray(columns, np.int32)
    return Latent(latent.slots[:, at], latent.mask[:, at], latent.span)


def merge(parts: list[Delivery]) -> Delivery:
    """Joins the deliveries of several readers: each field, and each kind of edit, is one reader's.

    The message advances by the longest `advance`.

    Raises:
        UserError: two readers fill the same field, or make the same kind of edit.
    """
    fields = {
        name: _of_one(name, parts) for name in ("embeds", "mask", "positions", "kv", "prompt")
    }
    advances = [d.advance for d in parts if d.advance is not None]
    edits = [d.edits for d in parts if d.edits is not None]
    kinds = ("lora", "blocks", "k_delta", "v_delta")
    return Delivery(
        **fields,
        advance=functools.reduce(jnp.maximum, advances) if advances else None,
        edits=Edits(**{name: _of_one(name, edits) for name in kinds}) if edits else None,
    )


def _of_one(name: str, parts: Sequence[Any]) -> Any:
    """The field `name` of the one part that sets it; None: no part does."""
    found = [value for value in (getattr(one, name) for one in parts) if value is not None]
    if len(found) > 1:
        raise UserError(
            f"bridge.reader: {len(found)} readers deliver `{name}`, which only one can; drop one"
        )
    return found[0] if found else None
