"""A frozen sentence encoder as the source: its tokens or its one vector, whole and undisturbed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer as Backend

from lw_jax import Bridge, launch
from lw_jax.config.parse import read
from lw_jax.data.example import Example
from lw_jax.errors import UserError
from lw_jax.evaluate.probe import _means
from lw_jax.mesh import MeshConfig, make_mesh
from lw_jax.models import encoder
from lw_jax.models.config import ModelConfig
from lw_jax.models.dims import BridgeDims
from lw_jax.models.frozen import FrozenEncoder
from lw_jax.models.spec import open_model
from lw_jax.runs import export
from lw_jax.runs.abstract import abstract_models
from lw_jax.runs.doctor import examine
from lw_jax.sources.normaliser import Normaliser
from lw_jax.sources.sentence_encoder import Config
from lw_jax.text.collate import Collate, Lengths, measure
from lw_jax.text.layout_config import LayoutConfig
from lw_jax.text.tokenizer import Tokenizer
from lw_jax.types import Features, Taps
from tests.sources.parts import source_tokens
from tests.tiny.encoder import write_encoder
from tests.tiny.models import write_model

CLS, SEP = 2, 3
PLAIN = LayoutConfig(source_primer="")
GOATS = "Ada keeps 7 goats in the barn."
TEXTS = (GOATS, "Ben.", f"{GOATS} Ben keeps 31 cats in the attic.")
LONG = Lengths({"source": 64})
EACH = Config(), Config(pool="mean"), Config(pool="cls")
Batch = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder of 60 positions, which is no round number, and a receiver."""
    home = tmp_path_factory.mktemp("models")
    write_encoder(home / "encoder", positions=60)
    write_model(home / "reader", "mistral", vocab=290)
    return home


@pytest.fixture(scope="module")
def loaded(home: Path) -> tuple[FrozenEncoder, Tokenizer]:
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    spec = open_model("sender", ModelConfig(str(home / "encoder"), dtype="float32"))
    model = spec.load(mesh)
    assert isinstance(model, FrozenEncoder)
    return model, spec.tokenizer


def rows(*texts: str) -> list[tuple[Example, ...]]:
    return [(Example(str(i), "c", text, "Who?", ("Ada",)),) for i, text in enumerate(texts)]


def batch(tokenizer: Tokenizer, *texts: str, layout: LayoutConfig = PLAIN) -> Batch:
    return Collate(layout, tokenizer, {}, measure(layout, tokenizer, {}, rows(*texts)))(
        rows(*texts)
    )


@jax.jit
def extracted(model: FrozenEncoder, given: Batch) -> list[Taps]:
    """Under each of `EACH`."""
    return [config.extract(model, source_tokens(given), None) for config in EACH]


@jax.jit
def features(taps: list[Taps]) -> list[Features]:
    built = [config.build(BridgeDims(16, 1, 8)) for config in EACH]
    return [module.apply({}, tap) for module, tap in zip(built, taps, strict=True)]


@jax.jit
def states(model: FrozenEncoder, given: Batch) -> jax.Array:
    """[3, B, T, D], embeddings and two layers."""
    ids, lengths = given["source/ids"], given["source/lengths"]
    taps = encoder.run(model.arch, model.params, ids, lengths, taps=(0, 1, 2)).taps
    assert taps is not None
    return taps


def test_it_reads_all_of_a_text_between_cls_and_sep(
    loaded: tuple[FrozenEncoder, Tokenizer], home: Path
) -> None:
    """A tokenizer that cuts and fills up by itself gives 16 tokens to each."""
    model, tokenizer = loaded
    found = batch(tokenizer, *TEXTS)
    pieces = Backend.from_file(str(home / "encoder" / "tokenizer.json"))
    assert len(pieces.encode(TEXTS[1]).ids) == len(pieces.encode(TEXTS[2]).ids) == 16
    pieces.no_truncation()
    pieces.no_padding()
    taps = extracted(model, found)[0]
    taps = jax.device_get(taps)
    for i, text in enumerate(TEXTS):
        content = pieces.encode(text).ids
        assert found["source/ids"][i, : found["source/lengths"][i]].tolist() == [CLS, *content, SEP]
        assert taps.ids[i][taps.mask[i]].tolist() == content
    assert max(found["source/lengths"]) > 18
    assert found["valid"].all()


