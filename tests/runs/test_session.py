"""Frozen models are opened once a run: by whom, how much of each, and for how long they are kept.

See docs/design.md section 2.
"""

from __future__ import annotations

import gc
import json
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import chex
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lw_jax.config.parse import read
from lw_jax.config.schema import Config
from lw_jax.launch import main
from lw_jax.mesh import MeshConfig, make_mesh
from lw_jax.models import spec as opening
from lw_jax.models.checkpoint import INDEX, WEIGHTS
from lw_jax.models.config import ModelConfig
from lw_jax.models.frozen import Frozen
from lw_jax.models.shards import Shard
from lw_jax.models.spec import FrozenSpec, open_model
from lw_jax.runs.session import Session, open_pipeline
from lw_jax.text.layout import head_ids
from tests.tiny.models import write_model

ROOT = Path(__file__).parents[2]
CONFIG = """
name: tiny
mesh: {{data: 1}}
sender: {{path: {home}/sender, dtype: float32}}
receivers:
  reader: {{path: {home}/reader, dtype: float32}}
data:
  facts: {{levels: [1, 2], size: 40, eval_size: 8}}
bridge:
  latent_dim: 8
  source: {{hidden_states: {{layers: [1], normaliser: {{}}}}}}
  compressor: {{perceiver: {{slots: 4, width: 16, heads: 2, depth: 1}}}}
  reader: {{soft_tokens: {{}}}}
objectives:
  answer_ce: {{}}
stages:
  measure:
    calibrate: {{rows: 8, batch_size: 8}}
  fit:
    train:
      steps: 1
      batch_size: 4
      eval_every: 0
      data: {{facts: {{levels: [1], size: 40}}}}
      layout: {{primer: "Text:"}}
  report:
    evaluate:
      methods: [text, relay]
      rows: 4
      batch_size: 4
      bootstrap: 40
      relay: {{max_new_tokens: 2}}
      decode: {{max_new_tokens: 2}}
"""
LAYER_1 = {
    f"model.layers.1.{name}.weight"
    for name in (
        "input_layernorm",
        *(f"self_attn.{x}_proj" for x in "qkvo"),
        "post_attention_layernorm",
        *(f"mlp.{x}_proj" for x in ("gate", "up", "down")),
    )
}
"""Above the tap."""
HEAD = {"model.norm.weight", "lm_head.weight"}
WHOLE, CUT = (None, True), (1, False)
"""How many layers are loaded, and whether the head is."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sender, a receiver, and a config that taps the first of the sender's two layers."""
    home = tmp_path_factory.mktemp("models")
    write_model(home / "sender", "llama")
    write_model(home / "reader", "mistral", vocab=290, width=24)
    (home / "tiny.yaml").write_text(CONFIG.format(home=home))
    return home


@pytest.fixture
def config(home: Path) -> Config:
    return read(home / "tiny.yaml")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, str]]:
    """How often each tensor is read, by directory and name; and each tokenizer, as `tokenizer`."""
    found: Counter[tuple[str, str]] = Counter()
    reads_one, tokenizer = Shard.get_tensor, opening.load_tokenizer

    def one(file: Shard, name: str, *how: Any) -> Any:
        found[file.path.parent.name, name] += 1
        return reads_one(file, name, *how)

    def counted(directory: Path) -> Any:
        found[directory.name, "tokenizer"] += 1
        return tokenizer(directory)

    monkeypatch.setattr(Shard, "get_tensor", one)
    monkeypatch.setattr(opening, "load_tokenizer", counted)
    return found


