"""The step that the doctor compiles is the step that training takes."""

from __future__ import annotations

from typing import Any

import chex
import jax
import pytest

from lw_jax.config.parse import read
from lw_jax.errors import UserError
from lw_jax.launch import main
from lw_jax.runs import abstract, doctor
from lw_jax.stages import train
from tests.config.conftest import Write

OPTIONS: dict[str, Any] = {
    "bridge.compressor.perceiver.slots": 12,
    "bridge.compressor.perceiver.ratios": [4, 8],
    "bridge.bottleneck": {"vq": {"codes": 8}},
    "objectives.batch_diversity": {"weight": 0.1, "schedule": {"start": 2}},
    "stages.fit.train.accumulate": 2,
    "stages.fit.train.curriculum": [{"share": 0.5, "ratio": 4}, {"share": 0.5}],
    "stages.fit.train.train_only": ["readers", "compressor"],
    "stages.fit.train.latent_keep": {},
    "stages.fit.train.scheduled_sampling": {},
    "stages.fit.train.eval_every": 0,
}


def test_doctor_and_training_make_the_same_step(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[Any, ...]] = []

    def seen(cfg: Any, bridge: Any, optimiser: Any, mesh: Any, plan: Any, **more: Any) -> Any:
        made.append((cfg, bridge.config, optimiser, mesh, plan, more))
        raise UserError("seen")

    monkeypatch.setattr(abstract, "make_step", seen)
    monkeypatch.setattr(train, "make_step", seen)
    path = write(**OPTIONS)
    doctor.examine(read(path))
    assert main(["--config", str(path)]) == 2
    (cfg, config, optimiser, mesh, plan, more), (same, *others, again) = made
    assert cfg == same
    assert [config, mesh, plan] == [others[0], others[2], others[3]]
    assert more["ratio"] == again["ratio"] == 4
    chex.assert_trees_all_equal(more["trained"], again["trained"])
    assert not any(jax.tree.leaves(more["trained"]["bridge"]["bottleneck"]))
    params = jax.tree.map(lambda _: jax.numpy.zeros((2, 2)), more["trained"])
    chex.assert_trees_all_equal(optimiser.init(params), others[1].init(params))
