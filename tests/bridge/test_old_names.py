"""Bridges of earlier versions, whose trees have linen's names: they load equal, and go no further.

Their trees are those of now, flattened.
"""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console

from lw_jax.bridge.paths import components, flat, from_paths
from lw_jax.config.parse import from_dict, to_dict
from lw_jax.errors import UserError
from lw_jax.pipeline import Pipeline
from lw_jax.runs.directory import Run
from lw_jax.runs.exported import ABOUT, load_bridge
from lw_jax.runs.exported import save_bridge as export_bridge
from lw_jax.runs.session import open_pipeline
from lw_jax.runs.trained import load_trained
from lw_jax.train.checkpoint import Checkpoints, load_params, read_meta
from lw_jax.train.loop import checkpoint_root
from lw_jax.train.state import TrainState, new_state
from tests.tiny.evaluation import RECEIVER
from tests.tiny.run import STEP, make_models, make_run, raw_config, save_bridge

OTHER = f"{RECEIVER}2"
"""A receiver whose name begins like the other's."""
SOME = {
    "new": ["compressor", f"readers/{RECEIVER}/soft_tokens"],
    "old": ["compressor", f"readers_{RECEIVER}_soft_tokens"],
}


# A checkpoint alone: two readers of two receivers, each leaf with numbers of its own


def tree(first: float) -> dict[str, Any]:
    leaves = iter(range(99))

    def leaf() -> dict[str, jax.Array]:
        start = next(leaves)
        return {"kernel": first + 10.0 * start + jnp.arange(3.0 + start)}

    readers = {r: {v: leaf() for v in ("lora", "soft_tokens")} for r in ("qwen", "qwen2")}
    return {"compressor": leaf(), "readers": readers}


def state_of(bridge: Any, averaged: Any = None) -> TrainState:
    params = {"bridge": bridge, "heads": {"bag_of_words": {"out": jnp.ones(2)}}}
    made = new_state(params, optax.sgd(0.1, momentum=0.9), jax.random.key(0), 0.9)
    assert isinstance(made, TrainState)
    ema = None if averaged is None else {**params, "bridge": averaged}
    return made.replace(ema=ema)  # type: ignore[attr-defined,no-any-return]


@pytest.mark.parametrize("averaged", [False, True])
@pytest.mark.parametrize(
    "only",
    [(), ("compressor",), ("readers/qwen",), ("readers/qwen2/lora", "compressor")],
)
def test_a_checkpoint_loads_equal(tmp_path: Path, averaged: bool, only: tuple[str, ...]) -> None:
    trees = tree(1), tree(1000) if averaged else None
    Checkpoints(tmp_path / "new", 1, {}).save(state_of(*trees), 3, {})
    old = (None if one is None else flat(one) for one in trees)
    Checkpoints(tmp_path / "old", 1, {}).save(state_of(*old), 3, {})
    assert "bridge/readers_qwen2_lora" in read_meta(tmp_path / "old" / "3")["parameters"]
    like = jax.tree.map(jnp.zeros_like, tree(0))
    found = {
        home: load_params(tmp_path / home, {"bridge": like}, part="bridge", only=only)[0]["bridge"]
        for home in ("new", "old")
    }
    whole = dict(components(tree(1000 if averaged else 1)))
    wanted = {
        path: part
        for path, part in whole.items()
        if not only or any(f"{'/'.join(path)}/".startswith(f"{name}/") for name in only)
    }
    for bridge in found.values():
        chex.assert_trees_all_equal(bridge, from_paths(wanted))


def test_a_checkpoint_of_another_bridge_is_refused(tmp_path: Path) -> None:
    Checkpoints(tmp_path, 1, {}).save(state_of(flat(tree(1))), 3, {})
    like = tree(0)
    like["readers"]["qwen2"]["lora"] = {"kernel": jnp.zeros(2)}
    with pytest.raises(UserError, match=r"component bridge/readers_qwen2_lora: 5 parameters were"):
        load_params(tmp_path, {"bridge": like}, part="bridge")


