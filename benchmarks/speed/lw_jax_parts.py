"""The parts as lw_jax does them: its own step, decoding and hand-off, on random weights."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from types import SimpleNamespace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.break_even import BEFORE, first_token
from benchmarks.speed import turns
from benchmarks.speed.measure import compiled, times
from benchmarks.speed.sizes import Sizes, run_of
from benchmarks.speed.tiles import drawn, tiles
from benchmarks.speed.uneven import batches, in_order, summary
from lw_jax.bridge.bridge import Bridge
from lw_jax.config.parse import from_dict
from lw_jax.mesh import MeshConfig, make_mesh
from lw_jax.models import decoder, kernels
from lw_jax.models.config import ModelConfig
from lw_jax.models.decoder import embed_tokens
from lw_jax.models.dims import sizes as dims_of
from lw_jax.models.encoder_arch import arch_from_hf
from lw_jax.models.frozen import FrozenDecoder
from lw_jax.models.generate import ROOM, DecodeOptions, generate
from lw_jax.models.layer import rms_norm
from lw_jax.models.spec import FrozenSpec
from lw_jax.receiver import answer
from lw_jax.runs.abstract import AbstractStep, abstract_step, size_in_bytes
from lw_jax.train.config import Reuse
from lw_jax.train.optimiser import stage_optimiser
from lw_jax.train.plan import context_of, init_heads
from lw_jax.train.reuse import Reused
from lw_jax.train.state import new_state
from lw_jax.types import Array

RECEIVER = "reader"
Row = dict[str, Any]


def step(s: Sizes, how: dict[str, str]) -> dict[str, Row]:
    """A training step: cross-entropy and distillation of the answers, AdamW; with `sources`, of
    texts of each of these lengths, and with `reuse` of what the frozen models said before."""
    found: dict[str, Row] = {}
    sources = [int(n) for n in how["sources"].split(",")] if "sources" in how else [s.source]
    stages = {source: _stage(s, how, source) for source in sources}
    frozen = _filled(stages[sources[0]][0].frozen)
    calls: dict[Any, Any] = {}
    batches: dict[Any, Callable[[], Any]] = {}
    for source, (made, _, state) in stages.items():
        batch = _batch(made.batch)
        batches[source] = partial(dict, batch)
        if "reuse" in how:
            batches[source] = _reused(s, how, made, frozen, batch)
            batch = batches[source]()
        calls[source] = (made.step, (state, frozen, batch), {})
    programs, spent = compiled(calls, turns.alone)
    for source in sources:
        held = {"state": calls[source][1][0]}
        calls[source] = None

        def once(source: int = source, held: dict[str, Any] = held) -> Any:
            held["state"], metrics = programs[source](held["state"], frozen, batches[source]())
            return metrics["loss"]

        row = times(once, jax.block_until_ready, s.warm, s.times)
        row["compile_s"] = spent[source]
        row["rows_per_s"] = round(s.rows / row["ms"] * 1e3, 2)
        row |= _planned(programs[source])
        name = f"step_{source}" if "sources" in how else "step"
        found[name] = row | _memory()
        began = time.perf_counter()  # as training goes: no step is waited for
        for _ in range(s.times):
            last = once()
        jax.block_until_ready(last)
        each = (time.perf_counter() - began) / s.times * 1e3
        found[f"{name}_unwaited"] = {"ms": round(each, 4)}
    return found


def uneven(s: Sizes, how: dict[str, str]) -> dict[str, Row]:
    """Steps of texts of uneven length, padded to one of six lengths: of each length, and an epoch's
    mean; and steps of these lengths in the epoch's order, none waited for."""
    of = batches(s)
    stages = {size: _stage(s, how, size) for size in sorted(set(of.bucketed))}
    (made, _, state), *_ = stages.values()
    frozen = _filled(made.frozen)
    rows = {size: _batch(stages[size][0].batch) for size in stages}
    calls = {size: (stages[size][0].step, (state, frozen, rows[size]), {}) for size in stages}
    turns.leave()  # it traces on the processors
    programs, spent = compiled(calls, turns.alone)
    held = {"state": state}

    def once(size: int) -> Any:
        held["state"], metrics = programs[size](held["state"], frozen, rows[size])
        return metrics["loss"]

    found = {}
    for size in stages:
        row = times(partial(once, size), jax.block_until_ready, 1, max(3, s.times // 3))
        found[size] = row | {"compile_s": spent[size]} | _planned(programs[size]) | _memory()
    took = in_order(once, jax.block_until_ready, of.bucketed)
    each = {f"step_{size}": row for size, row in found.items()}
    return each | summary(found, of, "bucketed", took)


def _reused(
    s: Sizes, how: dict[str, str], made: AbstractStep, frozen: Any, batch: dict[str, Array]
) -> Callable[[], dict[str, Any]]:
    """Gives the batch with what the frozen models say of it, kept in the host's memory."""
    bridge, host = _bridge(s, how), jax.device_get(batch)
    kept = Reused(Reuse(memory_gb=8, disk_gb=0), bridge, {}, Path(mkdtemp()), print)
    params = {"bridge": bridge.init(jax.random.key(0)), "heads": {}}
    wanted = kept.wanted(made.plan, params, frozen, batch)

    def filled() -> dict[str, Any]:
        return kept.fill(wanted, frozen, host, batch)[0]

    filled()  # asks, and keeps
    return filled


def _planned(program: Any) -> Row:
    """The bytes that the compiler plans for."""
    plan = program.memory_analysis()
    if plan is None:
        return {}
    size = plan.argument_size_in_bytes + plan.temp_size_in_bytes
    size += plan.output_size_in_bytes - plan.alias_size_in_bytes
    return {"planned_gb": round(size / 1e9, 2)}


@partial(jax.jit, static_argnames="new")
def written(model: FrozenDecoder, ids: Array, until: Array, new: int) -> Array:
    """[B, new] what a model writes, greedily, after prompts [B, P] of one length; `until` tokens,
    and zeros."""
    rows, size = ids.shape
    out = generate(
        model.arch,
        model.params,
        embed_tokens(model.params, ids),
        positions=jnp.broadcast_to(jnp.arange(size)[None], ids.shape),
        lengths=jnp.full(rows, size, jnp.int32),
        options=DecodeOptions(new),
        impl=model.attention,
        fused=model.fused,
        until=until,
    )
    return out.ids


def decode(s: Sizes, how: dict[str, str]) -> dict[str, Row]:
    """Greedy decoding: the whole, and a token's share of it; of kernels also how far their stream
    is from the decoder's, relative to it."""
    found: dict[str, Row] = {}
    model = _filled(_spec("reader", s.receiver, s, how).abstract(_mesh()))

    prompts = {rows: _ids((rows, s.prompt), s.receiver["vocab_size"]) for rows in s.decoded}
    held = {"weights_gb": round(size_in_bytes(model.params) / 1e9, 3)}
    until = {new: jnp.asarray(new, jnp.int32) for new in (1, s.new)}
    calls: dict[Any, Any] = {
        rows: (written, (model, prompts[rows], until[1]), {"new": s.new}) for rows in s.decoded
    }
    if model.fused:
        calls |= {("off", n): (_apart_by, (model, prompts[n]), {}) for n in s.decoded}
    programs, spent = compiled(calls, turns.alone)
    for rows in s.decoded:
        some = {
            new: times(
                partial(programs[rows], model, prompts[rows], until[new]),
                jax.block_until_ready,
                1,
                max(3, s.times // 4),
            )
            for new in (1, s.new)
        }
        found[f"b{rows}_prompt{s.prompt}_new1"] = some[1]
        whole = some[s.new] | {"compile_s": spent[rows]}
        found[f"b{rows}_prompt{s.prompt}_new{s.new}"] = whole
        each = (some[s.new]["ms"] - some[1]["ms"]) / (s.new - 1)
        found[f"b{rows}_per_token"] = {"ms": round(each, 4)} | _memory() | held
        if model.fused:
            off = float(programs["off", rows](model, prompts[rows]))
            found[f"b{rows}_per_token"]["off"] = off
    return found


@jax.jit
def _apart_by(model: FrozenDecoder, ids: Array) -> Array:
    """How far the stream of a new token by the kernels is from the decoder's."""
    rows, size = ids.shape
    lengths, ones = jnp.full(rows, size - 1, jnp.int32), jnp.ones(rows, jnp.int32)
    at = jnp.broadcast_to(jnp.arange(size)[None], ids.shape)
    run = partial(decoder.run, model.arch, model.params, impl=model.attention)
    h = embed_tokens(model.params, ids)
    room = size + -size % ROOM
    cache = run(h, positions=at, lengths=lengths, keep=room).cache
    assert cache is not None
    last, at = h[:, -1:], at[:, -1:]
    x, _ = kernels.step(model.arch, model.params, last[:, 0], at, cache)
    own = decoder.run(model.arch, model.params, last, positions=at, lengths=ones, cache=cache).h[
        :, 0
    ]
    expected = rms_norm(own, model.params["final_norm"], model.arch.norm_eps).astype(jnp.float32)
    return jnp.linalg.norm(x.astype(jnp.float32) - expected) / jnp.linalg.norm(expected)


def handoff(s: Sizes, how: dict[str, str]) -> dict[str, Row]:
    """Tokens on the host to the first answer token on the host, batch 1: by the wire, by the text,
    and by a latent that is there already; and of the text its share of the device's peak, that of
    one large matrix product."""
    texts = [int(n) for n in how["texts"].split(",")] if "texts" in how else s.texts
    one = replace(s, rows=1)
    bridge, options, rng = _bridge(one, how), DecodeOptions(1), jax.random.key(0)
    stages = {length: _stage(one, how, length) for length in texts}
    frozen, params = _filled(stages[texts[0]][0].frozen), stages[texts[0]][1]["bridge"]
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

    batches = {length: _batch(made.batch) for length, (made, _, _) in stages.items()}
    calls: dict[Any, Any] = {}
    for length, batch in batches.items():
        there = jax.eval_shape(sent, frozen, params, batch)
        calls["send", length] = (sent, (frozen, params, batch), {})
        calls["latent", length] = (read, (model, batch, there), {"kind": "latent"})
        calls["text", length] = (read, (model, batch, None), {"kind": "text"})
    calls["peak"] = (_squared, (_square(s),), {})
    programs, _ = compiled(calls, turns.alone)
    peak = _peak(s, programs["peak"])
    found: dict[str, Row] = {"matmul": peak}
    for length, batch in batches.items():
        encode = partial(programs["send", length], frozen, params, batch)
        by_latent = partial(programs["latent", length], model, batch)
        by_text = partial(programs["text", length], model, batch, None)
        found[f"encode_{length}"] = timed(encode)
        there = encode()
        found[f"read_{length}"] = timed(partial(by_latent, there))
        found[f"wire_{length}"] = timed(lambda of=by_latent, encode=encode: of(encode()))
        row = timed(by_text)
        tflops = first_token(model.arch, BEFORE + length + s.ask) / row["ms"] / 1e9
        share = tflops / peak["tflops"]
        row |= {"tflops": round(tflops, 1), "share_of_peak": round(share, 3)}
        row["times_latent"] = round(row["ms"] / found[f"read_{length}"]["ms"], 2)
        found[f"text_{length}"] = row
    return found


@jax.jit
def _squared(x: Array) -> Array:
    return x @ x


def _square(s: Sizes) -> Array:
    size = 8192 if s.times > 3 else 64
    return drawn(jax.random.key(0), (size, size), jnp.dtype(s.dtype))


def _peak(s: Sizes, program: Any) -> Row:
    x = _square(s)
    row = times(partial(program, x), jax.block_until_ready, 3, s.times)
    return row | {"tflops": round(2 * len(x) ** 3 / row["ms"] / 1e9, 6)}


PARTS = {"step": step, "uneven": uneven, "decode": decode, "handoff": handoff, "tiles": tiles}


def _config(s: Sizes, how: dict[str, str]) -> Any:
    own = run_of(s, how)
    models = {
        "sender": {"path": "sender", "dtype": s.dtype},
        "receivers": {RECEIVER: {"path": "receiver", "dtype": s.dtype}},
    }
    return from_dict(own | models | {"name": "speed", "data": {"facts": {}}})


def _spec(name: str, shape: dict[str, Any], s: Sizes, how: dict[str, str]) -> FrozenSpec:
    arch = arch_from_hf(shape, None, where=name)
    keys = {key: how[key] for key in ("attention", "quant", "unroll", "decoding") if key in how}
    config = ModelConfig(name, s.dtype, **cast(Any, keys))
    return FrozenSpec(name, config, arch, cast(Any, SimpleNamespace()))


def _mesh() -> Any:
    return make_mesh(MeshConfig(data=1))


def _bridge(s: Sizes, how: dict[str, str]) -> Bridge:
    config = _config(s, how)
    sender, receiver = (arch_from_hf(x, None, where="") for x in (s.sender, s.receiver))
    measured = replace(dims_of(receiver), embed_rms=0.02)
    return Bridge(config.bridge, config.bridge.dims(sender, {RECEIVER: measured}))


def _abstract(s: Sizes, how: dict[str, str], source: int) -> tuple[AbstractStep, Any]:
    """The step of a stage, and the stage's config."""
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
    return abstract_step(config, train, specs, lengths, _mesh()), config


def _stage(s: Sizes, how: dict[str, str], source: int) -> tuple[AbstractStep, Any, Any]:
    """The step of a stage, with its parameters and its state."""
    made, config = _abstract(s, how, source)
    train = config.stages["fit"].train
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
        return drawn(jax.random.fold_in(jax.random.key(0), len(name)), x.shape, x.dtype)

    return jax.tree_util.tree_map_with_path(fill, tree)


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
