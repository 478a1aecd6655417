"""The parts as lw_jax does them: its own step, decoding and hand-off, on random weights."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.speed.measure import times
from benchmarks.speed.sizes import Sizes
from lw_jax.bridge.bridge import Bridge
from lw_jax.config.parse import from_dict
from lw_jax.mesh import MeshConfig, make_mesh
from lw_jax.models.config import ModelConfig
from lw_jax.models.decoder import embed_tokens
from lw_jax.models.dims import sizes as dims_of
from lw_jax.models.encoder_arch import arch_from_hf
from lw_jax.models.frozen import FrozenDecoder
from lw_jax.models.generate import DecodeOptions, generate
from lw_jax.models.spec import FrozenSpec
from lw_jax.receiver import answer
from lw_jax.runs.abstract import AbstractStep, abstract_step
from lw_jax.train.optimiser import stage_optimiser
from lw_jax.train.plan import context_of, init_heads
from lw_jax.train.state import new_state
from lw_jax.types import Array

RECEIVER = "reader"
Row = dict[str, Any]


def step(s: Sizes, how: dict[str, str]) -> dict[str, Row]:
    """A training step: cross-entropy and distillation of the answers, AdamW."""
    made, params, state = _stage(s, how, s.source)
    frozen, batch = _filled(made.frozen), _batch(made.batch)
    held = {"state": state}

    def once() -> Any:
        held["state"], metrics = made.step(held["state"], frozen, batch)
        return metrics["loss"]

    row = times(once, jax.block_until_ready, s.warm, s.times)
    del params
    row["rows_per_s"] = round(s.rows / row["ms"] * 1e3, 2)
    return {"step": row | _memory()}


def decode(s: Sizes, how: dict[str, str]) -> dict[str, Row]:
    """Greedy decoding: the whole, and a token's share of it."""
    found: dict[str, Row] = {}
    model = _filled(_spec("reader", s.receiver, s, how).abstract(_mesh()))

    @partial(jax.jit, static_argnames="new")
    def written(model: FrozenDecoder, ids: Array, new: int) -> Array:
        out = generate(
            model.arch,
            model.params,
            embed_tokens(model.params, ids),
            positions=jnp.broadcast_to(jnp.arange(s.prompt)[None], ids.shape),
            lengths=jnp.full(ids.shape[:1], s.prompt, jnp.int32),
            options=DecodeOptions(new),
            impl=model.attention,
        )
        return out.ids

    prompts = {rows: _ids((rows, s.prompt), s.receiver["vocab_size"]) for rows in s.decoded}
    asked = [(rows, new) for rows in s.decoded for new in (1, s.new)]
    calls = {at: (written, (model, prompts[at[0]]), {"new": at[1]}) for at in asked}
    programs, spent = _compiled(calls)
    for rows in s.decoded:
        some = {
            new: times(
                partial(programs[rows, new], model, prompts[rows]),
                jax.block_until_ready,
                1,
                max(3, s.times // 4),
            )
            for new in (1, s.new)
        }
        found[f"b{rows}_prompt{s.prompt}_new{s.new}"] = some[s.new] | {
            "compile_s": spent[rows, s.new]
        }
        each = (some[s.new]["ms"] - some[1]["ms"]) / (s.new - 1)
        found[f"b{rows}_per_token"] = {"ms": round(each, 4)} | _memory()
    return found


def _compiled(calls: dict[Any, tuple[Any, tuple[Any, ...], dict[str, Any]]]) -> Any:
    """Programs that are compiled side by side, by name, and the seconds that each took: a jitted
    function, its arguments, its static arguments."""
    lowered = {at: f.lower(*args, **static) for at, (f, args, static) in calls.items()}

    def one(at: Any) -> tuple[Any, float]:
        began = time.perf_counter()
        return lowered[at].compile(), round(time.perf_counter() - began, 2)

    with ThreadPoolExecutor() as pool:
        done = dict(zip(lowered, pool.map(one, lowered), strict=True))
    return {at: x[0] for at, x in done.items()}, {at: x[1] for at, x in done.items()}


def handoff(s: Sizes, how: dict[str, str]) -> dict[str, Row]:
    """Tokens on the host to the first answer token on the host, batch 1: by the wire, by the text,
    and by a latent that is there already."""
    texts = [int(n) for n in how["texts"].split(",")] if "texts" in how else s.texts
    return {k: row for length in texts for k, row in _handed(s, how, length).items()}


def _handed(s: Sizes, how: dict[str, str], length: int) -> dict[str, Row]:
    one = replace(s, rows=1)
    made, params, _ = _stage(one, how, length)
    frozen, batch = _filled(made.frozen), _batch(made.batch)
    bridge, options, rng = _bridge(one, how), DecodeOptions(1), jax.random.key(0)
    model, prompt = frozen.receivers[RECEIVER], frozen.prompt(RECEIVER)

    @jax.jit
    def sent(frozen: Any, params: Any, batch: Any) -> Any:
        return context_of(bridge, params, frozen, batch, rng, False).deliveries[RECEIVER]

    @partial(jax.jit, static_argnames="kind")
    def read(model: Any, batch: Any, delivery: Any, kind: Any) -> Any:
        message = answer.message_of(model, prompt, batch, RECEIVER, kind, delivery)
        ask, _ = answer.asked(batch, RECEIVER)
        return answer.write(model, prompt, message, ask, rng, options).ids

    def timed(call: Callable[[], Any]) -> Row:
        return times(call, jax.block_until_ready, s.warm, s.times)

    there = jax.eval_shape(sent, frozen, params["bridge"], batch)
    with ThreadPoolExecutor() as pool:  # compiled side by side
        waiting = [pool.submit(sent.lower(frozen, params["bridge"], batch).compile)]
        for kind, given in (("latent", there), ("text", None)):
            waiting.append(pool.submit(read.lower(model, batch, given, kind=kind).compile))
    send, by_latent, by_text = (done.result() for done in waiting)

    def encode() -> Any:
        return send(frozen, params["bridge"], batch)

    found = {f"encode_{length}": timed(encode)}
    there = encode()
    found[f"read_{length}"] = timed(lambda: by_latent(model, batch, there))
    found[f"wire_{length}"] = timed(lambda: by_latent(model, batch, encode()))
    found[f"text_{length}"] = timed(lambda: by_text(model, batch, None))
    return found


PARTS = {"step": step, "decode": decode, "handoff": handoff}


def _config(s: Sizes, how: dict[str, str]) -> Any:
    return from_dict(
        {
            "name": "speed",
            "sender": {"path": "sender", "dtype": s.dtype},
            "receivers": {RECEIVER: {"path": "receiver", "dtype": s.dtype}},
            "data": {"facts": {}},
            "bridge": {
                "latent_dim": s.width,
                "source": {"hidden_states": {"layers": [s.tap]}},
                "compressor": {
                    "perceiver": {
                        "slots": s.slots,
                        "width": s.width,
                        "heads": s.heads,
                        "depth": s.depth,
                    }
                },
                "reader": {"soft_tokens": {}},
            },
            "objectives": {"answer_ce": {}, "kd": {}},
            "stages": {
                "fit": {
                    "train": {
                        "steps": 1000,
                        "batch_size": s.rows,
                        "optimiser": {"name": "adamw", "lr": 1e-4},
                        "remat": how.get("remat", "full"),
                    }
                }
            },
        }
    )


def _spec(name: str, shape: dict[str, Any], s: Sizes, how: dict[str, str]) -> FrozenSpec:
    arch = arch_from_hf(shape, None, where=name)
    keys = {key: how[key] for key in ("attention", "quant", "unroll") if key in how}
    config = ModelConfig(name, s.dtype, **cast(Any, keys))
    return FrozenSpec(name, config, arch, cast(Any, SimpleNamespace()))


def _mesh() -> Any:
    return make_mesh(MeshConfig(data=1))


def _bridge(s: Sizes, how: dict[str, str]) -> Bridge:
    config = _config(s, how)
    sender, receiver = (arch_from_hf(x, None, where="") for x in (s.sender, s.receiver))
    measured = replace(dims_of(receiver), embed_rms=0.02)
    return Bridge(config.bridge, config.bridge.dims(sender, {RECEIVER: measured}))


def _stage(s: Sizes, how: dict[str, str], source: int) -> tuple[AbstractStep, Any, Any]:
    """The step of a stage, with its parameters and its state."""
    config = _config(s, how)
    train = config.stages["fit"].train
    specs = {
        "sender": _spec("sender", s.sender, s, how),
        RECEIVER: _spec(RECEIVER, s.receiver, s, how),
    }
    lengths = {
        "source": source,
        f"{RECEIVER}/context": source,
        f"{RECEIVER}/ask": s.ask,
        f"{RECEIVER}/answer": s.answer,
    }
    made = abstract_step(config, train, specs, lengths, _mesh())
    bridge = _bridge(s, how)
    params = {
        "bridge": bridge.init(jax.random.key(0)),
        "heads": init_heads(config.objectives, bridge.dims, jax.random.key(0)),
    }
    optimiser, _ = stage_optimiser(train, bridge, config.objectives, params)
    state = new_state(params, optimiser, jax.random.key(1), train.ema)
    kept = jax.tree.map(jnp.array, params)  # the step takes the state's own arrays
    return made, kept, state


def _filled(tree: Any) -> Any:
    """Random weights of these shapes, made on the device: norms one, the others 0.02 wide."""

    def fill(path: Any, x: jax.ShapeDtypeStruct) -> Array:
        name = jax.tree_util.keystr(path)
        if "norm" in name:
            return jnp.ones(x.shape, x.dtype)
        if name.endswith(".scale"):
            return jnp.full(x.shape, 0.02 / 64, x.dtype)
        return _drawn(jax.random.fold_in(jax.random.key(0), len(name)), x.shape, x.dtype)

    return jax.tree_util.tree_map_with_path(fill, tree)


@partial(jax.jit, static_argnums=(1, 2))
def _drawn(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """Numbers 0.02 wide; of codes, 64 wide."""
    codes = jnp.dtype(dtype).itemsize == 1
    wide = 64 if codes else 0.02
    draw = jax.random.normal(key, shape, jnp.bfloat16 if codes else dtype)
    return (draw * jnp.asarray(wide, draw.dtype)).astype(dtype)


def _ids(shape: tuple[int, ...], vocabulary: int) -> Array:
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.integers(3, min(vocabulary, 1000), shape), jnp.int32)


def _batch(shapes: dict[str, jax.ShapeDtypeStruct]) -> dict[str, Array]:
    """Rows that are full."""
    found: dict[str, Array] = {}
    for key, x in shapes.items():
        if key.endswith("/ids"):
            found[key] = _ids(x.shape, 128)
        elif key.endswith("/lengths"):
            whole = shapes[f"{key.removesuffix('lengths')}ids"].shape[1]
            found[key] = jnp.full(x.shape, whole, x.dtype)
        else:
            found[key] = (
                jnp.ones(x.shape, x.dtype) if key == "valid" else jnp.zeros(x.shape, x.dtype)
            )
    return found


def _memory() -> Row:
    stats = jax.devices()[0].memory_stats() or {}
    peak = stats.get("peak_bytes_in_use")
    return {} if peak is None else {"peak_gb": round(peak / 1e9, 2)}