def test_a_run_reads_each_model_once(
    home: Path, tmp_path: Path, reads: Counter[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Start-up checks and three stages, the second with another layout and other rows, the third
    with a relay: every tensor, tokenizer and weight file is read once."""
    hashed: Counter[str] = Counter()
    digest: Callable[..., Any] = opening.fingerprint

    def counted(arch: Any, files: set[Path], known: dict[Path, bytes]) -> str:
        hashed.update(str(path) for path in files if path not in known)
        return str(digest(arch, files, known))

    monkeypatch.setattr(opening, "fingerprint", counted)
    run_dir = tmp_path / "run"
    assert main(["--config", str(home / "tiny.yaml"), f"--run_dir={run_dir}"]) == 0
    assert list(json.loads((run_dir / "finished.json").read_text())) == ["measure", "fit", "report"]
    for name in ("sender", "reader"):
        names = {*load_file(home / name / WEIGHTS), "tokenizer"}
        assert {n: c for (m, n), c in reads.items() if m == name} == dict.fromkeys(names, 1)
    assert hashed == {str(home / name / WEIGHTS): 1 for name in ("sender", "reader")}


@pytest.mark.parametrize("quant", ["none", pytest.param("int8", marks=pytest.mark.slow), "nf4"])
def test_a_relay_reads_the_layers_and_the_head_that_are_missing(
    home: Path, reads: Counter[tuple[str, str]], quant: Any
) -> None:
    session, mesh = Session(), make_mesh(MeshConfig(data=1, tensor=2))
    spec = session.open("sender", ModelConfig(str(home / "sender"), "float32", quant))
    cut = session.load(spec, mesh, 1, False)
    reads.clear()
    whole = session.load(spec, mesh)
    assert set(reads) == {("sender", name) for name in LAYER_1 | HEAD}
    assert set(reads.values()) == {1}
    assert whole.params["embed"] is cut.params["embed"]
    fresh = spec.load(mesh)
    chex.assert_trees_all_equal(whole.params, fresh.params)
    assert places(whole) == places(fresh)
    assert session.load(spec, mesh, 1, False) is cut  # the whole one is its asker's alone
    assert cut.params["layers"]["attn_norm"].shape[0] == 1


def test_the_head_alone_is_read_where_all_layers_are_there(
    home: Path, reads: Counter[tuple[str, str]]
) -> None:
    spec, mesh = open_model("sender", ModelConfig(str(home / "sender"))), make_mesh(MeshConfig(1))
    cut = spec.load(mesh, head=False)
    reads.clear()
    whole = spec.load(mesh, have=cut)
    assert set(reads) == {("sender", name) for name in HEAD}
    chex.assert_trees_all_equal(whole.params, spec.load(mesh).params)
    shared = zip(*(jax.tree.leaves(m.params["layers"]) for m in (whole, cut)), strict=True)
    assert all(one is other for one, other in shared)


def test_a_file_whose_tensors_are_held_is_not_opened(home: Path, tmp_path: Path) -> None:
    for path in (home / "sender").glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = load_file(home / "sender" / WEIGHTS)
    shards: dict[str, dict[str, Any]] = {"low.safetensors": {}, "high.safetensors": {}}
    for name, x in tensors.items():
        shards["high.safetensors" if name in LAYER_1 | HEAD else "low.safetensors"][name] = x
    for file, own in shards.items():
        save_file(own, tmp_path / file)
    where = {name: file for file, own in shards.items() for name in own}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": where}))
    spec, mesh = open_model("sender", ModelConfig(str(tmp_path))), make_mesh(MeshConfig(data=1))
    cut, whole = spec.load(mesh, 1, False), spec.load(mesh)
    low, both = spec.fingerprint(1, False), spec.fingerprint()
    assert low != both  # of the files with the layers that are used
    (tmp_path / "low.safetensors").write_bytes(b"never read")
    chex.assert_trees_all_equal(spec.load(mesh, have=cut).params, whole.params)
    assert (spec.fingerprint(1, False), spec.fingerprint()) == (low, both)  # nor hashed again
    again = open_model("sender", ModelConfig(str(tmp_path)))
    assert again.fingerprint(1, False) != low


def places(model: Frozen) -> Any:
    """Shape, dtype and layout of every leaf."""

    def one(x: Any) -> Any:
        return x.shape, x.dtype, x.sharding.shard_shape(x.shape)

    return jax.tree.map(one, model.params)


@pytest.mark.parametrize(
    ("cut", "quant"),
    [
        pytest.param(cut, quant, marks=[] if by_default else pytest.mark.slow, id=f"{name}-{quant}")
        for name, cut, quant, by_default in (
            ("whole", WHOLE, "none", True),
            ("whole", WHOLE, "int8", False),
            ("whole", WHOLE, "nf4", False),
            ("cut", CUT, "none", False),
            ("cut", CUT, "int8", False),
            ("cut", CUT, "nf4", True),
        )
    ],
)
def test_shapes_are_those_of_what_is_loaded(home: Path, quant: Any, cut: Any) -> None:
    # Of the packed axis of nf4 the compiler decides on which devices it lies.
    mesh = make_mesh(MeshConfig(data=1, tensor=1 if quant == "nf4" else 2))
    spec = open_model("sender", ModelConfig(str(home / "sender"), "bfloat16", quant))
    loaded, planned = spec.load(mesh, *cut), spec.abstract(mesh, *cut)
    assert places(planned) == places(loaded)
    assert planned.arch == loaded.arch
    assert jax.tree.structure(planned) == jax.tree.structure(loaded)


def test_two_layouts_share_the_models(home: Path, config: Config) -> None:
    session, mesh = Session(), make_mesh(config.mesh)
    one = open_pipeline(config, mesh, session=session)
    fit = config.stages["fit"].train
    assert fit is not None and fit.layout is not None
    other = open_pipeline(replace(config, layout=fit.layout), mesh, session=session)
    assert other.frozen.sender is one.frozen.sender
    assert other.frozen.receivers["reader"] is one.frozen.receivers["reader"]
    assert other.fingerprints == one.fingerprints
    assert other.receivers["reader"] is one.receivers["reader"]
    heads = [p.frozen.prompt("reader").head for p in (one, other)]
    assert heads == [tuple(head_ids(p.layout, p.receivers["reader"])) for p in (one, other)]
    assert heads[0] != heads[1]


@pytest.fixture
def young() -> Iterator[None]:
    """`gc.collect(1)` finds all that is made in the test, and looks through nothing older."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("young")
def test_what_no_stage_needs_is_let_go_of(
    home: Path, config: Config, reads: Counter[tuple[str, str]]
) -> None:
    assert config.sender is not None
    session, mesh = Session(), make_mesh(config.mesh)

    def loaded(spec: FrozenSpec) -> weakref.ref[Frozen]:
        return weakref.ref(session.load(spec, mesh, 1, False))

    own = loaded(session.open("sender", config.sender))
    another = loaded(session.open("sender", ModelConfig(config.sender.path)))  # of another bridge
    session.begin(config, "evaluate")
    gc.collect(1)
    assert own() is not None
    assert another() is None
    session.begin(config, "pretrain")
    gc.collect(1)
    assert own() is None
    reads.clear()
    session.load(session.open("sender", config.sender), mesh, 1, False)
    assert reads["sender", "tokenizer"] == 1  # a model may have been written there


def test_fingerprints_are_those_that_bridges_were_trained_with() -> None:
    known = json.loads((ROOT / "zoo/bridges/facts/bridge.json").read_text())["fingerprints"]
    sender = open_model("sender", ModelConfig(str(ROOT / "zoo/tiny-llama")))
    reader = open_model("mistral", ModelConfig(str(ROOT / "zoo/tiny-mistral")))
    layers = sender.arch.layers
    found = {"sender": f"{sender.fingerprint(layers, False)}@{layers}"}
    assert found | {"mistral": reader.fingerprint()} == known


def test_a_deeper_sender_reads_as_one_that_is_cut(home: Path, config: Config) -> None:
    """Another bridge's source may find more layers than it asks for."""
    assert config.bridge is not None and config.sender is not None
    mesh = make_mesh(config.mesh)
    pipeline = open_pipeline(config, mesh)
    ids = np.arange(12, dtype=np.int32).reshape(2, 6) + 5
    batch = {"source/ids": ids, "source/lengths": np.array([6, 4]), "source/skip": np.array([1, 1])}
    whole = open_model("sender", config.sender).load(mesh)
    cut, deep = (
        jax.jit(lambda model: pipeline.bridge.extract(model, batch, None)["source"].states)(model)
        for model in (pipeline.frozen.sender, whole)
    )
    np.testing.assert_array_equal(cut, deep)
