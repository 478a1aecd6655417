"""Codes cross the wire in as few bytes as they need, and are the direct path's slots again."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from lw_jax import api
from lw_jax.bottlenecks import fsq, vq
from lw_jax.bridge.config import BottleneckConfig, ReaderConfig
from lw_jax.config.parse import from_dict
from lw_jax.errors import UserError
from lw_jax.evaluate import compression
from lw_jax.evaluate.config import DecodeConfig, EvaluateConfig
from lw_jax.evaluate.methods import controls, method
from lw_jax.evaluate.predict import place
from lw_jax.mesh import MeshConfig, make_mesh
from lw_jax.pipeline import Pipeline
from lw_jax.readers import soft_tokens
from lw_jax.runs.trained import Trained
from lw_jax.stages import evaluate
from lw_jax.types import Latent
from lw_jax.wire import packet
from lw_jax.wire.codecs import codec
from tests.tiny.evaluation import LAYOUT, RECEIVER, SLOTS, WIDTH, World, make_world, received
from tests.tiny.run import make_models, make_run, raw_config

LEVELS = (8, 5, 2, 9)  # 720 tuples: 10 bits


@given(st.lists(st.integers(2, 300), min_size=1, max_size=40), st.integers(1, 9), st.data())
@settings(max_examples=40)
def test_codes_round_trip(levels: list[int], m: int, data: st.DataObject) -> None:
    seed = data.draw(st.integers(0, 1000))
    codes = np.random.default_rng(seed).integers(0, levels, (1, m, len(levels))).astype(np.int32)
    mask = np.ones((1, m), bool)
    sizes = tuple(levels)
    sent = packet.to_bytes(Latent(codes, mask), codec_name="codes", levels=sizes)  # type: ignore[arg-type]
    got = packet.from_bytes(sent, sizes)
    assert got.codec == "codes"
    np.testing.assert_array_equal(got.latent.slots, codes)
    said = packet.nbytes(m, len(levels), "codes", levels=sizes, span=False, mark=False)
    assert len(sent) == said


def test_as_few_bytes_as_the_codes_need() -> None:
    """Slots of V15's settings: 12 bits, 24 bits, and 74.3 bits of [5]*32 in 75."""
    for levels, bits in (((4096,), 12), ((8,) * 8, 24), ((5,) * 32, 75), ((2,), 1)):
        assert codec("codes", levels).nbytes(128, len(levels)) == -(-128 * bits // 8)


def test_codes_that_this_end_cannot_read() -> None:
    mask = np.ones((1, 2), bool)
    codes = Latent(np.array([[[7, 4, 1, 8], [0, -1, 0, 0]]], np.int32), mask)  # type: ignore[arg-type]
    sent = packet.to_bytes(codes, codec_name="codes", levels=LEVELS)
    np.testing.assert_array_equal(packet.from_bytes(sent, LEVELS).latent.slots[0, 1], np.zeros(4))
    with pytest.raises(UserError, match="4 codes a slot, where the bridge at this end has 0"):
        packet.from_bytes(sent)
    with pytest.raises(UserError, match="beyond the levels of this bridge"):
        packet.from_bytes(sent, (8, 4, 2, 9))
    with pytest.raises(UserError, match=r"levels \[8, 5, 2, 8\] were expected"):
        packet.to_bytes(codes, codec_name="codes", levels=(8, 5, 2, 8))
    with pytest.raises(UserError, match="only a bridge with their levels"):
        packet.to_bytes(codes, codec_name="codes")


CONFIGS = {
    "fsq": BottleneckConfig(fsq=fsq.Config(LEVELS)),
    "vq": BottleneckConfig(vq=vq.Config(16, "cosine")),
}
BITS = {"fsq": 10, "vq": 4}


@cache
def loaded(kind: str) -> tuple[World, api.Bridge]:
    """A bridge of random parameters that sends codes, as `Bridge.load` gives it."""
    world = make_world(6, level=2)
    reader = ReaderConfig(soft_tokens=soft_tokens.Config())
    world = world.with_parts(5, bottleneck=CONFIGS[kind], reader=reader)
    pipeline = Pipeline(
        layout=LAYOUT,
        bridge=world.ctx.bridge,
        frozen=world.ctx.frozen,
        sources=world.sender,
        receivers={RECEIVER: world.tokenizer},
        fingerprints={},
        mesh=make_mesh(MeshConfig(data=1)),
    )
    trained = Trained(world.ctx.params, "wire", 0, "last", "random", {}, "0123456789")
    made = api.Bridge(pipeline, trained, DecodeConfig(max_new_tokens=6))
    return world, made


@pytest.mark.parametrize("kind", ["fsq", pytest.param("vq", marks=pytest.mark.slow)])
def test_bytes_of_codes_read_like_the_direct_path(kind: str) -> None:
    world, wired = loaded(kind)
    answers = set()
    for example in world.examples[1:3]:
        sent = wired.encode(example.context)
        assert len(sent) == wired.pipeline.bridge.nbytes(SLOTS)
        assert len(sent) == 16 + 8 + 4 + 1 + -(-SLOTS * BITS[kind] // 8)
        whole = wired.encode(example.context, codec="float32")
        assert len(whole) == packet.nbytes(SLOTS, WIDTH, "float32")
        direct = packet.from_bytes(whole)
        np.testing.assert_array_equal(slots_of(wired, sent), direct.latent.slots)
        answer = wired.answer(sent, example.question)
        assert answer == wired.answer(whole, example.question)
        answers.add(answer)
    assert len(answers) > 1
    with pytest.raises(UserError, match="unknown codec 'int3'"):
        wired.encode("Ada keeps 7 goats.", codec="int3")


def slots_of(wired: api.Bridge, sent: bytes) -> np.ndarray:
    """The slots that the receiving side makes of the codes."""
    bridge = wired.pipeline.bridge
    codes = jax.device_put(packet.from_bytes(sent, bridge.levels).latent)
    return np.asarray(jax.jit(bridge.from_wire)(wired.trained.params, codes).slots)


def test_the_latent_at_another_precision_is_what_its_bytes_say() -> None:
    world, wired = loaded("fsq")
    batch = jax.device_put(world.batch(0, 1))
    whole = packet.from_bytes(wired.encode(world.examples[0].context, codec="float32")).latent
    coarse = packet.from_bytes(packet.to_bytes(whole, codec_name="int4")).latent
    ways = (method(f"latent_{name}") for name in ("float32", "int4"))
    for how, latent in zip(ways, (whole, coarse), strict=True):
        sent = received(world.ctx, how, world.batch(0, 1))
        given, _ = place(how.message, world.ctx, batch, sent)
        told = jax.jit(lambda s, z: s.deliver(z))(world.ctx, jax.device_put(latent))
        np.testing.assert_allclose(given.delivery.embeds, told.embeds, atol=1e-6)
    assert np.abs(coarse.slots - whole.slots).max() > 0.01
    assert method("latent_int4") is method("latent_int4")  # or each call would compile again


def test_compression_counts_the_codes() -> None:
    packed = compression.of_texts(["x" * 100], [128], 256, "codes", (5,) * 32)
    assert packed["sent_as"] == "codes"
    assert packed["bytes"]["codes"] == 16 + 8 + 4 + 16 + 128 * 75 // 8
    assert packed["bits_per_character"]["codes"] == 8 * packed["bytes"]["codes"] / 100
    assert packed["bytes"]["int4"] == packet.nbytes(128, 256, "int4")


@pytest.mark.slow
def test_the_evaluate_stage_sends_at_other_precisions_as_well(tmp_path: Path) -> None:
    wanted = {"methods": ["latent"], "wire": ["float32", "int4"], "rows": 6, "bootstrap": 40}
    raw = raw_config(make_models(tmp_path), tmp_path / "run", **wanted)
    raw["bridge"]["bottleneck"] = {"fsq": {"levels": list(LEVELS)}}
    run = make_run(from_dict(raw), Console(quiet=True))
    cfg = run.config.stages["test"].evaluate
    assert cfg is not None
    evaluate.run(run, "test", cfg)
    metrics = json.loads((run.run_dir / "metrics.json").read_text())
    found = metrics["receivers"][RECEIVER]
    assert list(found)[:3] == ["latent", "latent_float32", "latent_int4"]
    assert found["latent_float32"]["nll"] == pytest.approx(found["latent"]["nll"])
    assert found["latent_float32"]["nll"] != found["latent_int4"]["nll"]
    packed = metrics["compression"]["latent"]
    assert packed["sent_as"] == "codes"
    for name, codec_name in (("latent", "codes"), ("deranged", "codes"), ("latent_int4", "int4")):
        assert found[name]["wire_bytes"] == packed["bytes"][codec_name]
    assert packed["bytes"]["codes"] == 16 + 8 + 4 + 1 + 8


def test_methods_at_other_precisions_come_after_the_latent() -> None:
    named = EvaluateConfig(methods=("text", "latent"), wire=("int8", "int4")).all_methods
    assert named[:4] == ("text", "latent", "latent_int8", "latent_int4")
    assert set(named[4:]) == set(controls())
    with pytest.raises(UserError, match="unknown codec 'int5'"):
        EvaluateConfig(wire=("int5",))
