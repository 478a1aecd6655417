"""A message as other engines take it: embeddings of a prompt, or keys and values.

    bridge = Bridge.load("runs/mine", role="receiver")
    prompt = engines.export(bridge, packet, "How many goats?", form="inputs_embeds")
    model.generate(**engines.transformers_inputs(prompt), max_new_tokens=8)

What a bridge can be exported as depends on its readers (`lw_jax.bridge.engines`); the doctor says
it before training.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from lw_jax.api.bridge import Bridge
from lw_jax.bridge.engines import FORMS, Form, delivered_obstacle, obstacle
from lw_jax.errors import UserError, said
from lw_jax.evaluate import packets
from lw_jax.evaluate.methods.base import EvalContext
from lw_jax.models.decoder import run
from lw_jax.models.rope import angles, rotate
from lw_jax.models.split import embedding_table
from lw_jax.receiver.answer import alone, before
from lw_jax.receiver.join import joined
from lw_jax.receiver.read import lay_out
from lw_jax.text.layout import asked_ids
from lw_jax.types import Array, Delivery, Latent
from lw_jax.utils import arguments
from lw_jax.utils.files import fits, write_bytes
from lw_jax.wire.message import Message

MOST_BYTES = 2**30
"""Of one exported message."""
ABOUT = "lw_jax"
"""The key of the file's metadata."""


@dataclass(frozen=True)
class Prompt:
    """A message and a question as an engine takes them; one row.

    Attributes:
        form: `prompt_embeds` and `inputs_embeds` have `embeds`, `past_key_values` the others.
        receiver: name of the receiver in the bridge.
        positions: [T] float32 of the embeddings, or of the columns of keys and values.
        embeds: [T, D] embeddings of the whole prompt.
        message: (first, after the last) of the embeddings that are the message; what is around it
            are the receiver's own.
        keys, values: [L, K, S, h] of what the receiver has read: head and message, keys rotated.
        ask: [A] int32 tokens that follow them.
        ask_positions: [A] float32 positions of these.
        stop: strings at which an answer ends.
        eos: token ids at which it ends.
        max_new: most tokens of an answer.
    """

    form: Form
    receiver: str
    positions: NDArray[np.float32]
    embeds: NDArray[Any] | None = None
    message: tuple[int, int] = (0, 0)
    keys: NDArray[Any] | None = None
    values: NDArray[Any] | None = None
    ask: NDArray[np.int32] | None = None
    ask_positions: NDArray[np.float32] | None = None
    stop: tuple[str, ...] = ()
    eos: tuple[int, ...] = ()
    max_new: int = 0
    about: Mapping[str, Any] = field(default_factory=dict)


def export(
    bridge: Bridge,
    packet: bytes,
    question: str = "",
    *,
    form: Form = "inputs_embeds",
    receiver: str | None = None,
) -> Prompt:
    """A packet and a question as an engine takes them.

    Args:
        bridge: a bridge with its receiving end.
        packet: the message's bytes: a packet, or several in one message.
        question: as in `Bridge.answer`.
        form: `prompt_embeds` for engines that count positions themselves, `inputs_embeds` and
            `past_key_values` for transformers.
        receiver: its name; may be left out where there is one.

    Raises:
        UserError: an argument is not what it should be, the bytes are no message of this bridge,
            or its readers give something that this form has no place for.
    """
    arguments.one_of("form", form, FORMS)
    config, layout = bridge.pipeline.bridge.config, bridge.pipeline.layout
    if bridge.role == "sender":
        raise UserError("export: this bridge was loaded with role='sender'; load its receiving end")
    if why := obstacle(form, config, layout):
        raise UserError(f"export: not as {form}: {why}")
    name = _receiver(bridge, receiver)
    tokenizer = bridge.pipeline.receivers[name]
    ask = np.asarray(asked_ids(layout, tokenizer, arguments.text("question", question, blank=True)))
    parts = Message.from_bytes(arguments.packet("packet", packet)).parts
    s = bridge.pipeline
    latents = [
        packets.opened(s.bridge, one.packet, bridge.trained.mark, key=bridge.key) for one in parts
    ]
    for one in latents:
        bridge.admit(one)
    ctx = EvalContext(s.frozen, bridge.trained.params, None, s.bridge, name)
    most = max(one.mask.shape[1] for one in latents)
    delivery = _delivered(ctx, packets.filled(latents, most), len(latents))
    if why := delivered_obstacle(form, delivery):
        raise UserError(f"export: not as {form}: {why}")
    common: dict[str, Any] = {
        "form": form,
        "receiver": name,
        "stop": bridge.decode.stop or (),
        "eos": ctx.model.arch.eos_ids,
        "max_new": bridge.decode.max_new_tokens,
    }
    if form == "past_key_values":
        return _keys_and_values(ctx, delivery, ask, common)
    return _embeddings(ctx, delivery, ask, common)


