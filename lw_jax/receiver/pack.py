"""Segments of every row laid contiguously, padding only at the right (docs/design.md section 3)."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from lw_jax.types import Array


@struct.dataclass
class Segment:
    """A part of the sequence: token ids, or embeddings.

    Attributes:
        ids: [B, S] int32 tokens; None: it has embeddings.
        embeds: [B, S, D] embeddings; None: it has tokens.
        lengths: [B], number of real entries at the start of each row.
        role: `head`, `prompt`, `message`, `text`, `ask` or `answer`, static.
    """

    ids: Array | None
    embeds: Array | None
    lengths: Array
    role: str = struct.field(pytree_node=False)

    @property
    def size(self) -> int:
        """S: entries of the segment, padding included."""
        part = self.ids if self.ids is not None else self.embeds
        assert part is not None
        return part.shape[1]


def segment(rows: Sequence[Sequence[int]], size: int, role: str = "ask") -> Segment:
    """Rows of tokens as one segment.

    Args:
        rows: the tokens of each.
        size: that the segment is padded to.
        role: of the segment.
    """
    ids = np.zeros((len(rows), size), np.int32)
    for row, one in zip(ids, rows, strict=True):
        row[: len(one)] = one
    lengths = np.array([len(one) for one in rows], np.int32)
    return Segment(jax.device_put(ids), None, jax.device_put(lengths), role)


@struct.dataclass
class Packed:
    """Rows laid contiguously.

    Attributes:
        h: [B, T, D] embeddings, zeros beyond a row's length.
        lengths: [B] entries of each row.
        starts: for each role the packed index [B] at which its segment begins.
        sizes: for each role its lengths [B].
    """

    h: Array
    lengths: Array
    starts: dict[str, Array]
    sizes: dict[str, Array]


def pack(table: Array, segments: Sequence[Segment]) -> Packed:
    """Lays segments one after another in every row.

    Args:
        table: [V, D] embedding table; its dtype is that of the result.
        segments: the segments in order; each role occurs once.
    """
    ids, soft, is_soft, valid = [], [], [], []
    starts: dict[str, Array] = {}
    sizes: dict[str, Array] = {}
    rows = segments[0].lengths.shape[0]
    offset = jnp.zeros((rows,), jnp.int32)
    for s in segments:
        starts[s.role], sizes[s.role] = offset, s.lengths.astype(jnp.int32)
        offset = offset + sizes[s.role]
        index = jnp.arange(s.size)[None, :]
        valid.append(index < s.lengths[:, None])
        is_soft.append(jnp.full((rows, s.size), s.ids is None))
        ids.append(s.ids if s.ids is not None else jnp.zeros((rows, s.size), jnp.int32))
        if s.embeds is not None:
            soft.append(s.embeds.astype(table.dtype))
        else:
            soft.append(jnp.zeros((rows, s.size, 1), table.dtype))
    real = jnp.concatenate(valid, axis=1)
    order = jnp.argsort(~real, axis=1, stable=True)
    take = lambda x: jnp.take_along_axis(x, order, axis=1)  # noqa: E731
    h = jnp.take(table, take(jnp.concatenate(ids, axis=1)), axis=0)
    if any(s.embeds is not None for s in segments):
        wide = [jnp.broadcast_to(x, (*x.shape[:2], table.shape[1])) for x in soft]
        laid = jnp.take_along_axis(jnp.concatenate(wide, axis=1), order[..., None], axis=1)
        h = jnp.where(take(jnp.concatenate(is_soft, axis=1))[..., None], laid, h)
    h = jnp.where(take(real)[..., None], h, jnp.zeros((), h.dtype))
    return Packed(h, offset, starts, sizes)


def gather_states(h: Array, start: Array, size: int) -> Array:
    """[B, T, D] -> [B, size, D]: the states at `start`, `start + 1`, ... of every row.

    Indices past the end repeat the last state; the caller masks them by length.
    """
    index = jnp.clip(start[:, None] + jnp.arange(size)[None, :], 0, h.shape[1] - 1)
    return jnp.take_along_axis(h, index[..., None], axis=1)
