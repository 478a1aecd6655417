"""The config of a bridge: its parts, chosen from the variants in each stage's folder."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Annotated

from annotated_types import Ge, Le

from lw_jax.bottlenecks.base import Bottleneck
from lw_jax.compressors.base import Compressor
from lw_jax.compressors.least_squares import LeastSquares, least_squares_of
from lw_jax.errors import UserError
from lw_jax.models.dims import BridgeDims, ModelDims, ViewDims, sizes
from lw_jax.models.encoder_arch import AnyArch
from lw_jax.readers.base import Reader
from lw_jax.readers.fitted_prefix import Config as FittedPrefix
from lw_jax.sources.base import Source
from lw_jax.sources.normaliser import Normaliser, normaliser_of
from lw_jax.sources.pca import Pca, pca_of
from lw_jax.text.tokenizer import Tokenizer
from lw_jax.utils.bounds import FEW, Checked, Heads, Layers, Name, Width
from lw_jax.utils.checks import exactly_one
from lw_jax.utils.registry import Choice, chosen


class SourceConfig(Choice[Source], package="lw_jax.sources", contract=Source):
    """The source: exactly one is set."""


class CompressorConfig(Choice[Compressor], package="lw_jax.compressors", contract=Compressor):
    """The compressor: exactly one is set."""


class BottleneckConfig(Choice[Bottleneck], package="lw_jax.bottlenecks", contract=Bottleneck):
    """The bottleneck: at most one is set."""


class ReaderConfig(Choice[Reader], package="lw_jax.readers", contract=Reader):
    """The readers: one or several are set."""


@dataclass(frozen=True)
class RefinerConfig(Checked):
    """Transformer layers over the slots, between compressor and bottleneck.

    See docs/design.md section 4.

    Args:
        depth: layers of self-attention and MLP.
        heads: attention heads.
    """

    depth: Layers = 2
    heads: Heads = 8


SOURCE = "source"
"""Name of the view of a bridge that reads one source."""


@dataclass(frozen=True, kw_only=True)
class BridgeConfig(Checked):
    """The trainable bridge: compressor, bottleneck and readers over a source.

    Args:
        latent_dim: width d_z of a slot.
        source: where the features of the text come from; or `sources`.
        sources: several sources by name, each a view of the same text; the compressor says which
            it reads. Objectives that look at the source see the first.
        compressor: makes the latent from the features.
        bottleneck: reduces what crosses the wire; at most one.
        reader: hands the latent to each receiver; one or several.
        refiner: layers over the slots before the bottleneck; null: none.
        private: slots for each receiver that only it reads, taken from the end of the latent.
    """

    latent_dim: Width
    source: SourceConfig = field(default_factory=SourceConfig)
    sources: Annotated[dict[Name, SourceConfig], FEW] = field(default_factory=dict)
    compressor: CompressorConfig
    reader: ReaderConfig
    bottleneck: BottleneckConfig = field(default_factory=BottleneckConfig)
    refiner: RefinerConfig | None = None
    private: Annotated[int, Ge(0), Le(2**14)] = 0

    def __post_init__(self) -> None:
        self._check_sources()
        exactly_one(self.compressor, "compressor")
        self._check_readers()
        ((kind, compressor),) = chosen(self.compressor).items()
        try:
            compressor.check(self.latent_dim)
        except UserError as error:
            raise UserError(f"compressor.{kind}: {error}") from error
        self._check_views(kind, compressor)
        if self.sources and least_squares_of(compressor) is not None:
            raise UserError(
                f"compressor.{kind}.fit: a calibrate stage measures `source` alone; leave fit out "
                "with several sources"
            )
        if self.private and compressor.fixed_slots is None:
            raise UserError(
                f"private: the number of slots of compressor.{kind} depends on the text's length, "
                "so the last ones cannot be a receiver's own; give it a fixed number of slots"
            )
        if chosen(self.bottleneck):
            exactly_one(self.bottleneck, "bottleneck")
        if self.refiner is not None and compressor.generates:
            raise UserError(
                f"refiner: the loss of compressor.{kind} does not train it; leave it out"
            )
        if self.refiner is not None and self.latent_dim % self.refiner.heads:
            raise UserError(
                f"refiner.heads: {self.refiner.heads} do not divide latent_dim {self.latent_dim}"
            )

    def __hash__(self) -> int:
        own = (self.latent_dim, self.source, self.compressor, self.reader, self.bottleneck)
        return hash((*own, self.refiner, self.private, tuple(self.sources.items())))

    @property
    def views(self) -> dict[str, Source]:
        """The sources by the names of their views; a single source has the name `source`."""
        found = self.sources or {SOURCE: self.source}
        return {name: next(iter(chosen(one).values())) for name, one in found.items()}

    @property
    def edits_sender(self) -> str | None:
        """The view that trains a LoRA of the sender; None: none does."""
        views = self.views.items()
        return next((name for name, one in views if getattr(one, "lora", None) is not None), None)

    @property
    def chosen_compressor(self) -> Compressor:
        """The compressor's options."""
        (found,) = chosen(self.compressor).values()
        return found

    @property
    def chosen_bottleneck(self) -> Bottleneck | None:
        """The bottleneck's options; None: there is none."""
        return next(iter(chosen(self.bottleneck).values()), None)

    def batch_key(self, view: str) -> str:
        """Prefix of the keys of a view's tokens in a batch."""
        return f"{SOURCE}/{view}" if self.sources else SOURCE

    def at_view(self, view: str) -> BridgeConfig:
        """The same config whose latents are made from one view of the text.

        Raises:
            UserError: its compressor makes one latent of all that it reads, or not of this view.
        """
        ((kind, compressor),) = chosen(self.compressor).items()
        try:
            other = compressor.at_view(view)
        except UserError as error:
            raise UserError(f"view: bridge.compressor.{kind}: {error}") from error
        return replace(self, compressor=replace(self.compressor, **{kind: other}))

    def at_ratio(self, ratio: float) -> BridgeConfig:
        """The same config with another number of source tokens in a slot.

        Raises:
            UserError: its compressor has only one number of slots.
        """
        ((kind, compressor),) = chosen(self.compressor).items()
        if not compressor.several_ratios:
            raise UserError(
                f"ratio: bridge.compressor.{kind} was not trained for several ratios; "
                "give it `ratios`, if it can have some, or leave ratio out"
            )
        other = replace(self.compressor, **{kind: compressor.at_ratio(ratio)})
        return replace(self, compressor=other)

    # What it reads of the frozen models

    def tokenizers(
        self, sender: Tokenizer | None, receivers: Mapping[str, Tokenizer]
    ) -> dict[str, Tokenizer | None]:
        """The tokenizer of every view.

        Args:
            sender: the sender's; None: there is none.
            receivers: the receivers' by name, of those at least that a view reads.
        """
        found = {}
        for name, source in self.views.items():
            read = source.reads_receiver
            found[name] = source.tokenizer(sender if read is None else receivers[read])
        return found

    @property
    def receivers_read(self) -> tuple[str, ...]:
        """Names of the receivers that views read in a sender's place."""
        read = (source.reads_receiver for source in self.views.values())
        return tuple(dict.fromkeys(name for name in read if name is not None))

    def sender_layers(self, sender: AnyArch | None) -> int:
        """Number of the sender's layers that the views need together."""
        if sender is None:
            return 0
        reading = [source for source in self.views.values() if source.reads_sender]
        return max((source.sender_layers(sender) for source in reading), default=0)

    def dims(self, sender: AnyArch | None, receivers: Mapping[str, ModelDims]) -> BridgeDims:
        """The sizes of a bridge between these frozen models.

        Args:
            sender: the sender's architecture; None: there is none.
            receivers: sizes of the receivers by name; {}: not known yet, and of no view that
                reads one.

        Raises:
            UserError: a source cannot read the sender, no source reads it, or a view reads a
                receiver that is not there.
        """
        views: dict[str, ViewDims] = {}
        if sender is not None and not any(s.reads_sender for s in self.views.values()):
            verb = "read" if len(self.sources) > 1 else "reads"
            raise UserError(f"sender: {self._named()} {verb} the text itself; set sender: null")
        for name, source in self.views.items():
            reads = sender if source.reads_sender else None
            layers = 0 if reads is None else source.sender_layers(reads)
            shape = source.shape(reads)
            if source.reads_receiver is not None and receivers:
                self.check_read(receivers)
                shape = source.of_receiver(receivers[source.reads_receiver])
            views[name] = ViewDims(*shape, layers)
        first = next(iter(views.values()))
        return BridgeDims(
            first.width,
            first.taps,
            self.latent_dim,
            dict(receivers),
            first.vocab,
            None if sender is None else sizes(sender, self.sender_layers(sender)),
            tuple(views.items()) if self.sources else (),
        )

    def check_read(self, receivers: Iterable[str]) -> None:
        """Checks that the receivers that views read are there.

        Raises:
            UserError: one is not.
        """
        known = list(receivers)
        for name, source in self.views.items():
            if source.reads_receiver not in (None, *known):
                key = f"bridge.sources.{name}" if self.sources else "bridge.source"
                raise UserError(
                    f"{key}: {source.reads_receiver!r} is no receiver; there are {', '.join(known)}"
                )

    def _named(self) -> str:
        if not self.sources:
            return f"bridge.source.{next(iter(chosen(self.source)))}"
        return " and ".join(f"bridge.sources.{name}" for name in self.sources)

    def _check_sources(self) -> None:
        """Raises UserError unless there is one source, or several with names."""
        if not self.sources:
            exactly_one(self.source, "source")
            return
        if chosen(self.source):
            raise UserError("sources: source is set as well; name all of them under sources")
        for name, one in self.sources.items():
            if not re.fullmatch(r"[A-Za-z][A-Za-z0-9]*", name):
                raise UserError(f"sources.{name}: a view's name has letters and digits only")
            exactly_one(one, f"sources.{name}")
            for kind, options in chosen(one).items():
                measured = normaliser_of(options) or pca_of(options)
                if measured is not None:
                    raise UserError(
                        f"sources.{name}.{kind}: a calibrate stage measures `source` alone; leave "
                        "normaliser and pca out of one of several sources"
                    )

    def _check_views(self, kind: str, compressor: Compressor) -> None:
        """Raises UserError if the compressor reads unknown views, or names none of several."""
        known = list(self.views)
        for name in compressor.reads:
            if name not in known:
                raise UserError(
                    f"compressor.{kind}: it reads the view {name!r}; there are {', '.join(known)}"
                )
        if len(known) > 1 and not compressor.reads:
            raise UserError(
                f"sources: compressor.{kind} reads one view, and there are {', '.join(known)}; "
                "use a compressor that reads several, and name them there"
            )

    def _check_readers(self) -> None:
        """Raises UserError unless there are readers, and they can be combined."""
        readers = chosen(self.reader)
        if not readers:
            known = ", ".join(f.name for f in fields(self.reader))
            raise UserError(f"reader: none is set; set one or several of {known}")
        for a, b in itertools.combinations(readers, 2):
            if readers[a].excludes & readers[b].excludes:
                raise UserError(f"reader: {a} and {b} exclude each other; set one")
        for name, reader in readers.items():
            if reader.needs_embeds and not any(r.gives_embeds for r in readers.values()):
                raise UserError(
                    f"reader: {name} adds to soft tokens; set a reader that delivers some as well "
                    "(soft_tokens)"
                )
            tokens = getattr(self.compressor, "tokens", None)
            if isinstance(reader, FittedPrefix) and (
                tokens is None or tokens.linear or self.sources
            ):
                raise UserError(
                    f"reader.{name}: it is fitted to the features of one source, so the slots have "
                    "to be these; set compressor: {tokens: {linear: false}}, and source"
                )