def test_a_primer_is_read_and_is_no_content(loaded: tuple[FrozenEncoder, Tokenizer]) -> None:
    model, tokenizer = loaded
    primed = replace(PLAIN, source_primer="Ada keeps")
    with_primer = Collate(primed, tokenizer, {}, LONG)(rows(*TEXTS))
    without = Collate(PLAIN, tokenizer, {}, LONG)(rows(*TEXTS))
    assert (with_primer["source/skip"] > without["source/skip"]).all()
    taps, plain = (jax.device_get(extracted(model, x)[0]) for x in (with_primer, without))
    assert taps.ids[taps.mask].tolist() == plain.ids[plain.mask].tolist()
    assert np.abs(taps.states[:, taps.mask] - plain.states[:, plain.mask]).max() > 0.1


def test_a_text_does_not_depend_on_those_beside_it(loaded: tuple[FrozenEncoder, Tokenizer]) -> None:
    model, tokenizer = loaded
    together = jax.device_get(features(extracted(model, batch(tokenizer, *TEXTS))))
    collate = Collate(PLAIN, tokenizer, {}, LONG)
    for i, text in enumerate(TEXTS):
        given = collate(rows(text, "Ben.", "Ben."))
        alone = jax.device_get(features(extracted(model, given)))
        for config, many, one in zip(EACH, together, alone, strict=True):
            mine, own = many.mask[i], one.mask[0]
            assert mine.sum() == own.sum() > 0
            np.testing.assert_allclose(
                many.x[i][mine], one.x[0][own], atol=1e-4, err_msg=str(config)
            )


def test_a_pooled_text_is_the_vector_of_sentence_transformers(
    loaded: tuple[FrozenEncoder, Tokenizer],
) -> None:
    model, tokenizer = loaded
    given = batch(tokenizer, *TEXTS)
    _, mean, cls = jax.device_get(features(extracted(model, given)))
    h = np.asarray(states(model, given))[-1]
    for i, length in enumerate(given["source/lengths"]):
        for found, vector in ((mean, h[i, :length].mean(axis=0)), (cls, h[i, 0])):
            assert found.x.shape == (3, 1, 16)
            assert found.mask.all()
            unit = vector / np.linalg.norm(vector)
            np.testing.assert_allclose(found.x[i, 0], unit * 16**0.5, rtol=1e-3, atol=1e-5)


def test_objectives_still_know_the_words_of_a_pooled_text(
    loaded: tuple[FrozenEncoder, Tokenizer],
) -> None:
    model, tokenizer = loaded
    each, *pooled = extracted(model, batch(tokenizer, *TEXTS))
    for taps in pooled:
        np.testing.assert_array_equal(taps.ids, each.ids)
        np.testing.assert_array_equal(taps.mask, each.mask)
        assert taps.states.shape == each.states.shape


def test_the_layer_is_the_one_that_is_asked_for(loaded: tuple[FrozenEncoder, Tokenizer]) -> None:
    model, tokenizer = loaded
    given = batch(tokenizer, *TEXTS)
    each = np.asarray(states(model, given))
    layers = (0, 1, 2, None)

    @jax.jit
    def read(model: FrozenEncoder, given: Batch) -> list[jax.Array]:
        tokens = source_tokens(given)
        return [Config(layer).extract(model, tokens, None).states[0] for layer in layers]

    for layer, found in zip(layers, read(model, given), strict=True):
        np.testing.assert_allclose(found, each[2 if layer is None else layer], atol=1e-5)
    assert Config(1).sender_layers(model.arch) == 1
    with pytest.raises(UserError, match="layer: 3 is beyond the encoder's 2 layers"):
        Config(3).shape(model.arch)


