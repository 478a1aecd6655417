"""Bridges that have a fault of docs/faults.md are trained until its alarm fires.

Each takes a few steps on eight texts, and is looked at as a run is. The receiver is a random one
with a table as quiet as the earlier systems measured theirs, or tiny-mistral where it has to read.
Beside every fault stands the same bridge without it, which does not raise the alarm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import pytest

from lw_jax.bottlenecks import vq
from lw_jax.bridge.bridge import Bridge
from lw_jax.bridge.config import (
    BottleneckConfig,
    BridgeConfig,
    CompressorConfig,
    ReaderConfig,
    SourceConfig,
)
from lw_jax.compressors import window
from lw_jax.data.example import Example
from lw_jax.mesh import MeshConfig, make_mesh, replicated
from lw_jax.models.config import ModelConfig
from lw_jax.models.dims import BridgeDims, ModelDims, sizes
from lw_jax.models.frozen import FrozenDecoder, FrozenModels
from lw_jax.models.spec import open_model
from lw_jax.objectives import answer_ce, embedding_anchor, reconstruction
from lw_jax.objectives import vq as vq_loss
from lw_jax.objectives.config import ObjectivesConfig
from lw_jax.pipeline import Pipeline
from lw_jax.readers import soft_tokens
from lw_jax.sources import embeddings
from lw_jax.text.layout import prompts_of
from lw_jax.text.tokenizer import Tokenizer
from lw_jax.train.alarms import EARLY, LATE
from lw_jax.train.config import TrainConfig
from lw_jax.train.monitor import QuickEvaluation
from lw_jax.train.optimiser import make_optimiser
from lw_jax.train.optimiser_config import OptimiserConfig
from lw_jax.train.plan import init_heads, plan_at
from lw_jax.train.state import new_state
from lw_jax.train.step import make_step
from lw_jax.utils.schedule import Schedule
from tests.tiny.receiver import LAYOUT, groups, model, text_tokenizer

QUIET = 0.0027
"""RMS of the embeddings of the earlier systems' receiver."""
LATENT, ROWS, RATE = 24, 8, 0.05
STEPS, LOOKS = 40, (1, 4, 10)
"""Steps of the stage, and those after which it is looked at: the first, and the shares at which
alarms stop waiting."""
ZOO = Path(__file__).parents[2] / "zoo" / "tiny-mistral"


@dataclass(frozen=True)
class Training:
    """A bridge and what it is trained for; the defaults have no fault.

    window: tokens of one; distance, head_input: of the anchor to the answer's embeddings and of the
    head that reconstructs the source, neither where None; beside: the text that tiny-mistral reads
    beside the latent, which has the answer or has not; None: a random receiver, which reads none.
    """

    window: int = 4
    codebook: vq.Config | None = None
    conditioning: Any = "layer_norm_tanh"
    distance: Any = None
    head_input: Any = None
    beside: Literal["own", "other"] | None = None

    @property
    def config(self) -> BridgeConfig:
        pooling = window.Config(self.window, mode="mean", width=16, heads=2, depth=0)
        wide: Any = "linear" if self.beside else "none"
        reader = soft_tokens.Config(wide, input_norm=False, conditioning=self.conditioning)
        return BridgeConfig(
            latent_dim=LATENT,
            source=SourceConfig(embeddings=embeddings.Config()),
            compressor=CompressorConfig(window=pooling),
            bottleneck=BottleneckConfig(vq=self.codebook),
            reader=ReaderConfig(soft_tokens=reader),
        )

    @property
    def objectives(self) -> Any:
        chosen: dict[str, Any] = {"answer_ce": answer_ce.Config()}
        if self.codebook:
            chosen["vq"] = vq_loss.Config()
        if self.distance:
            chosen["embedding_anchor"] = embedding_anchor.Config(distance=self.distance)
        if self.head_input:
            chosen["reconstruction"] = reconstruction.Config(head_input=self.head_input)
        return ObjectivesConfig(**chosen)


@cache
def receiver(reads: bool) -> tuple[FrozenDecoder, Tokenizer, ModelDims]:
    if reads:
        spec = open_model("r", ModelConfig(str(ZOO), dtype="float32"))
        loaded = spec.load(make_mesh(MeshConfig(data=1), jax.devices()[:1]))
        assert isinstance(loaded, FrozenDecoder)
        tokenizer, made = spec.tokenizer, loaded
    else:
        tokenizer, made = text_tokenizer(), model()
        table = made.params["embed"]
        table = table * (QUIET / jnp.sqrt(jnp.mean(jnp.square(table))))
        made = replace(made, params={**made.params, "embed": table})
    rms = float(jnp.sqrt(jnp.mean(jnp.square(made.params["embed"]))))
    return made, tokenizer, replace(sizes(made.arch), embed_rms=rms)


