"""A PCA from end to end: fitted by a calibrate stage, frozen in training, carried by an export."""

from __future__ import annotations

import json
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from lw_jax.config.parse import read
from lw_jax.data.load import load_rows, sample
from lw_jax.launch import main
from lw_jax.mesh import make_mesh
from lw_jax.runs import export, exported
from lw_jax.runs.session import open_pipeline
from lw_jax.stages.calibrate import path_of
from lw_jax.train.checkpoint import load_params
from lw_jax.train.loop import checkpoint_root
from tests.tiny.killed import killed_after
from tests.tiny.models import write_model

WIDTH = 16
TWO_TAPS = f"{{hidden_states: {{layers: [0, 2], pca: {{components: {WIDTH}, whiten: true}}}}}}"
PER_TOKEN = "{embeddings: {pca: {components: 4}}}"
CONFIG = """
name: tiny
mesh: {{data: 1}}
sender: {{path: {home}/model, dtype: float32}}
receivers:
  reader: {{path: {home}/model, dtype: float32}}
data:
  facts: {{levels: [1, 2], size: 40, eval_size: 8}}
layout: {{max_tokens: 48}}
bridge:
  latent_dim: 4
  source: {source}
  compressor: {{tokens: {{linear: false}}}}
  reader: {{soft_tokens: {{hidden: plain_mlp, input_norm: false, conditioning: scale}}}}
objectives:
  slot_alignment: {{distance: cosine, mse_weight: 0.1}}
stages:
"""
MEASURE = """  measure:
    calibrate: {rows: 22, batch_size: 8}
"""
FIT = """  fit:
    train: {steps: 2, batch_size: 4, optimiser: {name: adamw, lr: 0.1}, ema: 0.5, eval_every: 0}
"""
REPORT = """  report:
    evaluate: {rows: 4, batch_size: 4, bootstrap: 40, methods: [latent, pca]}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and configs: that measures two of its taps, that runs the per-token wire, and that
    runs it without measuring."""
    home = tmp_path_factory.mktemp("models")
    write_model(home / "model", "mistral", width=WIDTH)
    two, one = (CONFIG.format(home=home, source=source) for source in (TWO_TAPS, PER_TOKEN))
    (home / "taps.yaml").write_text(two + MEASURE)
    (home / "wire.yaml").write_text(one + MEASURE + FIT)
    (home / "report.yaml").write_text(one + MEASURE + FIT + REPORT)
    (home / "bare.yaml").write_text(one + FIT)
    return home


def launch(home: Path, run_dir: Path, config: str, *flags: str) -> int:
    return main(["--config", str(home / config), f"--run_dir={run_dir}", *flags])


def arrays(run_dir: Path) -> dict[str, np.ndarray]:
    with np.load(path_of(run_dir, "measure")) as file:
        return {k: x for k, x in file.items() if k != "identity"}


