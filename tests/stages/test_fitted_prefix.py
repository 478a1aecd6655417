"""Keys and values of a receiver that a calibrate stage fits in closed form, used as a prefix."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from lw_jax.bridge.config import BridgeConfig, fits, to_be_trained
from lw_jax.config.parse import build, read
from lw_jax.data.load import load_rows, sample
from lw_jax.errors import UserError
from lw_jax.evaluate.methods.base import EvalContext
from lw_jax.launch import main
from lw_jax.mesh import make_mesh
from lw_jax.receiver.rms import keys_and_values, measure_rms
from lw_jax.runs import statistics
from lw_jax.runs.session import open_pipeline
from lw_jax.runs.trained import load_trained
from tests.tiny import receiver
from tests.tiny.models import write_model

WIDTH = 16
CONFIG = """
name: tiny
mesh: {{data: 1}}
sender: {{path: {home}/reader, dtype: float32}}
receivers:
  reader: {{path: {home}/reader, dtype: float32}}
data:
  facts: {{levels: [1, 2], size: 60, eval_size: 8}}
layout: {{max_tokens: 128}}
bridge:
  latent_dim: {width}
  source: {{hidden_states: {{layers: [0, 1], mix: concat}}}}
  compressor: {{tokens: {{linear: false}}}}
  reader: {{fitted_prefix: {{l2: {l2}}}}}
stages:
"""
MEASURE = """  measure:
    calibrate: {rows: 60, batch_size: 8}
