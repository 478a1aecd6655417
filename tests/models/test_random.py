"""A sender of random weights has the shape and tokenizer of the real one, and no weight of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from lw_jax.errors import UserError
from lw_jax.mesh import MeshConfig, make_mesh
from lw_jax.models.config import ModelConfig
from lw_jax.models.frozen import FrozenDecoder
from lw_jax.models.spec import FrozenSpec, open_model
from tests.tiny.run import make_models

MESH = make_mesh(MeshConfig(data=1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_models(tmp_path_factory.mktemp("models"))["llama"]


def opened(folder: Path, seed: int | None = 7) -> FrozenSpec:
    return open_model("sender", ModelConfig(str(folder), dtype="float32", random_weights=seed))


def loaded(spec: FrozenSpec, layers: int | None = None, head: bool = True) -> dict[str, np.ndarray]:
    model = spec.load(MESH, layers, head)
    assert isinstance(model, FrozenDecoder)
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(model.params))
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def test_it_has_the_shapes_of_the_model_and_none_of_its_weights(folder: Path) -> None:
    own, other = (loaded(opened(folder, seed)) for seed in (7, 8))
    std = opened(folder).arch.init_std
    real = opened(folder, None).abstract(MESH)
    leaves = jax.tree_util.tree_leaves_with_path(real.params)
    assert {k: (v.shape, v.dtype) for k, v in own.items()} == {
        jax.tree_util.keystr(path): (leaf.shape, leaf.dtype) for path, leaf in leaves
    }
    for key, leaf in own.items():
        if "norm" in key:
            np.testing.assert_array_equal(leaf, np.ones_like(leaf))
            continue
        assert leaf.std() == pytest.approx(std, rel=0.1)
        assert not np.array_equal(leaf, other[key])
    gate = own["['layers']['gate']"]
    assert not np.array_equal(gate[0], gate[1])


def test_one_that_is_cut_off_has_the_first_layers_of_the_whole(folder: Path) -> None:
    whole, part = loaded(opened(folder)), loaded(opened(folder), 1, False)
    assert "['final_norm']" in whole and "['final_norm']" not in part
    for key, leaf in part.items():
        expected = whole[key][:1] if "layers" in key else whole[key]
        np.testing.assert_array_equal(leaf, expected)


def test_layers_that_lie_apart_are_the_same(folder: Path) -> None:
    config = ModelConfig(str(folder), dtype="float32", random_weights=7, unroll="always")
    spec = open_model("sender", config)
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), spec.abstract(MESH).params)
    found = spec.load(MESH).params
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), found) == shapes
    stacked = loaded(opened(folder))
    np.testing.assert_array_equal(found["layers"][1]["down"], stacked["['layers']['down']"][1])


def test_its_fingerprint_says_so_and_no_weight_file_is_read(folder: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare)
    (bare / "model.safetensors").unlink()
    spec = opened(bare)
    spec.check_files()
    spec.check_weights()
    loaded(spec, 1, False)
    assert spec.fingerprint(1, False).endswith("+random7")
    assert spec.weights_print().endswith("+random7")
    assert spec.fingerprint() == opened(folder).fingerprint()
    assert spec.fingerprint() != opened(folder, 8).fingerprint()
    assert opened(folder, None).fingerprint() not in spec.fingerprint()


def test_only_a_sender_in_its_dtype_is_drawn(folder: Path) -> None:
    with pytest.raises(UserError, match=r"receivers\.a\.random_weights: a receiver has to write"):
        open_model("a", ModelConfig(str(folder), random_weights=7))
    with pytest.raises(UserError, match="quant: int8, and random_weights are drawn in dtype"):
        ModelConfig(str(folder), quant="int8", random_weights=7)
