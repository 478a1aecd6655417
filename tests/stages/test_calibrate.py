"""The calibrate stage: its numbers, its file, and what happens when it is stopped or misused."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import chex
import jax
import numpy as np
import pytest
from rich.console import Console

from lw_jax.config.parse import read
from lw_jax.data.load import load_rows, sample
from lw_jax.errors import UserError
from lw_jax.launch import main
from lw_jax.mesh import make_mesh
from lw_jax.pipeline import Pipeline
from lw_jax.runs import statistics
from lw_jax.runs.directory import Run
from lw_jax.runs.session import open_pipeline
from lw_jax.stages import train
from lw_jax.stages.calibrate import combine, moments, path_of
from lw_jax.train.checkpoint import load_params
from lw_jax.utils import files
from lw_jax.utils.registry import chosen
from tests.tiny.models import write_model

CONFIG = """
name: tiny
mesh: {{data: 1}}
sender: {{path: {home}/sender, dtype: float32}}
receivers:
  reader: {{path: {home}/reader, dtype: float32}}
data:
  facts: {{levels: [1, 2], size: 40, eval_size: 8}}
layout: {{max_tokens: 48}}
bridge:
  latent_dim: 8
  source: {{hidden_states: {{layers: [0, 2], normaliser: {{trainable: true}}}}}}
  compressor: {{perceiver: {{slots: 4, width: 16, heads: 2, depth: 1}}}}
  reader: {{soft_tokens: {{}}}}
objectives:
  answer_ce: {{weight: 1.0}}
stages:
  measure:
    calibrate: {{rows: 22, batch_size: 8}}
{stages}
"""
TRAIN = """
  fit:
    train: {steps: 3, batch_size: 4, optimiser: {name: muon, lr: 0.1}, ema: 0.5, eval_every: 0}
"""


def test_batches_combine_to_the_whole():
    rng, of = np.random.default_rng(0), jax.jit(moments)
    x = (rng.normal(size=(2, 12, 5, 3)) * 4 + 100).astype(np.float32)
    mask = rng.random((12, 5)) < 0.7
    mask[8:] = False  # a batch without a real token changes nothing
    found = None
    for start in range(0, 12, 4):
        part = of(x[:, start : start + 4], mask[start : start + 4])
        found = combine(found, jax.device_get(part))
    assert found is not None
    count, mean, squares = found
    kept = x.astype(np.float64)[:, mask]
    assert count == kept.shape[1] == mask.sum()
    np.testing.assert_allclose(mean, kept.mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(np.sqrt(squares / count), kept.std(axis=1), rtol=1e-4)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, and a config that measures them."""
    home = tmp_path_factory.mktemp("models")
    write_model(home / "sender", "llama")
    write_model(home / "reader", "mistral", vocab=290, width=24)
    (home / "tiny.yaml").write_text(CONFIG.format(home=home, stages=""))
    (home / "train.yaml").write_text(CONFIG.format(home=home, stages=TRAIN))
    return home


def launch(home: Path, run_dir: Path, config: str = "tiny.yaml") -> int:
    return main(["--config", str(home / config), f"--run_dir={run_dir}"])