def _receiver(bridge: Bridge, name: str | None) -> str:
    known = list(bridge.pipeline.receivers)
    if name is None and len(known) == 1:
        return known[0]
    if name not in known:
        raise UserError(f"export: receiver {name!r} is not one of {', '.join(known)}")
    return name


@partial(jax.jit, static_argnames="parts")
def _delivered(ctx: EvalContext, sent: Latent, parts: int) -> Delivery:
    """What a message of some parts, a row each, delivers."""
    latent = ctx.received(sent)
    return joined(ctx.deliver(latent), parts, latent.mask.any(axis=1))


def _embeddings(
    ctx: EvalContext, delivery: Delivery, ask: NDArray[Any], common: Mapping[str, Any]
) -> Prompt:
    assert delivery.embeds is not None
    table = embedding_table(ctx.model.params)
    soft = delivery.embeds[0].astype(table.dtype)
    count = soft.shape[0] if delivery.mask is None else int(delivery.mask[0].sum())
    head = np.asarray(ctx.prompt.head, np.int32)
    first = [table[head]]
    if delivery.prompt is not None:
        first.append(delivery.prompt.astype(table.dtype))
    parts = [*first, soft[:count], table[ask]]
    embeds = np.asarray(jnp.concatenate(parts, axis=0))
    _bounded(embeds.nbytes)
    start = sum(len(part) for part in first)
    within = np.arange(count, dtype=np.float32)
    if delivery.positions is not None:
        within = np.asarray(delivery.positions, np.float32)[0, :count]
    advance = float(count) if delivery.advance is None else float(delivery.advance[0])
    after = start + advance + np.arange(len(ask))
    positions = np.concatenate([np.arange(start), start + within, after]).astype(np.float32)
    counted = np.arange(len(positions))
    if common["form"] == "prompt_embeds" and not np.array_equal(positions, counted):
        raise UserError(
            "export: not as prompt_embeds: engines count a prompt's positions from 0, and this "
            "message has others"
        )
    return Prompt(positions=positions, embeds=embeds, message=(start, start + count), **common)


def _keys_and_values(
    ctx: EvalContext, delivery: Delivery, ask: NDArray[Any], common: Mapping[str, Any]
) -> Prompt:
    keys, values, positions, real, end = jax.device_get(_read(ctx, delivery))
    keep = np.flatnonzero(real[0])
    keys, values = (np.moveaxis(x[:, 0, keep], 1, 2) for x in (keys, values))
    _bounded(keys.nbytes + values.nbytes)
    at = float(end[0]) + np.arange(len(ask), dtype=np.float32)
    window = ctx.model.arch.window
    last = at[-1] + common["max_new"] if len(at) else float(end[0])
    if window is not None and last >= window:
        raise UserError(
            f"export: not as past_key_values: the receiver looks back {window} positions, and "
            "columns that it would forget cannot be told apart there"
        )
    return Prompt(
        positions=positions[0, keep],
        keys=keys,
        values=values,
        ask=ask.astype(np.int32),
        ask_positions=at,
        **common,
    )


