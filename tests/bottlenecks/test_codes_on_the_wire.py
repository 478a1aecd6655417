"""Codes cross the wire in as few bytes as they need, and are the direct path's slots again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from lw_jax import api, bridge, wire
from lw_jax.codecs import codec
from lw_jax.config.evaluation import CONTROLS, EvaluateConfig
from lw_jax.config.parse import from_dict, to_dict
from lw_jax.config.run import Run
from lw_jax.data.facts import FactsRows
from lw_jax.errors import UserError
from lw_jax.evaluate.compare import methods_of
from lw_jax.stages import evaluate
from lw_jax.types import Latent
from tests.evaluate.run_world import make_models, make_run, raw_config
from tests.evaluate.world import RECEIVER

LEVELS = (8, 5, 2, 9)  # 720 tuples: 10 bits


@given(st.lists(st.integers(2, 300), min_size=1, max_size=40), st.integers(1, 9), st.data())
@settings(max_examples=40)
def test_codes_round_trip(levels: list[int], m: int, data: st.DataObject) -> None:
    seed = data.draw(st.integers(0, 1000))
    codes = np.random.default_rng(seed).integers(0, levels, (1, m, len(levels))).astype(np.int32)
    mask = np.ones((1, m), bool)
    sizes = tuple(levels)
    sent = wire.to_bytes(Latent(codes, mask), codec_name="codes", levels=sizes)  # type: ignore[arg-type]
    got = wire.from_bytes(sent, sizes)
    assert got.codec == "codes"
    np.testing.assert_array_equal(got.latent.slots, codes)
    said = wire.nbytes(m, len(levels), "codes", levels=sizes, span=False, mark=False)
    assert len(sent) == said


def test_as_few_bytes_as_the_codes_need() -> None:
    """Slots of V15's settings: 12 bits, 24 bits, and 74.3 bits of [5]*32 in 75."""
    for levels, bits in (((4096,), 12), ((8,) * 8, 24), ((5,) * 32, 75), ((2,), 1)):
        assert codec("codes", levels).nbytes(128, len(levels)) == -(-128 * bits // 8)


def test_codes_that_this_end_cannot_read() -> None:
    mask = np.ones((1, 2), bool)
    codes = Latent(np.array([[[7, 4, 1, 8], [0, -1, 0, 0]]], np.int32), mask)  # type: ignore[arg-type]
    sent = wire.to_bytes(codes, codec_name="codes", levels=LEVELS)
    np.testing.assert_array_equal(wire.from_bytes(sent, LEVELS).latent.slots[0, 1], np.zeros(4))
    with pytest.raises(UserError, match="4 codes a slot, where the bridge at this end has 0"):
        wire.from_bytes(sent)
    with pytest.raises(UserError, match="beyond the levels of this bridge"):
        wire.from_bytes(sent, (8, 4, 2, 9))
    with pytest.raises(UserError, match=r"levels \[8, 5, 2, 8\] were expected"):
        wire.to_bytes(codes, codec_name="codes", levels=(8, 5, 2, 8))
    with pytest.raises(UserError, match="only a bridge with their levels"):
        wire.to_bytes(codes, codec_name="codes")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_models(tmp_path_factory.mktemp("models"))


CONFIGS = {"fsq": {"levels": list(LEVELS)}, "vq": {"codes": 16, "distance": "cosine"}}
BITS = {"fsq": 10, "vq": 4}


@pytest.fixture(scope="module", params=["fsq", pytest.param("vq", marks=pytest.mark.slow)])
def run(request: Any, models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose bridge sends codes."""
    home = tmp_path_factory.mktemp("runs") / request.param
    wanted = {"methods": ["deranged"], "wire": ["float32", "int4"]}
    raw = raw_config(models, home, rows=6, bootstrap=20, **wanted)
    raw["bridge"]["bottleneck"] = {request.param: CONFIGS[request.param]}
    return make_run(from_dict(raw), Console(quiet=True))


def own_bytes(run: Run) -> int:
    (kind,) = to_dict(run.config)["bridge"]["bottleneck"]
    return 16 + 8 + 4 + 1 + -(-6 * BITS[kind] // 8)


def test_bytes_of_codes_read_like_the_direct_path(run: Run) -> None:
    loaded = api.Bridge.load(run.run_dir)
    facts, answers = FactsRows("eval", 0, 2, 60), set()
    for example in (facts[i][0] for i in range(3)):
        sent = loaded.encode(example.context)
        assert len(sent) == wire.bytes_of(loaded.setting.bridge, 6) == own_bytes(run)
        whole = loaded.encode(example.context, codec="float32")
        assert len(whole) == wire.nbytes(6, 12, "float32")
        direct = wire.from_bytes(whole)
        np.testing.assert_array_equal(slots_of(loaded, sent), direct.latent.slots)
        answer = loaded.answer(sent, example.question)
        assert answer == loaded.answer(whole, example.question)
        answers.add(answer)
    assert len(answers) > 1
    with pytest.raises(UserError, match="unknown codec 'int3'"):
        loaded.encode("Ada keeps 7 goats.", codec="int3")


def slots_of(loaded: api.Bridge, sent: bytes) -> np.ndarray:
    """The slots that the receiving side makes of the codes."""
    levels = bridge.levels_of(loaded.setting.bridge)
    codes = jax.tree.map(jnp.asarray, wire.from_bytes(sent, levels).latent)
    made = jax.jit(bridge.from_wire, static_argnums=(0, 1))(
        loaded.setting.bridge, loaded.setting.dims, loaded.trained.params, codes
    )
    return np.asarray(made.slots)


def test_the_latent_is_sent_at_other_precisions_as_well(run: Run) -> None:
    cfg = run.config.stages["test"].evaluate
    assert cfg is not None
    evaluate.run(run, "test", cfg)
    metrics = json.loads((run.run_dir / "metrics.json").read_text())
    found = metrics["receivers"][RECEIVER]
    assert list(found) == ["deranged", "latent_float32", "latent_int4"]
    assert found["latent_float32"]["nll"] != found["latent_int4"]["nll"]
    assert abs(found["latent_float32"]["nll"] - found["latent_int4"]["nll"]) < 1
    packed = metrics["compression"]["latent"]
    assert packed["sent_as"] == "codes"
    assert found["deranged"]["wire_bytes"] == packed["bytes"]["codes"] == own_bytes(run)
    for name in cfg.wire:
        assert found[f"latent_{name}"]["wire_bytes"] == packed["bytes"][name]
        assert packed["bytes"][name] == wire.nbytes(6, 12, name)


def test_methods_at_other_precisions_come_after_the_latent() -> None:
    named = methods_of(EvaluateConfig(methods=("text", "latent"), wire=("int8", "int4")))
    assert named[:4] == ["text", "latent", "latent_int8", "latent_int4"]
    assert set(named[4:]) == set(CONTROLS)
    with pytest.raises(UserError, match="unknown codec 'int5'"):
        EvaluateConfig(wire=("int5",))
