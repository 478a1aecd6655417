"""`remat: auto`: the least that is computed again among what fits into the device."""

from __future__ import annotations

from dataclasses import replace

import jax
import pytest

from lw_jax.config.parse import read
from lw_jax.launch import main
from lw_jax.mesh import MeshConfig, make_mesh
from lw_jax.runs.abstract import AbstractStep, abstract_step
from lw_jax.runs.doctor import examined
from lw_jax.runs.memory import SHARE, estimate, settled
from lw_jax.train.config import TrainConfig
from tests.config.conftest import Write


@pytest.mark.slow
@pytest.mark.parametrize(
    ("unroll", "ways"), [("never", ("dots", "full")), ("always", ("none", "dots", "full"))]
)
def test_the_first_that_fits(unroll: str, ways: tuple[str, ...], write: Write) -> None:
    both = {"sender.unroll": unroll, "receivers.reader.unroll": unroll}
    seen = examined(read(write(**both)), memory=False)
    train = seen.config.stages["fit"].train
    assert train is not None
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])

    def make(own: TrainConfig) -> AbstractStep:
        return abstract_step(seen.config, own, seen.specs, seen.sizes, mesh)

    auto = replace(train, remat="auto")
    needs = {way: estimate(make(replace(train, remat=way)), 2**40).total for way in ways}  # type: ignore[arg-type]
    for room in (2**40, *(int(need / SHARE) - 2 for need in needs.values())):
        fits = [way for way in ways if needs[way] <= SHARE * room]
        decided, need = settled(auto, make, room)
        assert decided == replace(auto, remat=fits[0] if fits else "full")
        assert need.total == needs[decided.remat]
    assert settled(auto, make, 2**40)[0].remat == ways[0]
    assert needs["dots"] != needs["full"]


@pytest.mark.slow
def test_a_run_says_what_it_decided(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(stages={"fit": {"train": {"steps": 1, "batch_size": 4, "eval_every": 0}}})
    assert main(["--config", str(path), "--stages.fit.train.remat=auto", "--run_dir=run"]) == 0
    assert "remat: auto is dots" in capsys.readouterr().out
    assert main(["--doctor", "--config", str(path), "--stages.fit.train.remat=auto"]) == 0
    assert "auto: dots" in capsys.readouterr().out