@jax.jit
def _read(ctx: EvalContext, delivery: Delivery) -> tuple[Array, Array, Array, Array, Array]:
    """What the receiver has in its cache after head and message, one row.

    Returns:
        Keys, rotated, and values [L, 1, S, K, h], positions [1, S], which are real [1, S], and the
        position [1] of what follows.
    """
    model = ctx.model
    laid = lay_out(model.params, before(ctx.prompt, alone(model, delivery, 1)), delivery)
    h, lengths = laid.packed.h, laid.packed.lengths
    size = h.shape[1]
    done = run(
        model.arch,
        model.params,
        h,
        positions=laid.positions,
        lengths=lengths,
        delivery=laid.inputs,
        keep=size,
        impl=model.attention,
    )
    assert done.cache is not None
    keys, values = (
        jnp.stack(x) if isinstance(x, tuple) else x for x in (done.cache.k, done.cache.v)
    )
    positions = laid.positions.astype(jnp.float32)
    real = jnp.arange(size)[None] < lengths[:, None]
    soft = laid.packed.sizes["message"].astype(jnp.float32)
    taken = soft
    kv = laid.inputs.kv
    if kv is not None:
        cos, sin = angles(model.arch, kv.positions)
        rotated = jax.vmap(lambda k: rotate(k, cos, sin))(kv.k)
        keys = jnp.concatenate([keys, rotated.astype(keys.dtype)], axis=2)
        values = jnp.concatenate([values, kv.v.astype(values.dtype)], axis=2)
        positions = jnp.concatenate([positions, kv.positions.astype(jnp.float32)], axis=1)
        real = jnp.concatenate([real, kv.mask], axis=1)
        taken = jnp.maximum(soft, kv.mask.sum(axis=1).astype(jnp.float32))
    if delivery.advance is not None:
        taken = delivery.advance.astype(jnp.float32)
    return keys, values, positions, real, laid.packed.starts["message"] + taken


def _bounded(size: int) -> None:
    if size > MOST_BYTES:
        raise UserError(f"export: {size:,} bytes are more than the {MOST_BYTES:,} of one message")


# Files

_TENSORS = ("positions", "embeds", "keys", "values", "ask", "ask_positions")
_WRITTEN: dict[str, Any] = {
    "form": str,
    "receiver": str,
    "message": [int],
    "stop": [str],
    "eos": [int],
    "max_new": int,
}
"""The form of what a file says of its prompt."""


def to_file(prompt: Prompt, path: Path) -> None:
    """Writes a prompt as safetensors, completely or not at all; what it is stands in the file's
    metadata under `lw_jax`, as JSON."""
    tensors = {
        name: np.ascontiguousarray(getattr(prompt, name))
        for name in _TENSORS
        if getattr(prompt, name) is not None
    }
    about = {
        "form": prompt.form,
        "receiver": prompt.receiver,
        "message": prompt.message,
        "stop": prompt.stop,
        "eos": prompt.eos,
        "max_new": prompt.max_new,
        **prompt.about,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, save(tensors, {ABOUT: json.dumps(about)}))


def from_file(path: Path) -> Prompt:
    """A prompt that `to_file` wrote.

    Raises:
        UserError: it is no such file, or damaged.
    """
    try:
        with safe_open(path, framework="np") as file:
            about = json.loads((file.metadata() or {})[ABOUT])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if not fits(about, _WRITTEN):
            raise ValueError("what it says of itself is of another form")
        prompt = Prompt(
            form=about["form"],
            receiver=about["receiver"],
            message=tuple(about["message"]),
            stop=tuple(about["stop"]),
            eos=tuple(about["eos"]),
            max_new=about["max_new"],
            **tensors,
        )
        _check_whole(prompt)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError, OSError) as error:
        raise UserError(f"{path}: no exported message: {said(error)}") from error
    return prompt


