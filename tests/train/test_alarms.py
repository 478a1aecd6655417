"""Alarms fire where their fault is, by the step they promise, and keep still where all is well."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lw_jax.bottlenecks import fsq
from lw_jax.bridge.bridge import Bridge
from lw_jax.bridge.config import (
    BottleneckConfig,
    BridgeConfig,
    CompressorConfig,
    ReaderConfig,
    SourceConfig,
)
from lw_jax.compressors import perceiver
from lw_jax.mesh import MeshConfig, make_mesh
from lw_jax.models.dims import BridgeDims, ModelDims
from lw_jax.objectives import (
    answer_ce,
    bag_of_words,
    batch_diversity,
    code_unique,
    code_variance,
    cosine_reconstruction,
    embedding_anchor,
    scale_l2,
)
from lw_jax.objectives.config import ObjectivesConfig
from lw_jax.pipeline import Pipeline
from lw_jax.readers import soft_tokens
from lw_jax.sources import hidden_states
from lw_jax.text.layout_config import LayoutConfig
from lw_jax.train import alarms
from lw_jax.train.alarms import FAULTS, Alarm
from lw_jax.train.loop import Evaluation
from lw_jax.train.monitor import QuickEvaluation
from lw_jax.train.plan import init_heads
from lw_jax.train.state import TrainState, new_state
from lw_jax.utils.schedule import Schedule
from tests.tiny.receiver import LAYOUT, groups, model, models_of, text_tokenizer

STEPS = 100
WELL = {"usage": 1.0, "perplexity": 7.0, "distinct": 0.9}
SAME = {"usage": 0.125, "perplexity": 1.1, "distinct": 1 / 32}
BIG_VQ = {"usage": 0.18, "perplexity": 600.0, "distinct": 0.98}
DEAD_VQ = {"usage": 0.0005, "perplexity": 1.9, "distinct": 0.003}


@pytest.mark.parametrize(
    ("name", "raised", "still"),
    [
        ("loudness", lambda: alarms.loudness("r", 33), lambda: alarms.loudness("r", 2.9)),
        ("loudness", lambda: alarms.loudness("r", 0.1), lambda: alarms.loudness("r", 0.4)),
        ("saturation", lambda: alarms.saturation("r", 0.5), lambda: alarms.saturation("r", 0.04)),
        (
            "dead_objective",
            lambda: alarms.dead_objectives({"answer_ce": 1.0, "embedding_anchor": 1e-7}),
            lambda: alarms.dead_objectives({"answer_ce": 1.0, "embedding_anchor": 1e-3}),
        ),
        (
            "dead_objective",
            lambda: alarms.dead_objectives({"code_unique": 0.0}),
            lambda: alarms.dead_objectives({}),
        ),
        (
            "detached_head",
            lambda: alarms.detached_heads({"bag_of_words": 1.0}, {"bag_of_words": 0.0}),
            lambda: alarms.detached_heads(
                {"bag_of_words": 1.0, "vq": 0.0}, {"bag_of_words": 0.1, "vq": 0.0}
            ),
        ),
        (
            "ignored_latent",
            lambda: alarms.ignored_latent("r", (2.0, 2.01), (0.1, 0.1), alarms.LATE),
            lambda: alarms.ignored_latent("r", (2.0, 2.1), (0.1, 0.1), 1.0),
        ),
        (  # the text stands beside the latent: 2 % of next to nothing is chance
            "ignored_latent",
            lambda: alarms.ignored_latent("r", (1e-5, 2e-5), (1.0, 1.0), 1.0),
            lambda: alarms.ignored_latent("r", (1e-5, 2e-2), (1.0, 1.0), 1.0),
        ),
        (
            "pooled",
            lambda: alarms.pooled("r", 0.99, 4, 0.5, alarms.EARLY),
            lambda: alarms.pooled("r", 0.9, 4, 0.1, 1.0),
        ),
        (
            "pooled",
            lambda: alarms.pooled("r", 0.1, 4, 0.001, 1.0),
            lambda: alarms.pooled("r", 1.0, 1, 0.1, 1.0),  # one slot is like itself
        ),
        (
            "collapse",
            lambda: alarms.collapse("r", (0.05, 1.0), (0.3, 0.1), alarms.EARLY),
            lambda: alarms.collapse("r", (0.05, 0.1), (0.3, 0.1), 1.0),
        ),
        (
            "collapse",
            lambda: alarms.collapse("r", (0.9, 1.0), (0.95, 0.4), alarms.EARLY),
            lambda: alarms.collapse("r", (0.9, 1.0), (0.95, 0.6), 1.0),  # the answers do, too
        ),
        (
            "codebook_collapse",
            lambda: alarms.codebook_collapse(SAME, (8, 8), 32, 4, alarms.EARLY),
            lambda: alarms.codebook_collapse(WELL, (8, 8), 32, 4, 1.0),
        ),
        (
            "codebook_collapse",
            lambda: alarms.codebook_collapse(DEAD_VQ, (4096,), 128, 6, 1.0),
            lambda: alarms.codebook_collapse(BIG_VQ, (4096,), 128, 6, 1.0),
        ),
        (
            "blind_flow",
            lambda: alarms.blind_flow("r", 1.0, 1.001, alarms.LATE),
            lambda: alarms.blind_flow("r", 1.0, 1.2, 1.0),
        ),
    ],
)
def test_figures_raise_it_or_do_not(
    name: str, raised: Callable[[], Iterable[Alarm]], still: Callable[[], Iterable[Alarm]]
) -> None:
    (alarm,) = raised()
    assert alarm.name == name
    fault = FAULTS[name]
    assert str(alarm).startswith(f"ALARM {name}: " if fault is None else f"ALARM {name} (fault")
    assert not list(still())


def test_a_bridge_that_has_not_learned_yet_is_not_accused() -> None:
    assert not list(alarms.ignored_latent("r", (2.0, 2.0), (0.0, 0.0), 0.24))
    assert not list(alarms.pooled("r", 1.0, 4, 0.0, 0.09))
    assert not list(alarms.collapse("r", (0.0, 1.0), (1.0, 0.1), 0.09))
    assert not list(alarms.codebook_collapse(SAME, (8, 8), 32, 4, 0.09))
    assert not list(alarms.blind_flow("r", 1.0, 1.0, 0.24))


CONFIG = BridgeConfig(
    latent_dim=8,
    source=SourceConfig(hidden_states=hidden_states.Config(layers=(0, 2))),
    compressor=CompressorConfig(perceiver=perceiver.Config(slots=4, width=16, heads=2, depth=1)),
    bottleneck=BottleneckConfig(fsq=fsq.Config(levels=(8,) * 6)),
    reader=ReaderConfig(soft_tokens=soft_tokens.Config(conditioning="tanh")),
)
DIMS = BridgeDims(24, 2, 8, {"r": ModelDims(24, 2, 2, 6, 0.3)}, source_vocab=320)
GOOD = ObjectivesConfig(
    answer_ce=answer_ce.Config(),
    batch_diversity=batch_diversity.Config(),
    bag_of_words=bag_of_words.Config(),
    code_variance=code_variance.Config(),
    scale_l2=scale_l2.Config(of="scale"),
)
BAD = ObjectivesConfig(
    batch_diversity=batch_diversity.Config(),
    embedding_anchor=embedding_anchor.Config(weight=1e-6),
    bag_of_words=bag_of_words.Config(head_input="pre_scale"),
    code_unique=code_unique.Config(),
    cosine_reconstruction=cosine_reconstruction.Config(weight=0.0, head="linear"),
    code_variance=code_variance.Config(schedule=Schedule(start=STEPS)),
)


@cache
def pipeline() -> Pipeline:
    return Pipeline(
        layout=LAYOUT,
        bridge=Bridge(CONFIG, DIMS),
        frozen=models_of(model("llama")),
        sources=text_tokenizer("llama"),
        receivers={"r": text_tokenizer()},
        fingerprints={},
        mesh=make_mesh(MeshConfig(data=1)),
    )


@cache
def watch(objectives: Any = None) -> QuickEvaluation:
    return QuickEvaluation(pipeline(), groups(16), objectives, STEPS, 8, max_new=2)


def test_fewer_rows_than_devices_are_filled_up_with_rows_that_do_not_count() -> None:
    several = replace(pipeline(), mesh=make_mesh(MeshConfig()))
    watch = QuickEvaluation(several, groups(3), None, STEPS, 8, max_new=2)
    devices = len(jax.devices())
    assert devices == 8
    valid = np.asarray(watch.batch["valid"])
    assert valid.tolist() == [True] * 3 + [False] * 5
    assert watch.batch["source/ids"].shape[0] == devices


@cache
def params() -> Any:
    own = jax.device_get(jax.jit(Bridge(CONFIG, DIMS).init)(jax.random.key(0)))
    # Codes that are spread: a fresh bridge uses the middle ones only.
    own["bottleneck"] = jax.tree.map(lambda x: 6 * x, own["bottleneck"])
    return own


def seen(objectives: Any = None, step: int = 1, **changes: Any) -> Evaluation:
    """The quick evaluation of a bridge some of whose parts are changed: name -> f(leaf)."""
    own = dict(params())
    for part, change in changes.items():
        own[part] = jax.tree.map(change, own[part])
    heads = {} if objectives is None else init_heads(objectives, DIMS, jax.random.key(1))
    tree = jax.tree.map(jnp.asarray, {"bridge": own, "heads": heads})
    state = new_state(tree, optax.identity(), jax.random.key(2))
    assert isinstance(state, TrainState)
    return watch(objectives)(state, step)


def fired(result: Evaluation) -> set[str]:
    return {key.removeprefix("alarm/") for key in result.metrics if key.startswith("alarm/")}


def test_a_fresh_bridge_raises_nothing_at_once() -> None:
    result = seen(GOOD)
    assert fired(result) == set()
    assert "alarms" not in result.metrics
    for key in ("slots/nearest_cosine", "slots/within_cosine", "first_top5", "first_entropy"):
        assert np.isfinite(result.metrics[f"r/{key}"])
    assert 0 < result.metrics["r/slots/rms_ratio"] < 1
    assert 0 <= result.metrics["r/empty"] <= 1
    assert "r/final" not in result.metrics  # answers are no solutions
    assert [type(text) for text in result.metrics["r/slots/spelled"]] == [str] * 4
    assert any(line.startswith("  nearest tokens: ") for line in result.samples)
    norms = {k: v for k, v in result.metrics.items() if k.startswith("grad_norm/objective/")}
    assert len(norms) == 5
    assert {k.split("/")[-1] for k, norm in norms.items() if norm == 0} == {"scale_l2"}


def test_what_is_written_is_scored_as_the_task_asks() -> None:
    """Of solutions the final number, of long answers their entities, of all what is empty."""
    rows = [
        (replace(g[0], answers=(f"Ada has {i} goats and Bo has 9 cats. #### {i}",)),)
        for i, g in enumerate(groups(4), 11)
    ]
    quick = replace(watch(), groups=rows, ends_in_number=True)
    tokenizer = pipeline().receivers["r"]
    written = [tuple(tokenizer.encode(" " + row[0].answers[0])) for row in rows]
    found = quick._of_written("r", written)
    assert found["final"] == found["entities"] == 1.0
    assert found["empty"] == 0.0
    wrong = quick._of_written("r", [*written[:1], (), (), ()])
    assert (wrong["final"], wrong["empty"], wrong["failed"]) == (0.25, 0.75, 0.75)
    assert wrong["numbers"] == 0.25


def test_what_holds_the_scale_is_no_dead_objective_and_pulls_once_it_moves() -> None:
    result = seen(GOOD, readers=lambda x: x + 0.5 if x.ndim == 0 else x)
    assert "dead_objective" not in fired(result)
    assert result.metrics["grad_norm/objective/scale_l2"] > 1e-3


def test_objectives_that_move_nothing_are_named() -> None:
    """Faults 8 and 9: an anchor too faint, a count without gradient; fault 14: a detached head."""
    result = seen(BAD)
    assert fired(result) == {"dead_objective", "detached_head"}
    dead = [line for line in result.metrics["alarms"] if "dead_objective" in line]
    assert [line.split(": ")[1].split()[0] for line in dead] == ["code_unique", "embedding_anchor"]
    (head,) = [line for line in result.metrics["alarms"] if "detached_head" in line]
    assert "bag_of_words moves the latent" in head
    assert set(result.metrics["alarms"]) <= set(result.samples)
    assert result.metrics["grad_norm/objective/code_unique"] == 0


def test_slots_that_are_too_loud_and_saturated() -> None:
    """Faults 7 and 10: nothing bounds what goes into tanh, nor the scale after it."""
    result = seen(readers=lambda x: x + np.log(100).astype(np.float32) if x.ndim == 0 else 50 * x)
    assert fired(result) == {"loudness", "saturation"}
    assert result.metrics["r/slots/rms_ratio"] > 30
    assert result.metrics["r/saturation"] > 0.5


def test_one_vector_for_every_text() -> None:
    """Faults 15, 16 and 20: a bridge whose latent is the same whatever it reads."""
    result = seen(step=25, compressor=lambda x: 0 * x)
    late = {"ignored_latent", "pooled", "codebook_collapse"}
    assert fired(result) == late | {"loudness"}  # and it says nothing
    assert result.metrics["r/codes/distinct"] == pytest.approx(1 / 64)
    assert fired(seen(step=9, compressor=lambda x: 0 * x)) == {"loudness"}


def test_one_output_for_every_text_whatever_the_answers_lengths() -> None:
    """Fault 17: argmaxes along gold answers of several lengths would be several "predictions"."""
    blind = replace(pipeline(), layout=LayoutConfig(question=""))
    own = {**params(), "compressor": jax.tree.map(lambda x: 0 * x, params()["compressor"])}
    tree = jax.tree.map(jnp.asarray, {"bridge": own, "heads": {}})
    rows = groups(16)
    assert len({len(group[0].answers[0]) for group in rows}) > 4
    result = QuickEvaluation(blind, rows, None, STEPS, 8, max_new=2)(
        new_state(tree, optax.identity(), jax.random.key(2)), 10
    )
    assert result.metrics["r/distinct"] == 1 / 16
    assert "collapse" in fired(result)
