"""The parts that a wire is put together from; the variants come from each stage's own folder."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

from lw_jax.bottlenecks.base import Bottleneck
from lw_jax.compressors.base import Compressor
from lw_jax.errors import UserError
from lw_jax.models.dims import BridgeDims, ModelDims, ViewDims, sizes
from lw_jax.models.encoder_arch import AnyArch
from lw_jax.sources.base import Source
from lw_jax.sources.normaliser import Normaliser, normaliser_of
from lw_jax.sources.pca import Pca, pca_of
from lw_jax.text.tokenizer import Tokenizer
from lw_jax.utils.checks import at_least, exactly_one
from lw_jax.utils.registry import choice, chosen

SourceConfig = choice("SourceConfig", "lw_jax.sources", "The source: exactly one is set.")
CompressorConfig = choice(
    "CompressorConfig", "lw_jax.compressors", "The compressor: exactly one is set."
)
BottleneckConfig = choice(
    "BottleneckConfig", "lw_jax.bottlenecks", "The bottleneck: at most one is set."
)
ReaderConfig = choice("ReaderConfig", "lw_jax.readers", "The readers: one or several are set.")


@dataclass(frozen=True)
class RefinerConfig:
    """Transformer layers over the slots, between compressor and bottleneck.

    See docs/design.md section 4.

    Args:
        depth: layers of self-attention and MLP.
        heads: of the attention.
    """

    depth: int = 2
    heads: int = 8

    def __post_init__(self) -> None:
        at_least(self, 1, "depth", "heads")


SOURCE = "source"
"""Name of the view of a bridge that reads one source."""


@dataclass(frozen=True, kw_only=True)
class BridgeConfig:
    """The trainable bridge: compressor, bottleneck and readers over a source.

    Args:
        latent_dim: width d_z of a slot.
        source: what the bridge reads; or `sources`.
        sources: several sources by name, each a view of the same text; the compressor says which
            it reads. Objectives that look at the source see the first.
        compressor: makes the latent of it.
        bottleneck: what the latent passes on the wire; at most one.
        reader: hands the latent to each receiver; one or several.
        refiner: layers over the slots before the bottleneck; null: none.
        private: slots that one receiver alone reads, for each receiver, taken from the last ones.
    """

    latent_dim: int
    source: SourceConfig = field(default_factory=SourceConfig)  # type: ignore[valid-type]
    sources: dict[str, SourceConfig] = field(default_factory=dict)  # type: ignore[valid-type]
    compressor: CompressorConfig  # type: ignore[valid-type]
    reader: ReaderConfig  # type: ignore[valid-type]
    bottleneck: BottleneckConfig = field(default_factory=BottleneckConfig)  # type: ignore[valid-type]
    refiner: RefinerConfig | None = None
    private: int = 0

    def __post_init__(self) -> None:
        at_least(self, 1, "latent_dim")
        at_least(self, 0, "private")
        self._check_sources()
        exactly_one(self.compressor, "compressor")
        self._check_readers()
        ((kind, compressor),) = chosen(self.compressor).items()
        try:
            compressor.check(self.latent_dim)
        except UserError as error:
            raise UserError(f"compressor.{kind}: {error}") from error
        self._check_views(kind, compressor)
        if self.private and compressor.fixed_slots is None:
            raise UserError(
                f"private: compressor.{kind} gives a text as many slots as its length asks for,"
                " and the last ones cannot be a receiver's own; give it a fixed number of slots"
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
        """The sources by the names of their views; `source` is the view of the only one."""
        found = self.sources or {SOURCE: self.source}
        return {name: next(iter(chosen(one).values())) for name, one in found.items()}

    @property
    def chosen_compressor(self) -> Compressor:
        """The compressor's options."""
        (found,) = chosen(self.compressor).values()
        return found

    @property
    def chosen_bottleneck(self) -> Bottleneck | None:
        """The bottleneck's options; None where there is none."""
        return next(iter(chosen(self.bottleneck).values()), None)

    def batch_key(self, view: str) -> str:
        """What the arrays of a view's tokens begin with in a batch."""
        return f"{SOURCE}/{view}" if self.sources else SOURCE

    def at_ratio(self, ratio: float) -> BridgeConfig:
        """The same, with another number of source tokens a slot.

        Raises:
            UserError: its compressor has one number of slots only.
        """
        ((kind, compressor),) = chosen(self.compressor).items()
        if not compressor.several_ratios:
            raise UserError(
                f"ratio: bridge.compressor.{kind} was not trained for several ratios; "
                "give it `ratios`, if it can have some, or leave ratio out"
            )
        other = replace(self.compressor, **{kind: compressor.at_ratio(ratio)})
        return replace(self, compressor=other)

    # What of the frozen models it reads

    def tokenizers(self, sender: Tokenizer | None) -> dict[str, Tokenizer | None]:
        """In whose tokens every view is read."""
        return {name: source.tokenizer(sender) for name, source in self.views.items()}

    def sender_layers(self, sender: AnyArch | None) -> int:
        """How many of the sender's layers the views read together."""
        if sender is None:
            return 0
        reading = [source for source in self.views.values() if source.reads_sender]
        return max((source.sender_layers(sender) for source in reading), default=0)

    def dims(self, sender: AnyArch | None, receivers: Mapping[str, ModelDims]) -> BridgeDims:
        """The sizes of a bridge between these frozen models.

        Raises:
            UserError: a source cannot read the sender, or there is one that nothing reads.
        """
        views: dict[str, ViewDims] = {}
        if sender is not None and not any(s.reads_sender for s in self.views.values()):
            verb = "read" if len(self.sources) > 1 else "reads"
            raise UserError(f"sender: {self._named()} {verb} the text itself; set sender: null")
        for name, source in self.views.items():
            reads = sender if source.reads_sender else None
            layers = 0 if reads is None else source.sender_layers(reads)
            views[name] = ViewDims(*source.shape(reads), layers)
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

    def _named(self) -> str:
        if not self.sources:
            return f"bridge.source.{next(iter(chosen(self.source)))}"
        return " and ".join(f"bridge.sources.{name}" for name in self.sources)

    def _check_sources(self) -> None:
        """One source, or several with names."""
        if not self.sources:
            exactly_one(self.source, "source")
            return
        if chosen(self.source):
            raise UserError("sources: source is set as well; name all of them under sources")
        for name, one in self.sources.items():
            if not re.fullmatch(r"[A-Za-z][A-Za-z0-9]*", name):
                raise UserError(f"sources.{name}: a view's name has letters and digits only")
            exactly_one(one, f"sources.{name}")

    def _check_views(self, kind: str, compressor: Compressor) -> None:
        """The compressor reads views that there are, and the only one without being told."""
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
        """Readers that can stand together."""
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


def normaliser(bridge: BridgeConfig) -> tuple[str, Normaliser] | None:
    """The dotted key and the config of the source's normaliser; None where it has none."""
    for name, options in chosen(bridge.source).items():
        if (found := normaliser_of(options)) is not None:
            return f"bridge.source.{name}.normaliser", found
    return None


def pca(bridge: BridgeConfig) -> tuple[str, Pca] | None:
    """The dotted key and the config of the source's PCA; None where it has none."""
    for name, options in chosen(bridge.source).items():
        if (found := pca_of(options)) is not None:
            return f"bridge.source.{name}.pca", found
    return None