def test_no_gradient_reaches_the_encoder(loaded: tuple[FrozenEncoder, Tokenizer]) -> None:
    model, tokenizer = loaded
    given = batch(tokenizer, *TEXTS)

    @jax.jit
    @jax.grad
    def slope(params: Any) -> jax.Array:
        taps = Config(pool="mean").extract(
            FrozenEncoder(params, model.arch), source_tokens(given), None
        )
        return jnp.sum(taps.states**2)

    assert not any(leaf.any() for leaf in jax.tree.leaves(jax.device_get(slope(model.params))))


def test_a_text_beyond_the_positions_is_left_out(loaded: tuple[FrozenEncoder, Tokenizer]) -> None:
    """Even by one token, and where the columns of the batch would hold it."""
    model, tokenizer = loaded
    fits, over = " ".join(["7"] * 58), " ".join(["7"] * 59)
    given = batch(tokenizer, fits, over, "Ben.")
    assert given["source/ids"].shape == (3, 64)
    assert given["source/lengths"].tolist() == [60, 0, len(tokenizer.encode("Ben.")) + 2]
    assert given["valid"].tolist() == [True, False, True]
    for found in jax.device_get(features(extracted(model, given))):
        assert np.isfinite(found.x).all()
        assert not found.mask[1].any()
    assert (
        measure(PLAIN, tokenizer, {}, rows(f"{fits} {over}"))["source"] == 64
    )  # no column for nothing
    few = measure(PLAIN, tokenizer, {}, rows(fits), max_tokens=24)
    assert few["source"] == 24  # the layout's own limit holds as well


def test_a_probe_reads_its_content_alone(loaded: tuple[FrozenEncoder, Tokenizer]) -> None:
    model, tokenizer = loaded
    given = batch(tokenizer, *TEXTS)
    ids, lengths, skip = (given[f"source/{part}"] for part in ("ids", "lengths", "skip"))
    found = np.asarray(_means(model, ids, lengths, skip, layers=(2,)))
    taps = jax.device_get(extracted(model, given)[0])
    for i in range(len(TEXTS)):
        want = taps.states[0, i][taps.mask[i]].mean(axis=0)
        np.testing.assert_allclose(found[0, i], want, atol=1e-5)


def test_a_normaliser_has_its_place_among_the_parameters() -> None:
    config = Config(normaliser=Normaliser(trainable=True), pool="mean")
    taps = Taps(np.ones((1, 2, 5, 16)), np.ones((2, 5), bool), np.zeros((2, 5), np.int32))
    init = config.build(BridgeDims(16, 1, 8)).init
    found = jax.eval_shape(init, jax.random.key(0), taps)["params"]
    assert set(found["normaliser"]) == {"statistics", "gain", "bias"}


CONFIG = """
name: tiny
mesh: {{data: 1}}
sender: {{path: {home}/encoder, dtype: float32}}
receivers:
  reader: {{path: {home}/reader, dtype: float32}}
layout: {{source_primer: ""}}
data:
  facts: {{levels: [1], size: 40, eval_size: 12}}
bridge:
  latent_dim: 8
  source: {{sentence_encoder: {{}}}}
  compressor: {{pooled_queries: {{slots: 4, width: 8, heads: 2, gate: true}}}}
  reader: {{soft_tokens: {{}}}}
objectives: {{answer_ce: {{}}}}
stages:
  fit: {{train: {{steps: 2, optimiser: {{schedule: {{ramp: 0}}}}, batch_size: 4, eval_every: 0}}}}
  report:
    evaluate:
      {{methods: [latent], rows: 6, batch_size: 6, bootstrap: 40, decode: {{max_new_tokens: 2}}}}
"""


@pytest.fixture(scope="module")
def path(home: Path) -> Path:
    path = home / "tiny.yaml"
    path.write_text(CONFIG.format(home=home))
    return path