def normaliser(bridge: BridgeConfig) -> tuple[str, Normaliser] | None:
    """The dotted key and the config of the source's normaliser; None: it has none."""
    for name, options in chosen(bridge.source).items():
        if (found := normaliser_of(options)) is not None:
            return f"bridge.source.{name}.normaliser", found
    return None


def pca(bridge: BridgeConfig) -> tuple[str, Pca] | None:
    """The dotted key and the config of the source's PCA; None: it has none."""
    for name, options in chosen(bridge.source).items():
        if (found := pca_of(options)) is not None:
            return f"bridge.source.{name}.pca", found
    return None


def closed_form(bridge: BridgeConfig) -> tuple[str, LeastSquares] | None:
    """The dotted key and the config of the compressor's least squares; None: it has none."""
    for name, options in chosen(bridge.compressor).items():
        if (found := least_squares_of(options)) is not None:
            return f"bridge.compressor.{name}.fit", found
    return None


def fitted_reader(bridge: BridgeConfig) -> tuple[str, FittedPrefix] | None:
    """The name and the config of the reader that is fitted to keys and values; None: there is
    none."""
    found = chosen(bridge.reader).items()
    return next(((n, one) for n, one in found if isinstance(one, FittedPrefix)), None)


def fits(bridge: BridgeConfig) -> list[str]:
    """The dotted keys of what a `calibrate` stage fits in closed form."""
    compressor, reader = closed_form(bridge), fitted_reader(bridge)
    return [
        *([] if compressor is None else [compressor[0]]),
        *([] if reader is None else [f"bridge.reader.{reader[0]}"]),
    ]


def to_be_trained(bridge: BridgeConfig) -> str | None:
    """A part of the bridge that no `calibrate` stage determines, and that has to be trained; None:
    there is none, because the compressor, or a reader of the features themselves, is fitted and
    nothing else starts at random.
    """
    if not fits(bridge):
        return f"bridge.compressor.{next(iter(chosen(bridge.compressor)))}"
    if bridge.refiner is not None:
        return "bridge.refiner"
    for name, bottleneck in chosen(bridge.bottleneck).items():
        if bottleneck.random_start:
            return f"bridge.bottleneck.{name}"
    for name, reader in chosen(bridge.reader).items():
        if reader.random_start:
            return f"bridge.reader.{name}"
    return None