def _check_whole(prompt: Prompt) -> None:
    """Checks that a prompt has what its form has, in shapes that go together.

    Raises:
        ValueError: it has not.
    """
    held = {name: getattr(prompt, name) for name in _TENSORS if getattr(prompt, name) is not None}
    kv = prompt.form == "past_key_values"
    wanted = {"positions", *(("keys", "values", "ask", "ask_positions") if kv else ("embeds",))}
    if prompt.form not in get_args(Form) or held.keys() != wanted:
        raise ValueError(f"{', '.join(held)} of the form {prompt.form!r}")
    if not all(np.isfinite(array).all() for array in held.values()):
        raise ValueError("a number in it is not finite")
    places = prompt.positions.shape
    first, last = prompt.message if len(prompt.message) == 2 else (-1, -1)
    if kv:
        assert prompt.keys is not None and prompt.values is not None  # they are wanted
        shape, columns = prompt.keys.shape, prompt.keys.shape[2:3]
        fit = len(shape) == 4 and prompt.values.shape == shape and columns == places
        fit = fit and len({held["ask"].shape, held["ask_positions"].shape}) == 1
        fit = fit and held["ask"].ndim == 1 and held["ask"].dtype == np.int32
    else:
        fit = held["embeds"].ndim == 2 and held["embeds"].shape[:1] == places
        fit = fit and 0 <= first <= last <= len(held["embeds"])
    if not fit:
        raise ValueError("its shapes do not go together")


# What engines are given


def transformers_inputs(prompt: Prompt) -> dict[str, Any]:
    """Keyword arguments of transformers' `generate`, for a model of the receiver's weights.

    Args:
        prompt: as `inputs_embeds`, `prompt_embeds` or `past_key_values`.

    Returns:
        torch tensors of one row. With keys and values `input_ids` begins with as many zeros as
        there are columns, whose ids nobody looks at.
    """
    import torch
    from transformers import DynamicCache

    def tensor(x: NDArray[Any]) -> Any:
        if x.dtype == ml_dtypes.bfloat16:
            return torch.from_numpy(np.array(x).view(np.int16)).view(torch.bfloat16)[None]
        return torch.from_numpy(np.array(x))[None]

    if prompt.embeds is not None:
        ones = torch.ones((1, len(prompt.positions)), dtype=torch.long)
        return {
            "inputs_embeds": tensor(prompt.embeds),
            "position_ids": tensor(prompt.positions),
            "attention_mask": ones,
        }
    assert prompt.keys is not None and prompt.values is not None
    assert prompt.ask is not None and prompt.ask_positions is not None
    cache = DynamicCache()
    for layer, (k, v) in enumerate(zip(prompt.keys, prompt.values, strict=True)):
        cache.update(tensor(k), tensor(v), layer)
    held = len(prompt.positions)
    ids = np.concatenate([np.zeros(held, np.int64), prompt.ask.astype(np.int64)])
    positions = np.concatenate([prompt.positions, prompt.ask_positions])
    return {
        "input_ids": tensor(ids),
        "past_key_values": cache,
        "position_ids": tensor(positions),
        "attention_mask": torch.ones((1, len(ids)), dtype=torch.long),
    }


def vllm_completion(prompt: Prompt) -> dict[str, Any]:
    """The fields of a request to vLLM's completions (`vllm serve --enable-prompt-embeds`), which
    the caller completes with `model`: `prompt_embeds`, the whole prompt."""
    return {
        "prompt_embeds": _torch_base64(_whole(prompt)),
        "max_tokens": prompt.max_new,
        "temperature": 0,
        **({"stop": list(prompt.stop)} if prompt.stop else {}),
        **({"stop_token_ids": list(prompt.eos)} if prompt.eos else {}),
    }


def vllm_chat_part(prompt: Prompt) -> dict[str, Any]:
    """A content part of a message to vLLM's chat: the soft tokens alone. The server puts its chat
    template around the parts, and primer and question are text parts beside it."""
    first, last = prompt.message
    return {"type": "prompt_embeds", "data": _torch_base64(_whole(prompt)[first:last])}


def _whole(prompt: Prompt) -> NDArray[Any]:
    if prompt.form != "prompt_embeds" or prompt.embeds is None:
        raise UserError(f"vLLM: takes prompt_embeds; this message is exported as {prompt.form}")
    return prompt.embeds


def _torch_base64(x: NDArray[Any]) -> str:
    """A dense tensor as vLLM reads it: the file that `torch.save` writes, loaded there with
    `weights_only`; the form has no other."""
    import torch

    held = np.array(x)
    tensor = (
        torch.from_numpy(held.view(np.int16)).view(torch.bfloat16)
        if held.dtype == ml_dtypes.bfloat16
        else torch.from_numpy(held)
    )
    buffer = io.BytesIO()
    torch.save(tensor, buffer)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