@pytest.fixture(scope="module")
def undisturbed(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "undisturbed"
    assert launch(home, run_dir, "taps.yaml") == 0
    return run_dir


def test_the_covariance_is_numpys_over_all_tokens(home: Path, undisturbed: Path) -> None:
    config = read(home / "taps.yaml")
    pipeline = open_pipeline(config, make_mesh(config.mesh))
    groups = [group[:1] for group in sample(load_rows(config.data, "train", config.seed), 22)]
    batch = pipeline.collate(groups)(groups)
    views = jax.jit(pipeline.bridge.extract)(pipeline.frozen.sender, batch, None)
    taps = np.asarray(views["source"].states)
    skip, lengths = batch["source/skip"], batch["source/lengths"]
    x = np.concatenate([taps[:, i, skip[i] : lengths[i]] for i in range(22)], axis=1)
    found = arrays(undisturbed)
    assert found["source/tokens"] == x.shape[1]
    directions, variances = found["source/directions"], found["source/variances"]
    assert directions.dtype == variances.dtype == np.float64
    for tap in range(2):
        whole = np.cov(x[tap].astype(np.float64).T, bias=True)
        assert (np.diff(variances[tap]) <= 0).all()
        rebuilt = directions[tap] * variances[tap] @ directions[tap].T
        np.testing.assert_allclose(rebuilt, whole, atol=1e-5 * whole.max())


def test_a_killed_stage_ends_with_the_same_pca(
    home: Path,
    undisturbed: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with killed_after("measure.part.npz", 2):
        launch(home, tmp_path / "run", "taps.yaml")
    assert launch(home, tmp_path / "run", "taps.yaml") == 0
    said = capsys.readouterr().out
    assert "resumed after row 16 of 22" in said
    assert "pca: 16 of 16 directions hold 100.0%, 100.0% of the source's variance" in said
    chex.assert_trees_all_equal(arrays(tmp_path / "run"), arrays(undisturbed))


@pytest.fixture(scope="module")
def trained(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "trained"
    assert launch(home, run_dir, "wire.yaml") == 0
    return run_dir


def test_training_and_export_leave_what_was_fitted(
    home: Path, trained: Path, tmp_path: Path
) -> None:
    found = arrays(trained)
    fitted = {
        "mean": found["source/mean"],
        "directions": found["source/directions"],
        "deviations": np.sqrt(found["source/variances"][:, :4]),
    }
    fitted = {k: x.astype(np.float32) for k, x in fitted.items()}
    config = read(home / "wire.yaml")
    pipeline = open_pipeline(config, make_mesh(config.mesh), trained, rows=False)
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one),
        jax.eval_shape(pipeline.bridge.init, jax.random.key(0)),
    )
    params, _ = load_params(checkpoint_root(trained, "fit"), {"bridge": like}, part="bridge")
    chex.assert_trees_all_equal(params["bridge"]["source"]["pca"]["statistics"], fitted)
    assert export.main([str(trained), str(tmp_path)]) == 0
    shipped = load_file(tmp_path / exported.WEIGHTS)
    for name, value in fitted.items():
        np.testing.assert_array_equal(shipped[f"source/pca/statistics/{name}"], value)


@pytest.mark.slow
def test_the_wire_has_a_column_for_every_token(home: Path, tmp_path: Path) -> None:
    assert launch(home, tmp_path / "run", "report.yaml") == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    methods = metrics["receivers"]["reader"]
    packed = metrics["compression"]["receivers"]["reader"]
    assert packed["columns"] == packed["receiver_tokens"]
    assert methods["latent"]["disagreements"] == methods["pca"]["disagreements"] == 0
    # of embeddings of 16 channels there are 16 directions and a mean
    assert methods["pca"]["columns"] == WIDTH + 1 < methods["latent"]["columns"]
    assert methods["pca"]["wire_bytes"] == (WIDTH + 1) * WIDTH * 4


@pytest.mark.parametrize(
    ("config", "flag", "said"),
    [
        (
            "wire",
            "--bridge.source.embeddings.pca.components=17",
            "error: bridge.source.embeddings.pca.components: 17 are more than the sender's width "
            "of 16; use at most 16\n",
        ),
        (
            "wire",
            "--bridge.source={hidden_states: {pca: {components: 17}}}",
            "error: bridge.source.hidden_states.pca.components: 17 are more than the sender's width"
            " of 16; use at most 16\n",
        ),
        (
            "bare",
            "--seed=1",
            "error: bridge.source.embeddings.pca: stages.fit starts without statistics; put a stage"
            " with `calibrate: {}` before it, or init_from a bridge that has them\n",
        ),
        (
            "wire",
            "--bridge.source.embeddings.normaliser={}",
            "error: bridge.source.embeddings.pca: it centres and scales the states itself, and its "
            "components are no channels that a normaliser could colour; set one of the two\n",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    home: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    config: str,
    flag: str,
    said: str,
) -> None:
    assert launch(home, tmp_path / "run", f"{config}.yaml", flag) == 2
    assert capsys.readouterr().err == said
    assert not (tmp_path / "run").exists()
