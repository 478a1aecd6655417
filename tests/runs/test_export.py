"""A bridge on its own: what is written is what is read, and another bridge is refused."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import pytest

from lw_jax.errors import UserError
from lw_jax.runs.exported import is_exported, load_bridge, save_bridge


def bridge(width=4):
    return {
        "compressor": {"enter": {"kernel": jnp.arange(3.0 * width).reshape(3, width)}},
        "readers": {"r": {"soft_tokens": {"scale": jnp.ones((width,))}}},
    }


def test_round_trip(tmp_path):
    assert not is_exported(tmp_path)
    save_bridge(tmp_path, bridge(), {"step": 7, "fingerprints": {"sender": "x"}})
    assert is_exported(tmp_path)
    (tmp_path / "any").touch()  # all may be read by whom any other new file may be
    assert len({one.stat().st_mode for one in tmp_path.iterdir()}) == 1
    like = jax.tree.map(jnp.zeros_like, bridge())
    params, about = load_bridge(tmp_path, like)
    chex.assert_trees_all_equal(params, bridge())
    assert about["step"] == 7
    assert about["parameters"] == {"bridge/compressor": 12, "bridge/readers/r/soft_tokens": 4}


def test_another_bridge_is_refused(tmp_path):
    save_bridge(tmp_path, bridge(), {"step": 1, "fingerprints": {}})
    with pytest.raises(UserError, match="12 parameters were trained"):
        load_bridge(tmp_path, bridge(width=5))


def test_components_alone(tmp_path):
    save_bridge(tmp_path, bridge(), {"step": 1, "fingerprints": {}})
    other = {"compressor": bridge()["compressor"], "adapters": {"gate": jnp.ones((2,))}}
    taken, _ = load_bridge(tmp_path, other, ["compressor"])
    chex.assert_trees_all_equal(taken, {"compressor": bridge()["compressor"]})
    with pytest.raises(UserError, match="component bridge/adapters: 0 parameters were trained"):
        load_bridge(tmp_path, other, ["adapters"])


def test_measured_statistics_keep_their_precision(tmp_path):
    measured = {"source_mean": jnp.asarray([[1.0 / 3.0, 1000.1]])}
    params = {"source": {"normaliser": {"statistics": measured, "gain": jnp.ones((1, 2)) / 3}}}
    save_bridge(tmp_path, params, {"step": 1, "fingerprints": {}})
    read, _ = load_bridge(tmp_path, params)
    own = read["source"]["normaliser"]
    chex.assert_trees_all_equal(own["statistics"], measured)
    assert own["gain"].dtype == jnp.float32
    assert not (own["gain"] == params["source"]["normaliser"]["gain"]).any()
