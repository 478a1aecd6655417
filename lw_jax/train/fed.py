"""A step's batch on the mesh, and what stands for it when a program is traced."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from lw_jax.data.stream import Stream
from lw_jax.mesh import batch_sharding, put_batch, ways
from lw_jax.text.buckets import tokens_of
from lw_jax.text.collate import Batch, Collate

T = TypeVar("T")


class Fed(NamedTuple):
    """A step's batch.

    Attributes:
        arrays: on the mesh.
        host: the same on the host.
        metrics: what is said of it besides the step's own.
    """

    arrays: dict[str, Any]
    host: Batch
    metrics: dict[str, Any]


def fed(mesh: Mesh, batch: Batch, rows: slice | None = None) -> Fed:
    """A batch of the host on the mesh, and how much of it is padding.

    Args:
        mesh: the device mesh.
        batch: the batch, or this process's part of it.
        rows: which part that is (`mesh.rows_here`); None: all.
    """
    arrays = put_batch(mesh, batch, rows)
    if rows is not None:
        return Fed(arrays, batch, _tokens_of_all(arrays))
    tokens, places = tokens_of(batch)
    return Fed(arrays, batch, {"tokens": float(tokens), "tokens_padded": float(places)})


@jax.jit
def _tokens_of_all(batch: dict[str, Any]) -> dict[str, Any]:
    """`tokens_of` a batch of which each process made a part."""
    ids = [key for key in batch if key.endswith("/ids")]
    real = sum(jnp.sum(batch[f"{key.removesuffix('/ids')}/lengths"]) for key in ids)
    return {
        "tokens": jnp.float32(real),
        "tokens_padded": jnp.float32(sum(batch[key].size for key in ids)),
    }


def one_ahead(items: Iterator[T]) -> Iterator[T]:
    """The items, each when the next one is there: what that began goes on meanwhile."""
    for held in items:
        for item in items:
            yield held
            held = item
        yield held


def shapes_of(batch: Mapping[str, Any]) -> Hashable:
    """The names and shapes of a batch's arrays."""
    return tuple((key, x.shape) for key, x in batch.items())


def on_mesh(
    mesh: Mesh, batch: Mapping[str, Any], rows: slice | None = None
) -> dict[str, jax.ShapeDtypeStruct]:
    """What stands for a batch on the mesh when a program is traced; `rows`: see `fed`."""
    where = batch_sharding(mesh)
    times = 1 if rows is None else ways(mesh, "rows") // (rows.stop - rows.start)
    shape = {k: (x.shape[0] * times, *x.shape[1:]) for k, x in batch.items()}
    return {k: jax.ShapeDtypeStruct(shape[k], x.dtype, sharding=where) for k, x in batch.items()}


def shapes_of_stream(mesh: Mesh, stream: Stream[Any, Any], rows: slice | None) -> list[Any]:
    """What stands for the batches of a stream, one for every length; `rows`: see `fed`."""
    assert isinstance(stream.collate, Collate)
    batch, found = stream.batch(0), []
    for sizes in stream.collate.lengths.buckets:
        own = {f"{key}/ids": size for key, size in sizes.items()}
        cut = {k: x[:, :1].repeat(own[k], 1) if k in own else x for k, x in batch.items()}
        found.append(on_mesh(mesh, cut, rows))
    return found
