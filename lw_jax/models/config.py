"""How a config names a frozen model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lw_jax.errors import UserError
from lw_jax.utils.bounds import Checked, Location, Name, Seed


@dataclass(frozen=True)
class ModelConfig(Checked):
    """A frozen language model, or the sentence encoder that a source reads.

    Args:
        path: directory in Hugging Face format, or hub name.
        revision: branch, tag or commit of a hub model; null: its main branch.
        dtype: storage and compute type.
        quant: storage of the matrices; `none` keeps `dtype`, `int8` and `nf4` compute in it.
            `float8` multiplies 8-bit floats by 8-bit floats (NVIDIA GPUs from compute capability
            8.9 on have units for them; elsewhere it runs, and gains memory alone). It is for speed
            only: two real models of 0.1B and 0.5B missed every bound of accuracy that was set for
            it (next tokens by 0.011 nats and 97 % of the most probable ones the same, gradients
            at a cosine of 0.93 to bfloat16's), and what a bridge learns with it was not compared
            (docs/performance.md).
        attention: `xla` runs everywhere, `cudnn` on NVIDIA GPUs in bfloat16; `auto` is cudnn where
            that can run and is known to be faster, else xla. Where gradients are not finite and
            the loss is, try xla. What was used is in the checkpoints and in metrics.json.
        unroll: `always` lets each layer of a decoder be a part of the program of its own, which
            reads its weights where they lie; `never` is a loop over one layer, which copies each
            layer's weights before it uses them; `auto`: always on accelerators, never on CPUs.
        decoding: `xla` writes new tokens as everything else is computed; `kernels` through seven
            kernels a layer, for at most 16 rows, on one NVIDIA GPU in bfloat16, with plain weights
            and those of 8 bits (for one row of a 7B model a tenth quicker than xla, three times
            with int8, and 1.5 times for a 0.5B model: docs/performance.md).
        random_weights: seed of random weights of the same shape, in place of the model's own, which
            are not read (of the sender: the control for what its training has learned); null: its
            own.
    """

    path: Location
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    quant: Literal["none", "int8", "nf4", "float8"] = "none"
    attention: Literal["auto", "xla", "cudnn"] = "auto"
    revision: Name | None = None
    unroll: Literal["auto", "always", "never"] = "auto"
    decoding: Literal["xla", "kernels"] = "xla"
    random_weights: Seed | None = None

    def __post_init__(self) -> None:
        if self.random_weights is not None and self.quant != "none":
            raise UserError(
                f"quant: {self.quant}, and random_weights are drawn in dtype; set quant: none"
            )
        for name in ("path", "revision"):
            text = getattr(self, name)
            if text is not None and not (text.isprintable() and text.strip() == text):
                raise UserError(
                    f"{name}: expected printable characters without spaces around them; "
                    f"got {text[:60]!a}"
                )