def test_an_unfinished_run_is_not_resumed(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path, 1, {})
    store.save(state_of(flat(tree(1))), 3, {})
    with pytest.raises(UserError, match="an earlier version began this run") as error:
        store.restore(state_of(tree(0)))
    line = str(error.value)
    assert "\n" not in line
    assert line.startswith(f"{tmp_path}: ") and line.endswith("give another run_dir")
    assert [path.name for path in tmp_path.iterdir()] == ["3"]  # it is not taken for damaged


# Whole runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """The same run twice, once as an earlier version left it."""
    home = tmp_path_factory.mktemp("runs")
    models, made = make_models(home), {}
    for name in ("new", "old"):
        raw = raw_config(models, home / name)
        raw["receivers"][OTHER] = raw["receivers"][RECEIVER]
        raw["bridge"]["reader"]["lora"] = {"r": 2}
        made[name] = make_run(from_dict(raw), Console(file=io.StringIO()))
    root = checkpoint_root(made["old"].run_dir, "wire")
    shutil.rmtree(root)
    save_bridge(made["old"], flatten=flat)
    assert f"bridge/readers_{RECEIVER}_lora" in read_meta(root / str(STEP))["parameters"]
    return made


@pytest.fixture(scope="module")
def pipeline(runs: dict[str, Run]) -> Pipeline:
    return open_pipeline(runs["new"].config, runs["new"].mesh)


def test_a_run_is_evaluated_as_it_was(runs: dict[str, Run], pipeline: Pipeline) -> None:
    new, old = (load_trained(run.config, run.run_dir, pipeline) for run in runs.values())
    chex.assert_trees_all_equal(new.params, old.params)
    assert (new.digest, new.counts) == (old.digest, old.counts)
    assert f"readers/{OTHER}/soft_tokens" in old.counts


def test_a_stage_starts_from_components_by_either_name(
    runs: dict[str, Run], pipeline: Pipeline, tmp_path: Path
) -> None:
    config = runs["new"].config
    whole = load_trained(config, runs["new"].run_dir, pipeline).params
    about = {"step": STEP, "stage": "wire", "fingerprints": pipeline.fingerprints}
    about["config"] = to_dict(config)
    homes = {name: run.run_dir for name, run in runs.items()}
    for name, shipped in {"new": whole, "old": flat(whole)}.items():
        homes[f"exported {name}"] = tmp_path / name
        export_bridge(tmp_path / name, shipped, about)
    wanted = {
        "compressor": whole["compressor"],
        "readers": {RECEIVER: {"soft_tokens": whole["readers"][RECEIVER]["soft_tokens"]}},
    }
    short = jax.tree.map(lambda x: np.asarray(x.astype(jnp.bfloat16), np.float32), wanted)
    for home, path in homes.items():
        expected = short if home.startswith("exported") else wanted
        for only in SOME.values():
            found = load_trained(config, path, pipeline, init_from=str(path), only=only)
            chex.assert_trees_all_equal(found.params, expected)
        with pytest.raises(UserError, match="init_only: no component 'readers/x' here; there are"):
            load_trained(config, path, pipeline, init_from=str(path), only=["readers/x"])


def test_an_exported_bridge_loads_equal(
    runs: dict[str, Run], pipeline: Pipeline, tmp_path: Path
) -> None:
    params = load_trained(runs["new"].config, runs["new"].run_dir, pipeline).params
    like = jax.tree.map(jnp.zeros_like, params)
    found = []
    for name, shipped in {"new": params, "old": flat(params)}.items():
        export_bridge(tmp_path / name, shipped, {"step": 1, "fingerprints": {}})
        found.append(load_bridge(tmp_path / name, like)[0])
    chex.assert_trees_all_equal(*found)
    about = json.loads((tmp_path / "old" / ABOUT).read_text())
    assert f"bridge/readers_{OTHER}_lora" in about["parameters"]
    del like["readers"][OTHER]["lora"]
    for name in ("new", "old"):
        with pytest.raises(UserError, match="parameters were trained, 0 would be loaded"):
            load_bridge(tmp_path / name, like)