def rows(beside: str | None) -> list[tuple[Example, ...]]:
    """Eight texts; where one stands beside the latent it comes with the question."""
    if beside is None:
        return groups(ROWS, questions=1)
    plain, found = groups(ROWS, level=1, questions=1), []
    for i, (row,) in enumerate(plain):
        (read,) = plain[i if beside == "own" else i - 1]
        found.append((replace(row, question=f"{read.context}\nQuestion: {row.question}"),))
    return found


@cache
def seen(training: Training) -> Mapping[int, Mapping[str, Any]]:
    """Metrics of the quick evaluations, by step."""
    config, objectives = training.config, training.objectives
    made, tokenizer, loud = receiver(training.beside is not None)
    bridge = Bridge(config, BridgeDims(LATENT, 1, LATENT, {"r": loud}))
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    where = replicated(mesh)
    models = FrozenModels.of(model("llama"), {"r": made}, prompts_of(LAYOUT, {"r": tokenizer}))
    frozen = jax.device_put(models, where)
    layout = replace(LAYOUT, question=" {question}") if training.beside else LAYOUT
    pipeline = Pipeline(layout, bridge, frozen, text_tokenizer("llama"), {"r": tokenizer}, {}, mesh)
    auxiliary = objectives if training.distance or training.head_input else None
    watch = QuickEvaluation(pipeline, rows(training.beside), auxiliary, STEPS, ROWS, max_new=1)
    params = {
        "bridge": jax.jit(bridge.init)(jax.random.key(0)),
        "heads": init_heads(objectives, bridge.dims, jax.random.key(1)),
    }
    optimiser = make_optimiser(OptimiserConfig(lr=RATE, schedule=Schedule()), params, STEPS)
    state = jax.device_put(new_state(params, optimiser, jax.random.key(2)), where)
    step = make_step(TrainConfig(STEPS), bridge, optimiser, mesh, plan_at(objectives, 0))
    found = {}
    for done in range(1, max(LOOKS) + 1):
        state, _ = step(state, frozen, watch.batch)
        if done in LOOKS:
            found[done] = watch(state, done).metrics
    return found


SLOW = pytest.mark.slow
"""Of alarms that have other tests in test_alarms.py."""
MILD = Training(distance="cosine", head_input="delivered")
FAINT = Training(distance="mse", head_input="pre_scale")


@pytest.mark.parametrize(
    ("alarm", "since", "fault", "without"),
    [
        pytest.param(
            "loudness", 1, Training(conditioning="layer_norm"), Training(), id="7: V1's LayerNorm"
        ),
        pytest.param("dead_objective", 1, FAINT, MILD, id="8: V3's squared error", marks=SLOW),
        pytest.param(
            "saturation",
            LATE * STEPS,  # when this learning rate has brought the fault about
            Training(conditioning="tanh"),
            Training(conditioning="layer_norm_tanh"),
            id="10: V7's tanh",
            marks=SLOW,
        ),
        pytest.param("detached_head", 1, FAINT, MILD, id="14: V8's head", marks=SLOW),
        pytest.param(
            "ignored_latent",
            LATE * STEPS,
            Training(conditioning="rms", beside="own"),
            Training(conditioning="rms", beside="other"),
            id="15: an answer that can be copied",
            marks=pytest.mark.slow,  # the only one with a receiver that can read
        ),
        pytest.param(
            "pooled",
            EARLY * STEPS,
            Training(window=1000),
            Training(),
            id="16: one mean of all",
            marks=SLOW,
        ),
        pytest.param(
            "codebook_collapse",
            EARLY * STEPS,
            Training(codebook=vq.Config(64, "l2", revive=None)),
            Training(codebook=vq.Config(64, "l2", revive=2)),
            id="20: V15a's codebook",
            marks=SLOW,
        ),
    ],
)
def test_an_alarm_fires_when_it_promises_and_only_with_its_fault(
    alarm: str, since: float, fault: Training, without: Training
) -> None:
    fired = {step: f"alarm/{alarm}" in metrics for step, metrics in seen(fault).items()}
    assert fired == {step: step >= since for step in LOOKS}, seen(fault)
    assert not any(f"alarm/{alarm}" in metrics for metrics in seen(without).values())
