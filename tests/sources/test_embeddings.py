"""The sender's embedding table as a source: only the table is loaded, and only it is read."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

from lw_jax.errors import UserError
from lw_jax.mesh import MeshConfig, make_mesh
from lw_jax.models.config import ModelConfig
from lw_jax.models.dims import BridgeDims
from lw_jax.models.spec import open_model
from lw_jax.sources import embeddings
from lw_jax.types import SourceTokens
from tests.tiny.models import write_model


def test_only_the_table_is_loaded_and_read(tmp_path: Path) -> None:
    home = write_model(tmp_path / "sender", "llama")
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    config = embeddings.Config()
    spec = open_model("sender", ModelConfig(str(home), dtype="float32"))
    whole = spec.load(mesh)
    depth = config.sender_layers(spec.arch)
    lm = spec.load(mesh, layers=depth, head=False)
    assert [x.shape for x in jax.tree.leaves(lm.params)] == [(300, 16)]
    ids = np.asarray([[1, 7, 8, 0], [1, 9, 0, 0]])
    tokens = SourceTokens(ids, lengths=np.asarray([3, 2]), skip=np.asarray([1, 1]))
    taps = jax.device_get(jax.jit(config.extract)(lm, tokens, None))
    assert config.shape(lm.arch) == (16, 1, 300)
    table = np.asarray(whole.params["embed"])
    np.testing.assert_array_equal(taps.states[0], table[ids])
    assert taps.mask.tolist() == [[False, True, True, False], [False, True, False, False]]
    module = config.build(BridgeDims(16, 1, 8))
    features, params = jax.jit(module.init_with_output)(jax.random.key(0), taps)
    assert not params
    real = np.asarray(features.x)[taps.mask]
    np.testing.assert_allclose(np.sqrt(np.mean(real**2, axis=-1)), 1.0, rtol=1e-3)


def test_a_sender_is_needed() -> None:
    with pytest.raises(UserError, match=r"sender: missing; bridge\.source\.embeddings"):
        embeddings.Config().shape(None)