@pytest.fixture(scope="module")
def undisturbed(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "undisturbed"
    assert launch(home, run_dir) == 0
    return run_dir


def arrays(run_dir: Path) -> dict[str, np.ndarray]:
    with np.load(path_of(run_dir, "measure")) as file:
        return {k: x for k, x in file.items() if k != "identity"}


@pytest.fixture(scope="module")
def pipeline(home: Path) -> Pipeline:
    config = read(home / "train.yaml")
    return open_pipeline(config, make_mesh(config.mesh))


def test_numbers_are_those_of_all_tokens_at_once(
    home: Path, undisturbed: Path, pipeline: Pipeline
) -> None:
    config = read(home / "tiny.yaml")
    groups = [group[:1] for group in sample(load_rows(config.data, "train", config.seed), 22)]
    batch = pipeline.collate(groups)(groups)
    views = jax.jit(pipeline.bridge.extract)(pipeline.frozen.sender, batch, None)
    taps = views["source"].states
    table = np.asarray(pipeline.frozen.receivers["reader"].params["embed"])
    lengths, skip = batch["source/lengths"], batch["source/skip"]
    assert 0 == lengths.min() < skip.max(), "a row that is too long counts for nothing"
    assert len(set(lengths.tolist())) > 2, "rows of one length would hide padding"
    states, embeds = [], []
    for i in range(len(groups)):
        states.append(np.asarray(taps)[:, i, skip[i] : lengths[i]])
        ids = batch["reader/context/ids"][i, : batch["reader/context/lengths"][i]]
        embeds.append(table[None, ids])
    found = arrays(undisturbed)
    for key, parts in (("source", states), ("reader", embeds)):
        x = np.concatenate(parts, axis=1).astype(np.float64)
        assert found[f"{key}/tokens"] == x.shape[1]
        np.testing.assert_allclose(found[f"{key}/mean"], x.mean(axis=1), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found[f"{key}/std"], x.std(axis=1), rtol=1e-4)


@pytest.mark.parametrize("written", [False, True], ids=["while writing", "after writing"])
def test_a_killed_stage_ends_with_the_same_numbers(
    home: Path,
    undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    written: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    move, moved = os.replace, []

    class Killed(BaseException):
        """Stands for `kill -9`: nothing catches it."""

    def kill(source: Any, target: Any) -> None:
        if Path(target).name == "measure.part.npz":
            moved.append(target)
            if len(moved) == 2:
                if written:
                    move(source, target)
                raise Killed
        move(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", kill)
        with pytest.raises(Killed):
            launch(home, tmp_path / "run")
    assert not path_of(tmp_path / "run", "measure").exists()
    assert launch(home, tmp_path / "run") == 0
    assert f"resumed after row {16 if written else 8} of 22" in capsys.readouterr().out
    chex.assert_trees_all_equal(arrays(tmp_path / "run"), arrays(undisturbed))
    assert [p.name for p in (tmp_path / "run" / "calibration").iterdir()] == ["measure.npz"]


def test_sigterm_keeps_what_is_gathered(
    home: Path,
    undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save = statistics.save_part

    def save_and_stop(*args: Any) -> None:
        save(*args)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(statistics, "save_part", save_and_stop)
        assert launch(home, tmp_path / "run") == 128 + signal.SIGTERM
    assert "stopped after row 8: run the same command again" in capsys.readouterr().out
    assert launch(home, tmp_path / "run") == 0
    chex.assert_trees_all_equal(arrays(tmp_path / "run"), arrays(undisturbed))


def test_statistics_of_other_models_are_refused(
    home: Path, undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = path_of(undisturbed, "measure")
    with np.load(path) as file:
        identity = json.loads(str(file["identity"]))
    assert statistics.load(path, identity).keys() == arrays(undisturbed).keys()
    other = identity | {"fingerprints": identity["fingerprints"] | {"sender": "abc@2"}}
    with pytest.raises(UserError, match=r"fingerprints\.sender .* now it is 'abc@2'"):
        statistics.load(path, other)
    with pytest.raises(UserError, match="no statistics"):
        statistics.load(tmp_path / "none.npz", identity)
    (tmp_path / "torn.npz").write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match="damaged"):
        statistics.load(tmp_path / "torn.npz", identity)
    # half gathered with one model, gone on with another
    copy = tmp_path / "run"
    shutil.copytree(undisturbed, copy)
    (copy / "finished.json").unlink()
    found = statistics.load_part(path, identity)
    statistics.save_part(path_of(copy, "measure"), found[0], 8, other)
    assert launch(home, copy) == 2
    assert "measured with fingerprints.sender 'abc@2'" in capsys.readouterr().err


def check_filled(own: Any, found: dict[str, np.ndarray]) -> None:
    """A normaliser holds the measured statistics to the last bit."""
    for name in ("mean", "std"):
        exact = found[f"source/{name}"].astype(np.float32)
        np.testing.assert_array_equal(own["statistics"][f"source_{name}"], exact)
    whole = found["reader/mean"].mean()
    np.testing.assert_allclose(own["statistics"]["target_mean"], whole, rtol=1e-6)


def test_fresh_parameters_carry_them(home: Path, undisturbed: Path, pipeline: Pipeline) -> None:
    config = read(home / "train.yaml")
    run = Run(config, undisturbed, pipeline.mesh, Console(), undisturbed)
    (cfg,) = chosen(config.stages["fit"]).values()
    params = train.start_params(run, "fit", cfg, pipeline, jax.random.key(0))
    check_filled(params["source"]["normaliser"], arrays(undisturbed))
    others = replace(pipeline, fingerprints=pipeline.fingerprints | {"reader": "abc"})
    with pytest.raises(UserError, match=r"fingerprints\.reader .* now it is 'abc'"):
        train.start_params(run, "fit", cfg, others, jax.random.key(0))


@pytest.mark.slow  # tests/sources/test_normaliser.py takes optimiser steps without models
def test_training_leaves_them(home: Path, pipeline: Pipeline, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert launch(home, run_dir, "train.yaml") == 0
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one),
        jax.eval_shape(pipeline.bridge.init, jax.random.key(0)),
    )
    params, meta = load_params(run_dir / "checkpoints" / "fit", {"bridge": like}, part="bridge")
    assert meta["step"] == 3
    own = params["bridge"]["source"]["normaliser"]
    check_filled(own, arrays(run_dir))
    assert np.isfinite(own["gain"]).all()
    assert not (np.asarray(own["gain"]) == 1.0).all()


def test_a_bridge_without_statistics_is_refused(home: Path, tmp_path: Path) -> None:
    text = (home / "train.yaml").read_text()

    def refused(match: str, *changes: tuple[str, str]) -> None:
        changed = text
        for old, new in changes:
            assert old in changed
            changed = changed.replace(old, new)
        (tmp_path / "wrong.yaml").write_text(changed)
        with pytest.raises(UserError, match=match):
            read(tmp_path / "wrong.yaml")

    measure = "  measure:\n    calibrate: {rows: 22, batch_size: 8}\n"
    key = r"bridge\.source\.hidden_states\.normaliser"
    refused(f"{key}: stages.fit starts without statistics", (measure, ""))
    refused(f"{key}: stages.fit starts", (measure, ""), (TRAIN, TRAIN + measure))  # too late
    refused(f"{key}.target: 'eve' is no receiver", ("{trainable: true}", "{target: eve}"))
    other = f"steps: 3, init_from: {tmp_path}, init_only: [compressor]"  # they stay behind there
    refused(f"{key}: stages.fit starts without", (measure, ""), ("steps: 3", other))
    # another run's bridge brings its own
    (tmp_path / "right.yaml").write_text(
        text.replace(measure, "").replace("steps: 3", f"steps: 3, init_from: {tmp_path}")
    )
    assert read(tmp_path / "right.yaml").stages.keys() == {"fit"}
