"""Low-rank edits of a frozen decoder's projections (Hu et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import flax.linen as nn
import jax
from annotated_types import Gt, Le, MinLen

from lw_jax.errors import UserError
from lw_jax.models.dims import ModelDims
from lw_jax.types import Array, Delivery, Edits, Latent, Lora
from lw_jax.utils.bounds import FEW, Checked, Dropout, Layers, Width

Target = Literal["q", "k", "v", "o"]


@dataclass(frozen=True)
class LowRankConfig(Checked):
    """LoRA on the attention of the receiver.

    Args:
        r: rank of an edit.
        alpha: an edit is scaled by alpha / r.
        targets: the projections that are edited.
        layers: number of edited layers, from the first on; null: all.
        dropout: dropout of an edit's input features, the same for all tokens of a step.
    """

    r: Width = 8
    alpha: Annotated[float, Gt(0), Le(10**6)] = 16.0
    targets: Annotated[tuple[Target, ...], MinLen(1), FEW] = ("q", "k", "v", "o")
    layers: Layers | None = None
    dropout: Dropout = 0.0

    def __post_init__(self) -> None:
        if not self.targets or len(set(self.targets)) < len(self.targets):
            raise UserError(
                f"targets: expected different ones of q, k, v, o; got {list(self.targets)}"
            )


class LowRank(nn.Module):
    """The same edits for every latent; up matrices start at zero, so nothing is edited at first.

    Parameters: `<target>_down` [n, fan_in, r] and `<target>_up` [n, r, fan_out] over n layers.
    """

    config: LowRankConfig
    dims: ModelDims

    @nn.compact
    def __call__(self, latent: Latent | None, train: bool = False) -> Delivery:
        c = self.config
        count = self.dims.layers if c.layers is None else c.layers
        if count > self.dims.layers:
            raise UserError(
                f"bridge.reader.lora.layers: {count} are more than the receiver's "
                f"{self.dims.layers}; use 1 to {self.dims.layers}"
            )
        down: dict[str, Array] = {}
        up: dict[str, Array] = {}
        for name in c.targets:
            fan_in, fan_out = fans(self.dims, name)
            init = nn.initializers.normal(fan_in**-0.5)
            a = self.param(f"{name}_down", init, (count, fan_in, c.r))
            down[name] = self._dropped(a, train)
            up[name] = self.param(f"{name}_up", nn.initializers.zeros, (count, c.r, fan_out))
        return Delivery(edits=Edits(lora=Lora(down, up, c.alpha / c.r, tuple(range(count)))))

    def _dropped(self, a: Array, train: bool) -> Array:
        """`a` with input features dropped, because the frozen decoder itself has no dropout."""
        if not train or not self.config.dropout:
            return a
        keep = 1 - self.config.dropout
        kept = jax.random.bernoulli(self.make_rng("dropout"), keep, (*a.shape[:2], 1))
        return a * kept / keep


def fans(dims: ModelDims, target: str) -> tuple[int, int]:
    """Inputs and outputs of a projection of the receiver, heads flattened."""
    wide, narrow = dims.query_heads * dims.head_dim, dims.kv_heads * dims.head_dim
    outputs = {"q": wide, "k": narrow, "v": narrow}
    return (wide, dims.width) if target == "o" else (dims.width, outputs[target])