"""
REPORT = """  report:
    evaluate:
      rows: 4
      batch_size: 4
      bootstrap: 40
      methods: [text, latent]
      decode: {max_new_tokens: 4}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two layers, and a wire from it to itself that carries the streams before them."""
    home = tmp_path_factory.mktemp("models")
    write_model(home / "reader", "mistral", vocab=290, width=WIDTH)
    config = CONFIG.format(home=home, width=2 * WIDTH, l2=0)
    (home / "same.yaml").write_text(config + MEASURE + REPORT)
    (home / "never.yaml").write_text(config + REPORT)
    return home


said = jax.jit(keys_and_values, static_argnums=1)


def test_keys_and_values_are_those_whose_rms_is_measured() -> None:
    model = receiver.model()
    ids = np.random.default_rng(0).integers(5, 100, (2, 6)).astype(np.int32)
    arch, lengths = model.arch, np.asarray([6, 6], np.int32)
    shape = (2, 6, arch.layers, 2, arch.kv_heads, arch.head_dim)
    found = np.asarray(said(model, (), ids, lengths))
    assert found.dtype == np.float32
    found = found.reshape(shape)
    rms = np.sqrt(np.mean(np.square(found), axis=(0, 1, 4, 5)))
    dims = measure_rms(model, ids, lengths)
    np.testing.assert_allclose(rms[:, 0], dims.key_rms, rtol=1e-5)
    np.testing.assert_allclose(rms[:, 1], dims.value_rms, rtol=1e-5)
    # what stands before them is seen, and is none of them
    after = np.asarray(said(model, (7, 8), ids, lengths)).reshape(shape)
    np.testing.assert_allclose(after[:, :, 0], found[:, :, 0], rtol=1e-5, atol=1e-6)
    assert np.abs(after[:, :, 1] - found[:, :, 1]).max() > 1e-3


def test_to_itself_a_model_sends_its_own_keys_and_values(home: Path, tmp_path: Path) -> None:
    """So what it answers to the message is what it answers to the text."""
    run_dir = tmp_path / "run"
    assert main(["--config", str(home / "same.yaml"), f"--run_dir={run_dir}"]) == 0
    with np.load(statistics.path_of(run_dir, "measure")) as file:
        assert file["readers/reader/fit/explained"] == pytest.approx(1, abs=1e-6)
        assert "compressor/fit/kernel" not in file
    metrics = json.loads((run_dir / "metrics.json").read_text())
    lines = metrics["receivers"]["reader"]
    assert lines["latent"]["nll"] == pytest.approx(lines["text"]["nll"], abs=1e-3)
    assert lines["latent"]["columns"] == lines["text"]["columns"]
    assert metrics["parameters"]["origin"].startswith("fitted in closed form by stages.measure")
    config = read(home / "same.yaml")
    pipeline = open_pipeline(config, make_mesh(config.mesh), run_dir, rows=False)
    trained = load_trained(config, run_dir, pipeline)
    groups = [group[:1] for group in sample(load_rows(config.data, "eval", config.seed), 2)]
    batch = pipeline.collate(groups)(groups)
    ctx = EvalContext(pipeline.frozen, trained.params, None, pipeline.bridge, "reader")
    kv = jax.jit(lambda ctx, batch: ctx.deliver(ctx.encode(batch)))(ctx, batch).kv
    assert kv is not None
    model = pipeline.frozen.receivers["reader"]
    ids, lengths = batch["reader/context/ids"], batch["reader/context/lengths"]
    head = pipeline.frozen.prompt("reader").head
    own = np.asarray(said(model, head, ids, lengths))
    layers, n = kv.k.shape[0], int(lengths[0])
    own = own.reshape(*ids.shape, layers, 2, *kv.k.shape[-2:])
    for i, sent in enumerate((np.asarray(kv.k), np.asarray(kv.v))):
        mine = np.moveaxis(own[0, :n, :, i], 1, 0)
        np.testing.assert_allclose(sent[:, 0, :n], mine, rtol=1e-2, atol=1e-2)


def bridge(**parts: object) -> BridgeConfig:
    plain = {
        "latent_dim": 16,
        "source": {"embeddings": {}},
        "compressor": {"tokens": {"linear": False}},
        "reader": {"fitted_prefix": {}},
    }
    return build(BridgeConfig, plain | parts)


def test_what_is_fitted_and_what_is_not() -> None:
    assert fits(bridge()) == ["bridge.reader.fitted_prefix"]
    assert to_be_trained(bridge()) is None
    assert to_be_trained(bridge(refiner={})) == "bridge.refiner"
    with pytest.raises(UserError, match=r"^reader\.fitted_prefix: it is fitted to the features"):
        bridge(compressor={"tokens": {}})
    with pytest.raises(UserError, match=r"^reader: .* exclude each other"):
        bridge(reader={"fitted_prefix": {}, "deep_prefix": {}})


@pytest.mark.parametrize(
    ("config", "flag", "said"),
    [
        (
            "never",
            "--seed=1",
            "stages.report.evaluate: no train stage before it, and `latent` needs a trained "
            "bridge: no calibrate stage before it",
        ),
        (
            "same",
            "--bridge.reader.fitted_prefix.l2=-1",
            "bridge.reader.fitted_prefix.l2: expected at least 0; got -1",
        ),
        (
            "same",
            "--bridge.latent_dim=8",
            "bridge.compressor.tokens.linear: false hands on features of width 32 as slots of "
            "width 8; set bridge.latent_dim to 32, or linear to true",
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
    words = ["--config", str(home / f"{config}.yaml"), f"--run_dir={tmp_path / 'run'}", flag]
    assert main(words) == 2
    assert capsys.readouterr().err == f"error: {said}\n"
    assert not (tmp_path / "run").exists()


def test_it_starts_at_nothing() -> None:
    """Fresh parameters do not depend on the key: nothing in it has to be trained."""
    from lw_jax.bridge.bridge import Bridge, fresh
    from lw_jax.models.dims import ModelDims
    from tests.tiny.arch import decoder

    config = bridge()
    made = Bridge(config, config.dims(decoder(width=16), {"r": ModelDims(16, 2, 1, 4)}))
    readers = jax.device_get(fresh(made, jax.random.key(0))["readers"])
    assert not any(x.any() for x in jax.tree.leaves(readers))
