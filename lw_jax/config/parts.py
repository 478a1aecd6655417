"""The parts that a wire is put together from; the variants come from each stage's own folder."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from lw_jax.config.checks import at_least, exactly_one
from lw_jax.errors import UserError
from lw_jax.registry import choice, chosen

SourceConfig = choice("SourceConfig", "lw_jax.sources", "The source: exactly one is set.")
CompressorConfig = choice(
    "CompressorConfig", "lw_jax.compressors", "The compressor: exactly one is set."
)
BottleneckConfig = choice(
    "BottleneckConfig", "lw_jax.bottlenecks", "The bottleneck: at most one is set."
)
ReaderConfig = choice("ReaderConfig", "lw_jax.readers", "The readers: one or several are set.")
ObjectivesConfig = choice(
    "ObjectivesConfig", "lw_jax.objectives", "The objectives: one or several are set."
)
DataConfig = choice("DataConfig", "lw_jax.data", "The rows: exactly one is set.")


@dataclass(frozen=True)
class BridgeConfig:
    """The trainable bridge: compressor, bottleneck and readers over a source.

    Args:
        latent_dim: width d_z of a slot.
        source: what the bridge reads.
        compressor: makes the latent of it.
        bottleneck: what the latent passes on the wire; at most one.
        reader: hands the latent to each receiver; one or several.
    """

    latent_dim: int
    source: SourceConfig  # type: ignore[valid-type]
    compressor: CompressorConfig  # type: ignore[valid-type]
    reader: ReaderConfig  # type: ignore[valid-type]
    bottleneck: BottleneckConfig = field(default_factory=BottleneckConfig)  # type: ignore[valid-type]

    def __post_init__(self) -> None:
        at_least(self, 1, "latent_dim")
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
        if chosen(self.bottleneck):
            exactly_one(self.bottleneck, "bottleneck")
