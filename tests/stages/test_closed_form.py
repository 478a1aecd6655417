"""A wire that a calibrate stage fits in closed form: the fit, use without training, training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import chex
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer as Backend

from lw_jax import Bridge
from lw_jax.bridge.config import BridgeConfig, to_be_trained
from lw_jax.config.parse import build, read
from lw_jax.data.facts import FactsRows
from lw_jax.data.load import load_rows, sample
from lw_jax.errors import UserError
from lw_jax.evaluate.methods.base import EvalContext
from lw_jax.launch import main
from lw_jax.mesh import make_mesh
from lw_jax.runs import export, statistics
from lw_jax.runs.rows import leaks
from lw_jax.runs.session import open_pipeline
from lw_jax.runs.trained import load_trained
from lw_jax.text.collate import Collate, by_key, measure
from lw_jax.text.layout import located_messages, located_sources
from lw_jax.text.layout_config import LayoutConfig
from lw_jax.text.tokenizer import Tokenizer
from lw_jax.utils import files
from tests.tiny.killed import killed_after
from tests.tiny.models import write_model

ROOT = Path(__file__).parents[2]
WIDTH = 16
CONFIG = """
name: tiny
mesh: {{data: 1}}
sender: {{path: {home}/{sender}, dtype: float32}}
receivers:
  reader: {{path: {home}/reader, dtype: float32}}
data:
  facts: {{levels: [1, 2], size: 40, eval_size: 8}}
layout: {{max_tokens: 48}}
bridge:
  latent_dim: {width}
  source: {source}
  compressor: {{tokens: {{fit: {{l2: {l2}}}}}}}
  reader: {{soft_tokens: {{hidden: none, input_norm: false, conditioning: rms}}}}
objectives:
  answer_ce: {{}}
stages:
"""
MEASURE = """  measure:
    calibrate: {rows: 22, batch_size: 8}
"""
TRAIN = """  fit:
    train: {steps: 2, batch_size: 4, optimiser: {name: adamw, lr: 0.01}, eval_every: 0}
"""
REPORT = """  report:
    evaluate:
      rows: 4
      batch_size: 4
      bootstrap: 40
      methods: [text, latent, embedding_replay_raw]
      decode: {max_new_tokens: 4}
"""


def even(path: Path) -> None:
    """Gives all embeddings of a model the same RMS, which the sources norm away."""
    tensors = load_file(path)
    table = tensors["model.embed_tokens.weight"].astype(np.float32)
    tensors["model.embed_tokens.weight"] = table / np.sqrt(np.mean(table**2, 1, keepdims=True))
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of other tokenizers; a wire between them, and one from a model to itself."""
    home = tmp_path_factory.mktemp("models")
    write_model(home / "reader", "mistral", vocab=290, width=WIDTH)
    write_model(home / "sender", "llama", width=12)
    even(home / "reader" / "model.safetensors")
    taps = "{hidden_states: {layers: [0, 2]}}"
    two = CONFIG.format(home=home, sender="sender", source=taps, width=WIDTH, l2=1e-4)
    same = CONFIG.format(home=home, sender="reader", source="{embeddings: {}}", width=WIDTH, l2=0)
    (home / "two.yaml").write_text(two + MEASURE)
    (home / "train.yaml").write_text(two + MEASURE + TRAIN)
    (home / "bare.yaml").write_text(two + TRAIN)
    (home / "never.yaml").write_text(two + REPORT)
    same = same.replace("max_tokens: 48", "max_tokens: 128")
    (home / "same.yaml").write_text(same + MEASURE.replace("22", "40"))
    (home / "report.yaml").write_text(same + MEASURE.replace("22", "40") + REPORT)
    return home


def launch(home: Path, run_dir: Path, config: str, *flags: str) -> int:
    return main(["--config", str(home / config), f"--run_dir={run_dir}", *flags])


def arrays(run_dir: Path) -> dict[str, np.ndarray]:
    with np.load(statistics.path_of(run_dir, "measure")) as file:
        return {k: x for k, x in file.items() if k != "identity"}


