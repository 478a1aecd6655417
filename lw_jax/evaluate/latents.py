"""What a quick evaluation computes on the devices: scores, samples, and a look at the latent.

"All answer tokens are the argmax under teacher forcing" is exactly "greedy decoding writes the
answer", so one scoring pass gives the exact match without decoding.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from lw_jax.bottlenecks import codes
from lw_jax.bridge.bridge import Bridge
from lw_jax.evaluate import slots
from lw_jax.models.frozen import FrozenModels
from lw_jax.models.generate import DecodeOptions
from lw_jax.models.head import chunked_cross_entropy
from lw_jax.receiver.answer import answer_reading, segments
from lw_jax.receiver.read import decode, expand
from lw_jax.types import Array, Latent, PyTree


@struct.dataclass
class Scores:
    """Per row of a batch, [N]: exact bool, nll mean nats; of the first token that is no space:
    first int32 (the argmax), rank int32 of the gold one, entropy nats, margin of logits."""

    exact: Array
    nll: Array
    first: Array
    rank: Array
    entropy: Array
    margin: Array


@partial(jax.jit, static_argnames=("bridge", "name"))
def score(
    bridge: Bridge,
    name: str,
    params: PyTree,
    frozen: FrozenModels,
    batch: Any,
    shift: Array,
    start: Array,
) -> Scores:
    """How receiver `name` reads the answers from the latent of the row `shift` further on.

    Args:
        params: the bridge's; batch: one question a context, all contexts different.
        start: [N] index of the first gold token that is no space.
    """
    latent = _latent(bridge, params, frozen, batch)
    order = (jnp.arange(latent.slots.shape[0]) + shift) % latent.slots.shape[0]
    latent = jax.tree.map(lambda x: x[order], latent)
    given = bridge.deliver(params, name, latent)
    reading = answer_reading(frozen, batch, name, "latent", given, 1)
    model = frozen.receivers[name]
    scored = chunked_cross_entropy(model.arch, model.params, reading.hidden, reading.labels)
    right = scored.correct(reading.labels) | ~reading.mask
    tokens = jnp.maximum(1, reading.mask.sum(axis=1))
    nll = jnp.sum(scored.nll * reading.mask, axis=1) / tokens
    at = partial(jnp.take_along_axis, indices=start[:, None], axis=1)
    first = (scored.argmax, scored.rank, scored.entropy, scored.margin)
    return Scores(right.all(axis=1), nll, *(at(x)[:, 0] for x in first))


@partial(jax.jit, static_argnames=("bridge", "name"))
def inspect(
    bridge: Bridge, name: str, params: PyTree, frozen: FrozenModels, batch: Any
) -> dict[str, Any]:
    """The latent and what receiver `name` is given, without its reading anything.

    Returns:
        scalars of `receiver.slots` (of the soft tokens where there are some, else of the slots);
        `moved`: by how much of its length the latent before the bottleneck changes when every
        source token is the mean of all; `codes`: of `codes.usage`; `saturation` if it is noted.
    """
    apply = partial(bridge.apply, params)
    taps = bridge.extract(frozen.sender, batch, params)
    latent, intermediates = apply(taps, method="encode")
    given, read = apply(name, latent, method="deliver")
    plain, pooled = (apply(taps, p, method="compressed")[0].slots for p in (False, True))
    moved = jnp.linalg.norm(pooled - plain) / jnp.maximum(1e-12, jnp.linalg.norm(plain))
    found = {"moved": moved, "codes": codes.usage(intermediates)}
    sown = read.get("readers", {}).get(name, {}).values()
    saturation = [x["saturation"] for x in sown if "saturation" in x]
    if saturation:
        found["saturation"] = jnp.stack(saturation).max()
    x, mask = latent.slots, latent.mask
    if given.embeds is not None:
        x, mask = given.embeds, mask if given.mask is None else given.mask
        table = frozen.receivers[name].params["embed"]
        found |= slots.against_table(x, mask, table, bridge.dims.receivers[name].embed_rms)
    return found | slots.statistics(x, mask)


@partial(jax.jit, static_argnames=("bridge", "name", "max_new"))
def sample(
    bridge: Bridge, name: str, max_new: int, params: PyTree, frozen: FrozenModels, batch: Any
) -> tuple[Array, Array]:
    """Greedy answers of receiver `name`: ids [N, max_new] and lengths [N]."""
    latent = _latent(bridge, params, frozen, batch)
    given = bridge.deliver(params, name, latent)
    laid = segments(frozen, batch, name, "latent", expand(given, 1), 1, answer=False)
    model = frozen.receivers[name]
    out = decode(
        model.arch,
        model.params,
        laid,
        given,
        DecodeOptions(max_new=max_new, eos_ids=model.arch.eos_ids),
        jax.random.key(0),
        attention=model.attention,
    )
    return out.ids, out.lengths


def _latent(bridge: Bridge, params: PyTree, frozen: FrozenModels, batch: Any) -> Latent:
    taps = bridge.extract(frozen.sender, batch, params)
    return bridge.encode(params, taps)
