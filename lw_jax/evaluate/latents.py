"""What a quick evaluation computes on the devices: scores, samples, and a look at the latent.

Each is one program, from the batch to its figures; what is asked goes through
`lw_jax.receiver.answer`, as in an evaluation. "All answer tokens are the argmax under teacher
forcing" is exactly "greedy decoding writes the answer", so one scoring pass gives the exact match
without decoding.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from lw_jax.bottlenecks import codes
from lw_jax.bridge.bridge import Bridge
from lw_jax.evaluate import slots
from lw_jax.layers.intermediates import Intermediates
from lw_jax.models.frozen import FrozenModels
from lw_jax.models.generate import DecodeOptions
from lw_jax.models.split import embedding_table
from lw_jax.receiver.answer import asked, message_of, score, write
from lw_jax.receiver.transform import transformed
from lw_jax.types import Array, Delivery, Latent, PyTree, Taps


@struct.dataclass
class QuickScores:
    """How a receiver reads the answers of N rows.

    Attributes:
        exact: [N] bool, every gold token is the argmax.
        nll: [N] mean nats a token.
        first: [N] int32, the argmax where the first gold token that is no space stands.
        rank: [N] int32, of that gold token.
        entropy: [N] nats, there.
        margin: [N] logit of the first minus the second, there.
    """

    exact: Array
    nll: Array
    first: Array
    rank: Array
    entropy: Array
    margin: Array


@partial(jax.jit, static_argnames=("bridge", "name", "stops"))
def quick_scores(
    bridge: Bridge,
    name: str,
    params: PyTree,
    frozen: FrozenModels,
    batch: Any,
    shift: Array,
    start: Array,
    stops: tuple[int, ...] = (),
) -> QuickScores:
    """How receiver `name` reads the answers from the latent of the row `shift` further on.

    Args:
        bridge: the bridge.
        name: the receiver's.
        params: the bridge's.
        frozen: the frozen models.
        batch: one question a context, all contexts different.
        shift: 0 for each row's own latent.
        start: [N] index of the first gold token that is no space.
        stops: tokens that end an answer as well as its EOS does.
    """
    latent = _latent(bridge, params, frozen, batch)
    order = (jnp.arange(latent.slots.shape[0]) + shift) % latent.slots.shape[0]
    latent = jax.tree.map(lambda x: x[order], latent)
    model, prompt = frozen.receivers[name], frozen.prompt(name)
    delivery = delivered(bridge, params, name, frozen, latent)
    message = message_of(model, prompt, batch, name, "latent", delivery)
    scored = score(model, prompt, message, *asked(batch, name), each=True, stops=stops)
    assert scored.each is not None
    at = partial(jnp.take_along_axis, indices=start[:, None], axis=1)
    each = scored.each
    first = (each.argmax, each.rank, each.entropy, each.margin)
    nll = scored.nll / jnp.maximum(1, scored.tokens)
    return QuickScores(scored.argmax, nll, *(at(x)[:, 0] for x in first))


@partial(jax.jit, static_argnames=("bridge", "name"))
def inspect(
    bridge: Bridge, name: str, params: PyTree, frozen: FrozenModels, batch: Any
) -> dict[str, Any]:
    """The latent and what receiver `name` is given, without its reading anything.

    Returns:
        what `making` and `given` say.
    """
    views = bridge.extract(frozen.sender, batch, params, frozen.receivers)
    latent, intermediates = bridge.apply(params, views, method="encode")
    return making(bridge, params, views, intermediates) | given(
        bridge, name, params, frozen, latent
    )


def making(
    bridge: Bridge, params: PyTree, views: Mapping[str, Taps], intermediates: Intermediates
) -> dict[str, Any]:
    """What the sending side alone can say of a latent.

    Args:
        bridge: the bridge.
        params: its parameters.
        views: the frozen part of every view of the source.
        intermediates: what the parts sowed while encoding.

    Returns:
        `moved`: by how much of its length the latent before the bottleneck changes when every
        source token is the mean of all; `codes`: of `lw_jax.bottlenecks.codes.usage`.
    """
    plain, pooled = (
        bridge.apply(params, views, p, method="compressed")[0].slots for p in (False, True)
    )
    moved = jnp.linalg.norm(pooled - plain) / jnp.maximum(1e-12, jnp.linalg.norm(plain))
    return {"moved": moved, "codes": codes.usage(intermediates)}


def given(
    bridge: Bridge, name: str, params: PyTree, frozen: FrozenModels, latent: Latent
) -> dict[str, Any]:
    """What receiver `name` is given of a latent.

    Args:
        bridge: the bridge.
        name: the receiver's.
        params: the bridge's.
        frozen: the frozen models.
        latent: as it was received.

    Returns:
        scalars and products of `lw_jax.evaluate.slots` (of the soft tokens where there are some,
        else of the slots; on the host `slots.ranked` makes ranks of the products), the rows of the
        vocabulary `nearest` [B, P] to soft tokens, and `saturation` if the reader says so.
    """
    plain, read = bridge.apply(params, name, latent, method="deliver")
    model, prompt = frozen.receivers[name], frozen.prompt(name)
    delivery = transformed(model, prompt, plain, bridge.dims.receivers[name].embed_rms)
    sown = read.get("readers", {}).get(name, {}).values()
    saturation = [x["saturation"] for x in sown if "saturation" in x]
    found = {"saturation": jnp.stack(saturation).max()} if saturation else {}
    x, mask = latent.slots, latent.mask
    if delivery.embeds is not None:
        x, mask = delivery.embeds, mask if delivery.mask is None else delivery.mask
        table = embedding_table(frozen.receivers[name].params)
        found |= slots.against_table(x, mask, table, bridge.dims.receivers[name].embed_rms)
    return found | slots.statistics(x, mask)


@partial(jax.jit, static_argnames=("bridge", "name", "max_new", "stops"))
def quick_answers(
    bridge: Bridge,
    name: str,
    max_new: int,
    params: PyTree,
    frozen: FrozenModels,
    batch: Any,
    stops: tuple[int, ...] = (),
) -> tuple[Array, Array]:
    """Greedy answers of receiver `name`: ids [N, max_new] and lengths [N].

    Args:
        bridge: the bridge.
        name: the receiver's.
        max_new: tokens written at most.
        params: the bridge's.
        frozen: the frozen models.
        batch: one question a context.
        stops: tokens that hold a stop, the first of which ends an answer and is its last token.
    """
    latent = _latent(bridge, params, frozen, batch)
    model, prompt = frozen.receivers[name], frozen.prompt(name)
    delivery = delivered(bridge, params, name, frozen, latent)
    message, (ask, _) = (
        message_of(model, prompt, batch, name, "latent", delivery),
        asked(batch, name),
    )
    options = DecodeOptions(max_new=max_new, eos_ids=model.arch.eos_ids, stop_ids=stops)
    out = write(model, prompt, message, ask, jax.random.key(0), options)
    return out.ids, out.lengths + out.stopped


def delivered(
    bridge: Bridge, params: PyTree, name: str, frozen: FrozenModels, latent: Latent
) -> Delivery:
    """What receiver `name` is given of a latent, changed as the layout says.

    Args:
        bridge: the bridge.
        params: the bridge's.
        name: the receiver's.
        frozen: the frozen models.
        latent: as it was received.
    """
    given = bridge.deliver(params, name, latent)
    rms = bridge.dims.receivers[name].embed_rms
    return transformed(frozen.receivers[name], frozen.prompt(name), given, rms)


def _latent(bridge: Bridge, params: PyTree, frozen: FrozenModels, batch: Any) -> Latent:
    taps = bridge.extract(frozen.sender, batch, params, frozen.receivers)
    return bridge.encode(params, taps)