@pytest.fixture(scope="module")
def same(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "same"
    assert launch(home, run_dir, "same.yaml") == 0
    return run_dir


@pytest.fixture(scope="module")
def two(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "two"
    assert launch(home, run_dir, "two.yaml") == 0
    return run_dir


def test_to_itself_a_model_sends_its_own_embeddings(home: Path, same: Path) -> None:
    found = arrays(same)
    np.testing.assert_allclose(found["compressor/fit/kernel"], np.eye(WIDTH), atol=1e-4)
    np.testing.assert_allclose(found["compressor/fit/bias"], 0, atol=1e-4)
    assert found["compressor/fit/explained"] == pytest.approx(1, abs=1e-6)


def test_it_is_used_without_training(home: Path, same: Path, tmp_path: Path) -> None:
    """By a run's directory, and exported; its slots are the embeddings of the text."""
    assert export.main([str(same), str(tmp_path / "shipped")]) == 0
    shipped = load_file(tmp_path / "shipped" / "bridge.safetensors")
    kernel = shipped["compressor/leave/kernel"].astype(np.float32)
    np.testing.assert_allclose(kernel, np.eye(WIDTH), atol=1e-2)
    config = read(home / "same.yaml")
    pipeline = open_pipeline(config, make_mesh(config.mesh), same, rows=False)
    trained = load_trained(config, same, pipeline)
    assert (trained.stage, trained.step) == ("measure", 0)
    assert trained.origin == "fitted in closed form by stages.measure, without training"
    assert sum(trained.counts.values()) == WIDTH**2 + WIDTH + 1
    groups = [group[:1] for group in sample(load_rows(config.data, "eval", config.seed), 4)]
    batch = pipeline.collate(groups)(groups)
    ctx = EvalContext(pipeline.frozen, trained.params, None, pipeline.bridge, "reader")
    given = jax.jit(lambda ctx, batch: ctx.deliver(ctx.encode(batch)))(ctx, batch)
    table = np.asarray(pipeline.frozen.receivers["reader"].params["embed"])
    for i, n in enumerate(batch["reader/context/lengths"]):
        own = table[batch["reader/context/ids"][i, :n]]
        np.testing.assert_allclose(np.asarray(given.embeds)[i, :n], own, rtol=1e-3, atol=1e-3)
        assert np.asarray(given.mask)[i].sum() == n


def test_a_file_without_the_fit_is_damaged(home: Path, same: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(same, copy)
    path = statistics.path_of(copy, "measure")
    with np.load(path) as file:
        held = {k: x for k, x in file.items() if k != "compressor/fit/bias"}
    files.write_npz(path, held)
    config = read(home / "same.yaml")
    pipeline = open_pipeline(config, make_mesh(config.mesh), copy, rows=False)
    with pytest.raises(
        UserError, match=r"measure\.npz is damaged \(it has no 'compressor/fit/bias'"
    ):
        load_trained(config, copy, pipeline)
    # the evaluation of a run takes only what it has fitted itself
    other = read(home / "report.yaml", [("bridge.compressor.tokens.fit.l2", "0.5")])
    with pytest.raises(
        UserError, match=r"measured with config\.bridge\.compressor\.tokens\.fit\.l2"
    ):
        load_trained(other, same, pipeline, before="report")


@pytest.mark.slow
def test_its_answers_are_those_to_the_text(home: Path, same: Path, tmp_path: Path) -> None:
    """Evaluated without a train stage, and as a rival of another run."""
    assert launch(home, tmp_path / "run", "report.yaml") == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    lines = metrics["receivers"]["reader"]
    for other in ("text", "embedding_replay_raw"):
        assert lines["latent"]["nll"] == pytest.approx(lines[other]["nll"], abs=1e-3)
    text = (tmp_path / "run" / "predictions.jsonl").read_text()
    for row in map(json.loads, text.splitlines()):
        own = row["receivers"]["reader"]
        assert own["latent"]["text"] == own["text"]["text"]
    about = metrics["parameters"]
    assert (about["stage"], about["step"]) == ("measure", 0)
    rivals = f"--stages.report.evaluate.rivals={{fitted: {same}}}"
    methods = "--stages.report.evaluate.methods=[text]"
    assert launch(home, tmp_path / "other", "report.yaml", rivals, methods) == 0
    other = json.loads((tmp_path / "other" / "metrics.json").read_text())
    assert other["receivers"]["reader"]["fitted"]["nll"] == lines["latent"]["nll"]
    assert other["rivals"]["fitted"]["digest"] == about["digest"]


@pytest.mark.slow
def test_it_is_loaded(same: Path) -> None:
    wire = Bridge.load(same)
    assert "stage measure, step 0" in repr(wire)
    sent = wire.encode("Nadia Rovek keeps 12 goats.")
    assert isinstance(wire.answer(sent, "How many goats does Nadia keep?"), str)


def test_the_rows_that_were_fitted_to_are_training_rows(home: Path) -> None:
    rows = FactsRows("train", 0, 1, 40)
    (said,) = leaks(read(home / "same.yaml"), "report", rows, lambda *_: rows)
    assert "are training rows of stages.measure" in said.text


def test_a_killed_stage_ends_with_the_same_fit(
    home: Path,
    two: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = arrays(two)
    explained, tokens = found["compressor/fit/explained"], found["compressor/fit/tokens"]
    assert 0 < explained < 1
    assert 24 < tokens <= found["source/tokens"]
    with killed_after("measure.part.npz", 2):
        launch(home, tmp_path / "run", "two.yaml")
    assert launch(home, tmp_path / "run", "two.yaml") == 0
    said = capsys.readouterr().out
    assert "resumed after row 16 of 22" in said
    shown = f"explains {explained:.2f} of the embeddings' variance ({tokens:.0f} tokens)"
    assert f"closed form: {shown}\n" in said
    chex.assert_trees_all_equal(arrays(tmp_path / "run"), found)


def test_the_fit_is_that_of_tokens_paired_one_by_one(home: Path, two: Path) -> None:
    """Ridge regression in numpy; characters counted in the tokens' own texts."""
    config = read(home / "two.yaml")
    pipeline = open_pipeline(config, make_mesh(config.mesh))
    groups = [group[:1] for group in sample(load_rows(config.data, "train", config.seed), 22)]
    batch = pipeline.collate(groups)(groups)
    taps = np.asarray(pipeline.bridge.extract(pipeline.frozen.sender, batch, None)["source"].states)
    table = np.asarray(pipeline.frozen.receivers["reader"].params["embed"], np.float64)
    sender, reader = by_key(pipeline.sources)["source"], pipeline.receivers["reader"]
    x, y = [], []
    for i, valid in enumerate(batch["valid"]):
        if not valid:
            continue
        ends = []
        for key, tokenizer, first in (
            ("source", sender, batch["source/skip"][i]),
            ("reader/context", reader, 0),
        ):
            ids = batch[f"{key}/ids"][i, first : batch[f"{key}/lengths"][i]].tolist()
            pieces = [tokenizer.backend.decode([n], skip_special_tokens=False) for n in ids]
            ends.append((ids, np.cumsum([len(piece) for piece in pieces])))
        (_, mine), (other, theirs) = ends
        assert mine[-1] == theirs[-1], "the pieces are the text"
        for t, stop in enumerate(mine):
            begin = mine[t - 1] if t else 0
            starts = np.r_[0, theirs[:-1]]
            sharing = np.asarray(other)[(theirs > begin) & (starts < stop)]
            states = taps[:, i, batch["source/skip"][i] + t].astype(np.float64)
            x.append((states / np.sqrt(np.mean(states**2, 1, keepdims=True) + 1e-6)).ravel())
            y.append(table[sharing].mean(axis=0))
    x, y = np.stack(x), np.stack(y)
    found = arrays(two)
    assert found["compressor/fit/tokens"] == len(x)
    features = x.shape[1]
    centred, penalty = x - x.mean(0), 1e-4 * np.sum(x * x) / features
    kernel = np.linalg.solve(
        centred.T @ centred + penalty * np.eye(features), centred.T @ (y - y.mean(0))
    )
    np.testing.assert_allclose(found["compressor/fit/kernel"], kernel, atol=2e-3)


@pytest.mark.slow
def test_training_goes_on_from_the_fit(home: Path, tmp_path: Path) -> None:
    assert launch(home, tmp_path / "run", "train.yaml") == 0
    config = read(home / "train.yaml")
    pipeline = open_pipeline(config, make_mesh(config.mesh))
    trained = load_trained(config, tmp_path / "run", pipeline)
    assert (trained.stage, trained.step) == ("fit", 2)
    kernel = np.asarray(trained.params["compressor"]["leave"]["kernel"])
    gone = np.abs(kernel - arrays(tmp_path / "run")["compressor/fit/kernel"])
    assert 0 < gone.max() < 0.1  # two steps of AdamW at a rate of 0.01


def zoo_tokenizer(model: str) -> Tokenizer:
    """The tokenizer of a model that ships, with a BOS."""
    return Tokenizer(model, Backend.from_file(str(ROOT / "zoo" / model / "tokenizer.json")), 1, 2)


@pytest.mark.parametrize("pair", [("tiny-llama", "tiny-mistral"), ("tiny-qwen", "tiny-llama")])
@pytest.mark.parametrize("primers", [("Context:", None), ("Context:", ""), ("", "Read this:")])
def test_tokens_of_the_models_that_ship_are_aligned(
    pair: tuple[str, str], primers: tuple[str, str | None]
) -> None:
    """A token's characters are those of the other's tokens that it is aligned with, and no more."""
    sender, reader = map(zoo_tokenizer, pair)
    layout = LayoutConfig(primer=primers[0], source_primer=primers[1])
    rows = FactsRows("train", 0, 3, 12)
    groups = [group[:1] for group in rows]
    named = {"reader": reader}
    collate = Collate(layout, sender, named, measure(layout, sender, named, groups))
    batch, found = collate(groups), collate.overlaps(groups, "reader")
    assert found.shape == (*batch["source/ids"].shape, 2)
    examples = [group[0] for group in groups]
    own = located_sources(layout, sender, examples)
    other = located_messages(layout, reader, examples)
    for i, example in enumerate(examples):
        skip, length = batch["source/skip"][i], batch["source/lengths"][i]
        count = batch["reader/context/lengths"][i]
        assert own[i].ids == batch["source/ids"][i, skip:length].tolist()
        assert other[i].ids == batch["reader/context/ids"][i, :count].tolist()
        assert not found[i, :skip].any() and not found[i, length:].any()
        for (begin, end), (first, stop) in zip(own[i].spans, found[i, skip:length], strict=True):
            sharing = [s for s, (a, b) in enumerate(other[i].spans) if max(a, begin) < min(b, end)]
            assert list(range(first, stop)) == sharing
            covered = "".join(reader.backend.decode([n]) for n in other[i].ids[first:stop])
            assert example.context[max(0, begin) : end].strip() in covered
    assert any(stop - first > 1 for first, stop in found.reshape(-1, 2))


@pytest.mark.parametrize(
    ("config", "flag", "said"),
    [
        (
            "bare",
            "--seed=1",
            "bridge.compressor.tokens.fit: stages.fit starts without statistics; put a stage with "
            "`calibrate: {}` before it, or init_from a bridge that has them",
        ),
        (
            "never",
            "--seed=1",
            "stages.report.evaluate: no train stage before it, and `latent` needs a trained "
            "bridge: no calibrate stage before it",
        ),
        (
            "report",
            "--bridge.reader.soft_tokens.hidden=linear",
            "stages.report.evaluate: no train stage before it, and `latent` needs a trained "
            "bridge: bridge.reader.soft_tokens starts at random, and calibrate fits the "
            "compressor alone",
        ),
        (
            "two",
            "--bridge.compressor.tokens.fit.receiver=writer",
            "bridge.compressor.tokens.fit.receiver: 'writer' is no receiver; there are reader",
        ),
        (
            "two",
            "--bridge.compressor.tokens.linear=false",
            "bridge.compressor.tokens.fit: without a linear map there is nothing to fit; set "
            "linear to true",
        ),
        (
            "two",
            "--bridge.compressor.tokens.fit.l2=-1",
            "bridge.compressor.tokens.fit.l2: expected at least 0; got -1",
        ),
        (
            "two",
            "--bridge.latent_dim=8",
            "bridge.latent_dim: 8, and bridge.compressor.tokens.fit fits slots to the embeddings "
            "of reader, of width 16; set it to 16",
        ),
        (
            "two",
            "--bridge.source.hidden_states.mix=gated",
            "bridge.source.hidden_states: gates would be trained or measured, and "
            "bridge.compressor.tokens.fit fits features that are there from the start; use "
            "hidden_states or embeddings with mix: concat, without normaliser, pca and lora",
        ),
        (
            "two",
            "--bridge.source.hidden_states.normaliser={}",
            "bridge.source.hidden_states: normaliser would be trained or measured, and "
            "bridge.compressor.tokens.fit fits features that are there from the start; use "
            "hidden_states or embeddings with mix: concat, without normaliser, pca and lora",
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
    assert capsys.readouterr().err == f"error: {said}\n"
    assert not (tmp_path / "run").exists()


def test_which_part_is_still_to_be_trained() -> None:
    def bridge(**parts: Any) -> BridgeConfig:
        plain = {
            "latent_dim": 16,
            "source": {"embeddings": {}},
            "compressor": {"tokens": {"fit": {}}},
            "reader": {"soft_tokens": {"hidden": "none"}},
        }
        return build(BridgeConfig, plain | parts)

    assert to_be_trained(bridge()) is None
    assert to_be_trained(bridge(bottleneck={"integer": {}})) is None
    for part, options in {
        "bottleneck.fsq": {"bottleneck": {"fsq": {}}},
        "refiner": {"refiner": {}},
        "reader.deep_prefix": {"reader": {"soft_tokens": {"hidden": "none"}, "deep_prefix": {}}},
        "compressor.tokens": {"compressor": {"tokens": {}}},
    }.items():
        assert to_be_trained(bridge(**options)) == f"bridge.{part}"