@pytest.fixture(scope="module")
def run(path: Path, home: Path) -> Path:
    """A finished run."""
    run_dir = home / "run"
    assert launch.main(["--config", str(path), f"--run_dir={run_dir}"]) == 0
    return run_dir


def test_a_run_trains_evaluates_and_is_used_from_python(run: Path, tmp_path: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["receivers"]["reader"]["latent"]["n"] == 6
    wire = Bridge.load(run)
    sent = wire.encode(GOATS)
    assert sent != wire.encode("Ben keeps 4 cats in the yard.")
    assert isinstance(wire.answer(sent, "How many goats does Ada keep?"), str)
    with pytest.raises(UserError, match="the text is longer than the encoder's 60 positions"):
        wire.encode(" ".join(TEXTS * 4))
    assert export.main([str(run), str(tmp_path / "out")]) == 0
    again = Bridge.load(tmp_path / "out")
    assert again.pipeline.fingerprints == wire.pipeline.fingerprints
    assert again.pipeline.fingerprints["sender"].endswith("@2")
    assert len(again.encode(GOATS)) == len(sent)
    assert again.longest.keys() == {"source", "reader/ask"}


def test_one_vector_makes_the_slots_of_pool_expand(path: Path) -> None:
    """The doctor finds it sound, and counts the very weights that are loaded."""
    flags = {
        "bridge.source.sentence_encoder.pool": "mean",
        "bridge.compressor": "{pool_expand: {slots: 4, pools: 1, width: 8, heads: 2, depth: 1}}",
        "bridge.source.sentence_encoder.layer": "1",
        "sender.quant": "int8",
    }
    config = read(path, list(flags.items()))
    found = examine(config)
    # its answers are cut short on purpose
    assert {f.key for f in found if f.level != "ok"} == {"stages.report.evaluate.decode"}
    said = {f.key: f.text for f in found}
    assert said["bridge.source"] == "1 taps of width 16"
    assert "vocabulary 200, encoder of at most 60 tokens" in said["sender.path"]
    assert "frozen weights" in said["stages.fit.train"]
    assert config.sender is not None
    mesh = make_mesh(config.mesh)
    specs = {name: open_model(name, model) for name, model in config.receivers.items()}
    specs["sender"] = open_model("sender", config.sender)
    real = specs["sender"].load(mesh, layers=1)
    planned = abstract_models(config, specs, mesh, config.layout).sender
    assert isinstance(planned, FrozenEncoder)
    sizes = (
        jax.tree.map(lambda x: (x.shape, x.dtype), tree) for tree in (planned.params, real.params)
    )
    assert next(sizes) == next(sizes)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--sender.path={home}/reader"], "a mistral decoder, and bridge.source.sentence_encoder"),
        (
            ["--bridge.source={hidden_states: {}}"],
            "a bert encoder, and bridge.source.hidden_states reads a language model",
        ),
        (
            ["--bridge.source={embeddings: {}}"],
            "a bert encoder, and bridge.source.embeddings reads a language model",
        ),
        (["--sender=null"], "sender: missing; bridge.source.sentence_encoder reads a sentence"),
        (["--bridge.source.sentence_encoder.layer=3"], "layer: 3 is beyond the encoder's 2"),
        (["--bridge.source.sentence_encoder.pool=max"], "bridge.source.sentence_encoder.pool:"),
        (["--receivers.reader.path={home}/encoder"], "receivers.reader.path: a bert encoder reads"),
        (
            ["--stages.report.evaluate.methods=[relay]"],
            "stages.report.evaluate.methods: relay needs a sender that writes",
        ),
        (["--layout.encoder_use_chat_template=true"], "has no chat template"),
    ],
)
def test_what_does_not_fit_gives_one_line(
    flags: list[str],
    said: str,
    path: Path,
    home: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_dir = tmp_path / "run"
    given = [flag.replace("{home}", str(home)) for flag in flags]
    assert launch.main(["--config", str(path), f"--run_dir={run_dir}", *given]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert not run_dir.exists()
