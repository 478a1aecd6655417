"""The training set's mean slots: what the wire says whatever the text (control `mean`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from lw_jax.data.example import Example
from lw_jax.evaluate.methods.base import Batch, EvalContext
from lw_jax.text.collate import Batch as HostBatch
from lw_jax.text.collate import Collate
from lw_jax.text.layout_config import LayoutConfig
from lw_jax.types import Array
from lw_jax.utils.files import DamagedFileError, damaged, read_npz, write_npz

FILE = "mean_latent.npz"
Slots = NDArray[np.float32]


@jax.jit
def _sums(ctx: EvalContext, batch: Batch) -> tuple[Array, Array]:
    """Sum over the valid rows of every real slot [M, d], and how many rows had it [M]."""
    latent = ctx.encode(batch)
    real = (latent.mask & batch["valid"][:, None]).astype(jnp.float32)
    slots = jnp.where(real[..., None] > 0, latent.slots.astype(jnp.float32), 0.0)
    return slots.sum(axis=0), real.sum(axis=0)


def measure(
    ctx: EvalContext,
    groups: Sequence[Sequence[Example]],
    collate: Collate,
    put: Callable[[HostBatch], Any],
    batch_size: int,
) -> Slots:
    """Mean slots [M + 1, d] over the contexts given (whole batches of them).

    The last is the mean of all slots; it stands for those that no context given has, as longer
    texts may. `put` lays a batch on the mesh.
    """
    total = count = np.zeros((), np.float32)
    size = min(batch_size, len(groups))
    for begin in range(0, len(groups) - size + 1, size):
        batch = collate([group[:1] for group in groups[begin : begin + size]])
        sums, counts = jax.device_get(_sums(ctx, put(batch)))
        total, count = total + sums, count + counts
    mean = total.sum(axis=0) / max(count.sum(), 1)
    own = np.where(count[:, None] > 0, total / np.maximum(count, 1)[:, None], mean)
    return np.asarray([*own, mean], np.float32)


def key_of(digest: str, ratio: float | None, layout: LayoutConfig, count: int) -> str:
    """Names what a mean was measured with: the parameters, the ratio, the layout of the source,
    and how many texts."""
    return f"{digest}@{ratio}@{layout}@{count}"


def save(directory: Path, key: str, slots: Slots) -> None:
    """Write `mean_latent.npz`. key: see `key_of`."""
    write_npz(directory / FILE, {"slots": slots, "key": np.array(key)})


def load(directory: Path, key: str) -> Slots | None:
    """The mean measured with these very parameters, or None; a damaged file is named."""
    path = directory / FILE
    if not path.is_file():
        return None
    advice = "it is measured anew"
    try:
        held = read_npz(path, advice)
        if not {"slots", "key"} <= held.keys():
            raise damaged(path, "a part of it is missing", advice)
    except DamagedFileError as damage:
        print(damage)
        return None
    return np.asarray(held["slots"]) if str(held["key"]) == key else None
