"""The parts that a wire is put together from; the variants come from each stage's own folder."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from lw_jax.errors import UserError
from lw_jax.sources.normaliser import Normaliser, normaliser_of
from lw_jax.sources.pca import Pca, pca_of
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
    """Transformer layers over the slots, between compressor and bottleneck (SPEC section 4).

    Args:
        depth: layers of self-attention and MLP.
        heads: of the attention.
    """

    depth: int = 2
    heads: int = 8

    def __post_init__(self) -> None:
        at_least(self, 1, "depth", "heads")


@dataclass(frozen=True)
class BridgeConfig:
    """The trainable bridge: compressor, bottleneck and readers over a source.

    Args:
        latent_dim: width d_z of a slot.
        source: what the bridge reads.
        compressor: makes the latent of it.
        bottleneck: what the latent passes on the wire; at most one.
        reader: hands the latent to each receiver; one or several.
        refiner: layers over the slots before the bottleneck; null: none.
        private: slots that one receiver alone reads, for each receiver, taken from the last ones.
    """

    latent_dim: int
    source: SourceConfig  # type: ignore[valid-type]
    compressor: CompressorConfig  # type: ignore[valid-type]
    reader: ReaderConfig  # type: ignore[valid-type]
    bottleneck: BottleneckConfig = field(default_factory=BottleneckConfig)  # type: ignore[valid-type]
    refiner: RefinerConfig | None = None
    private: int = 0

    def __post_init__(self) -> None:
        at_least(self, 1, "latent_dim")
        at_least(self, 0, "private")
        exactly_one(self.source, "source")
        exactly_one(self.compressor, "compressor")
        if not chosen(self.reader):
            known = ", ".join(f.name for f in fields(self.reader))
            raise UserError(f"reader: none is set; set one or several of {known}")
        for kind, options in chosen(self.compressor).items():
            if hasattr(options, "check_width"):
                try:
                    options.check_width(self.latent_dim)
                except UserError as error:
                    raise UserError(f"compressor.{kind}: {error}") from error
            fixed = hasattr(options, "slots") and not getattr(options, "ratios", None)
            if self.private and not fixed:
                raise UserError(
                    f"private: compressor.{kind} gives a text as many slots as its length asks for,"
                    " and the last ones cannot be a receiver's own; give it a fixed number of slots"
                )
        if chosen(self.bottleneck):
            exactly_one(self.bottleneck, "bottleneck")
        if self.refiner is not None and "dit" in chosen(self.compressor):
            raise UserError(
                "refiner: the loss of compressor.dit's flow does not train it; leave it out"
            )
        if self.refiner is not None and self.latent_dim % self.refiner.heads:
            raise UserError(
                f"refiner.heads: {self.refiner.heads} do not divide latent_dim {self.latent_dim}"
            )


def normaliser(bridge: BridgeConfig) -> tuple[str, Normaliser] | None:
    """The dotted key and the config of the source's normaliser; None where it has none."""
    ((name, options),) = chosen(bridge.source).items()
    found = normaliser_of(options)
    return None if found is None else (f"bridge.source.{name}.normaliser", found)


def pca(bridge: BridgeConfig) -> tuple[str, Pca] | None:
    """The dotted key and the config of the source's PCA; None where it has none."""
    ((name, options),) = chosen(bridge.source).items()
    found = pca_of(options)
    return None if found is None else (f"bridge.source.{name}.pca", found)
