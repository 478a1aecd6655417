"""A bridge: its config, and the sizes of the frozen models on both sides.

One object, passed to everything that needs a bridge. It is frozen and hashable, so it can be a
static argument of a jitted function. Its parameters are always separate, as `params`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp

from lw_jax.bridge import paths
from lw_jax.bridge.config import BridgeConfig, fits
from lw_jax.bridge.module import BridgeModule, owners
from lw_jax.errors import UserError
from lw_jax.layers.intermediates import READ_ROWS, READS, Intermediates
from lw_jax.models.dims import BridgeDims
from lw_jax.models.frozen import Elsewhere, FrozenDecoder, Sender
from lw_jax.types import Array, Delivery, Latent, PyTree, SourceTokens, Taps
from lw_jax.utils.registry import chosen
from lw_jax.wire.codecs import CODES
from lw_jax.wire.limits import LARGEST, LONGEST, Limits
from lw_jax.wire.packet import nbytes


def kept_taps(source: str) -> str:
    """The key in a batch of a source's taps [B, n, T, D], where they were made before.

    Args:
        source: key of the source in a batch.
    """
    return f"{source}/taps"


@dataclass(frozen=True)
class Bridge:
    """The trainable part between the sources and the receivers.

    Attributes:
        config: the parts that it is made of.
        dims: sizes of the frozen models on both sides.
    """

    config: BridgeConfig
    dims: BridgeDims

    def init(self, rng: Array, source_tokens: int = 8) -> PyTree:
        """Fresh parameters, float32.

        Args:
            rng: random key.
            source_tokens: tokens in the example text whose shapes the parameters are made for.

        Raises:
            UserError: parts that do not fit each other, or the frozen models.
        """
        taps = {}
        for name in self.config.views:
            dims = self.dims.of_view(name)
            taps[name] = Taps(
                jnp.zeros((dims.taps, 1, source_tokens, dims.source_width), jnp.float32),
                jnp.ones((1, source_tokens), bool),
                jnp.zeros((1, source_tokens), jnp.int32),
            )
        module = BridgeModule(self.config, self.dims)
        found = self._nested(module.init({"params": rng, "noise": rng}, taps)["params"])
        self._check_fit(found)
        return found

    def _check_fit(self, params: PyTree) -> None:
        """Raises UserError if a part is fitted to features that depend on parameters."""
        fitted, own = fits(self.config), params.get("source")
        if fitted and own:
            (source,) = chosen(self.config.source)
            raise UserError(
                f"bridge.source.{source}: {', '.join(sorted(own))} would be trained or measured, "
                f"and {fitted[0]} fits features that are there from the start; use hidden_states "
                "or embeddings with mix: concat, without normaliser, pca and lora"
            )

    def extract(
        self,
        sender: Sender | Elsewhere | None,
        batch: Mapping[str, Array],
        params: PyTree | None,
        receivers: Mapping[str, FrozenDecoder] | None = None,
    ) -> dict[str, Taps]:
        """The frozen part of every view, with the sources' edits of the sender, if they make any.

        Args:
            sender: the frozen sender; None: the sources need none.
            batch: a batch of `lw_jax.text.collate`; taps that it holds (`kept_taps`) are taken from
                it.
            params: the bridge's parameters; None: the sender without edits.
            receivers: the frozen receivers by name; None where no view reads one.

        Returns:
            `Taps` by the name of the view (`source` if there is one source).
        """
        found = {}
        for name, source in self.config.views.items():
            own = None
            if params is not None:
                own = params.get("sources", {}).get(name) or params.get("source", {})
            prefix = self.config.batch_key(name)
            tokens = SourceTokens(*(batch[f"{prefix}/{k}"] for k in ("ids", "lengths", "skip")))
            if (kept := kept_taps(prefix)) in batch:
                states = jnp.moveaxis(batch[kept], 1, 0)
                found[name] = Taps(states, source.content(tokens), tokens.ids)
                continue
            reads = sender if source.reads_sender else None
            assert not isinstance(reads, Elsewhere), f"{kept}: the sender is on other devices"
            if source.reads_receiver is not None:
                assert receivers is not None
                reads = receivers[source.reads_receiver]
            found[name] = source.extract(reads, tokens, own)
        return found

    def encode(
        self,
        params: PyTree,
        taps: Mapping[str, Taps],
        *,
        train: bool = False,
        rng: Array | None = None,
    ) -> Latent:
        """The latent after the bottleneck.

        Args:
            params: the bridge's parameters.
            taps: what `extract` gives.
            train: whether this is a training step.
            rng: random key of dropout and noise; None: the noise is the same every time.
        """
        latent, _ = self.apply(params, taps, method="encode", train=train, rng=rng)
        return cast(Latent, latent)

    def deliver(
        self,
        params: PyTree,
        receiver: str,
        latent: Latent,
        *,
        train: bool = False,
        rng: Array | None = None,
    ) -> Delivery:
        """What one receiver is given. Of the text it uses only the latent.

        Args:
            params: the bridge's parameters.
            receiver: the receiver's name.
            latent: the latent.
            train: whether this is a training step.
            rng: random key of dropout; None: the noise is the same every time.
        """
        given, _ = self.apply(params, receiver, latent, method="deliver", train=train, rng=rng)
        return cast(Delivery, given)

    def apply(
        self,
        params: PyTree,
        *arguments: Any,
        method: str,
        train: bool = False,
        rng: Array | None = None,
    ) -> tuple[Any, Intermediates]:
        """A method of the module.

        Args:
            params: the bridge's parameters.
            arguments: arguments of the method.
            method: its name.
            train: whether this is a training step.
            rng: random key of dropout and generated noise; None: the noise is the same every time.

        Returns:
            The method's result, and what the parts sowed (`Intermediates`).
        """
        key = jax.random.key(0) if rng is None else rng
        rngs = {"noise": jax.random.fold_in(key, 1)} | ({} if rng is None else {"dropout": rng})
        value, sown = BridgeModule(self.config, self.dims).apply(
            {"params": paths.flat(params)},
            *arguments,
            train,
            method=method,
            rngs=rngs,
            mutable=["intermediates"],
        )
        return value, self._nested(sown.get("intermediates", {}))

    def reads(
        self, params: PyTree, taps: Mapping[str, Taps], rows: int = READ_ROWS
    ) -> tuple[Latent, Array | None]:
        """The latents of a batch's first rows, and which tokens of the source each slot reads.

        Args:
            params: the bridge's parameters.
            taps: what `extract` gives.
            rows: how many, `READ_ROWS` at most.

        Returns:
            The latents; the compressor's cross-attention [rows, M, T] float32, mean over its layers
            and heads, each slot's shares summing to 1. None: its slots do not attend to the source.
            Tokens that it reads have seen each other before, in the source and in the layers
            that the compressor has of its own.
        """
        latent, sown = BridgeModule(self.config, self.dims).apply(
            {"params": paths.flat(params)},
            taps,
            False,
            method="encode",
            rngs={"noise": jax.random.fold_in(jax.random.key(0), 1)},
            mutable=[READS],
        )
        few = jax.tree.map(lambda x: x[:rows], cast(Latent, latent))
        own, (_, slots, _) = sown.get(READS, {}).get("compressor", {}), few.slots.shape
        found = [
            leaf.reshape(-1, *leaf.shape[-3:]).mean(axis=0)[:rows]
            for path, leaf in jax.tree_util.tree_leaves_with_path(own)
            if "cross" in jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        ]
        found = [one for one in found if one.shape[1] == slots]
        return few, jnp.mean(jnp.stack(found), axis=0) if found else None

    def at_ratio(self, ratio: float) -> Bridge:
        """The same bridge with another number of source tokens in a slot.

        Raises:
            UserError: its compressor has only one number of slots.
        """
        return replace(self, config=self.config.at_ratio(ratio))

    def at_view(self, view: str) -> Bridge:
        """The same bridge, whose latents are made from one view of the text.

        Raises:
            UserError: its compressor makes one latent of all that it reads, or not of this view.
        """
        return replace(self, config=self.config.at_view(view))

    # What crosses the wire

    @property
    def levels(self) -> tuple[int, ...]:
        """Number of values of each code in a slot; () if the bottleneck has no codes."""
        bottleneck = self.config.chosen_bottleneck
        return () if bottleneck is None else bottleneck.levels

    @property
    def codec(self) -> str:
        """The codec that holds the latent exactly: the bottleneck's, else float32."""
        bottleneck = self.config.chosen_bottleneck
        return "float32" if bottleneck is None else bottleneck.codec

    @property
    def limits(self) -> Limits:
        """What a packet of this bridge can be."""
        compressor = self.config.chosen_compressor
        fewest, most = compressor.sent_slots
        total = compressor.fixed_slots or 0
        return Limits(
            width=self.config.latent_dim,
            fewest=fewest,
            most=most,
            owners=owners(total, self.config.private, len(self.dims.receivers)),
            span=LONGEST if compressor.gives_span else None,
            # In bfloat16 the largest float16 becomes 2^16.
            largest=2.0**16 if self.codec == "float16" else LARGEST,
        )

    def nbytes(self, slots: int, codec: str | None = None) -> int:
        """Bytes of a message on the wire.

        Args:
            slots: number of slots.
            codec: name of the codec; None: the bridge's own.
        """
        name, levels = codec or self.codec, self.levels
        width = len(levels) if name == CODES else self.config.latent_dim
        return nbytes(slots, width, name, levels=levels, owners=self.config.private > 0)

    def to_wire(self, params: PyTree, taps: Mapping[str, Taps]) -> Latent:
        """The latent as a bridge with codes sends it.

        `slots` holds codes [B, M, n] int32, -1 where a slot is masked.
        """
        latent, sown = self.apply(params, taps, method="encode")
        return replace(latent, slots=sown["bottleneck"]["codes"])

    def from_wire(self, params: PyTree, sent: Latent) -> Latent:
        """The latent for the codes that `to_wire` gave, slot by slot."""
        latent, _ = self.apply(params, sent, method="slots_of")
        return cast(Latent, latent)

    # Parameters that the bottleneck changes itself

    @property
    def trains_itself(self) -> bool:
        """Whether the bottleneck changes parameters of its own after a step."""
        bottleneck = self.config.chosen_bottleneck
        return bottleneck is not None and bottleneck.trains_itself

    def after_step(self, params: PyTree, intermediates: Intermediates, rng: Array) -> PyTree:
        """The parameters after the bottleneck has changed its own.

        Args:
            params: the bridge's parameters after the optimiser's step.
            intermediates: what the parts sowed in the step.
            rng: random key.
        """
        bottleneck = self.config.chosen_bottleneck
        assert bottleneck is not None
        own = bottleneck.after_step(params["bottleneck"], intermediates["bottleneck"], rng)
        return {**params, "bottleneck": own}

    def _nested(self, tree: Mapping[str, Any]) -> dict[str, Any]:
        """Turns a tree with linen's names into one with readable paths."""
        known: list[tuple[str, ...]] = [("sources", name) for name in self.config.sources]
        readers = chosen(self.config.reader)
        known += [("readers", r, v) for r in self.dims.receivers for v in readers]
        return paths.nested(tree, known)


@partial(jax.jit, static_argnums=0)
def fresh(bridge: Bridge, rng: Array) -> PyTree:
    """`bridge.init`, compiled once for bridges that are alike: outside jit a deep part is built op
    by op, which takes seconds."""
    return bridge.init(rng)
