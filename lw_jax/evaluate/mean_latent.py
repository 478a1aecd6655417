"""The training set's mean slots: what the wire says whatever the text (control `mean`)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from lw_jax.data.example import Example
from lw_jax.errors import UserError
from lw_jax.evaluate.methods.base import Batch, EvalContext
from lw_jax.mesh import fetch
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
    ways: int = 1,
) -> Slots:
    """Mean slots [M + 1, d] over the contexts given (whole batches of them).

    The last is the mean of all slots; it stands for those that no context given has, as longer
    texts may. `put` lays a batch on the mesh, over `ways` parts: a batch is filled up to a multiple
    of them with rows that do not count.

    Raises:
        UserError: all contexts are too long.
    """
    total: Slots = np.zeros((), np.float32)
    count: Slots = total
    size = min(batch_size, len(groups))
    for begin in range(0, len(groups) - size + 1, size):
        some = [group[:1] for group in groups[begin : begin + size]]
        batch = collate([*some, *some[:1] * (-size % ways)])
        batch["valid"] = batch["valid"] & (np.arange(len(batch["valid"])) < size)
        sums, counts = fetch(_sums(ctx, put(batch)))
        total, count = total + sums, count + counts
    if count.shape == (0,):  # a bridge that sends no slot
        return np.zeros((1, total.shape[-1]), np.float32)
    if not count.any():
        raise UserError(
            f"layout.max_tokens: all of {len(groups)} training contexts are longer, and the method "
            "mean needs some; raise it, or give shorter texts"
        )
    mean = total.sum(axis=0) / count.sum()
    own = np.where(count[:, None] > 0, total / np.maximum(count, 1)[:, None], mean)
    return np.asarray([*own, mean], np.float32)


def key_of(digest: str, at: float | str | None, layout: LayoutConfig, count: int) -> str:
    """Names what a mean was measured with: the parameters, the ratio or the view, the layout of the
    source, and how many texts."""
    return f"{digest}@{at}@{layout}@{count}"


def save(directory: Path, key: str, slots: Slots, prints: Mapping[str, str] | None = None) -> None:
    """Write `mean_latent.npz`.

    Args:
        directory: of the run.
        key: see `key_of`.
        slots: what was measured.
        prints: fingerprints of the frozen models that it was measured with; None: not named.
    """
    arrays = {"slots": slots, "key": np.array(key), "prints": np.array(_text(prints))}
    write_npz(directory / FILE, arrays)


def load(directory: Path, key: str, prints: Mapping[str, str] | None = None) -> Slots | None:
    """The mean measured with these very parameters, or None; a damaged file is named.

    Args:
        directory: of the run.
        key: see `key_of`.
        prints: fingerprints of the frozen models; None: any.
    """
    path = directory / FILE
    if not path.is_file():
        return None
    advice = "it is measured anew"
    try:
        held = read_npz(path, advice)
        if not {"slots", "key"} <= held.keys():
            raise damaged(path, "a part of it is missing", advice)
        slots = held["slots"]
        if slots.ndim != 2 or slots.dtype != np.float32 or not np.isfinite(slots).all():
            raise damaged(path, "its slots are no finite float32 numbers [M + 1, d]", advice)
    except DamagedFileError as damage:
        print(damage)
        return None
    same = str(held["key"]) == key
    if prints is not None:
        same = same and "prints" in held and str(held["prints"]) == _text(prints)
    return slots if same else None


def _text(prints: Mapping[str, str] | None) -> str:
    return json.dumps(dict(prints or {}), sort_keys=True)
