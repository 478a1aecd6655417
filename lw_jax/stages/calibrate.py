"""The stage that measures the frozen models: the sender's taps and the receivers' embeddings.

Means and deviations per channel, gathered in one pass over the rows (Chan et al. 1979), are written
to `<run_dir>/calibration/<stage>.npz`, with the fingerprints of the models they belong to.
"""

from __future__ import annotations

import json
import os
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lw_jax import bridge
from lw_jax.config.parts import BridgeConfig
from lw_jax.config.run import Run
from lw_jax.config.schema import CalibrateConfig
from lw_jax.mesh import put_batch
from lw_jax.models.decoder import embed_tokens
from lw_jax.party import Parties
from lw_jax.stages.setting import load_rows, sample, set_up
from lw_jax.types import Array

Moments = tuple[Array, Array, Array]
"""Count [], mean [..., D], sum of squared deviations [..., D]."""


def run(run: Run, name: str, cfg: CalibrateConfig) -> None:
    """Read `cfg.rows` training contexts and write the statistics of every frozen model."""
    config = run.config
    setting = set_up(config, run.mesh)
    groups = [group[:1] for group in sample(load_rows(config.data, "train", config.seed), cfg.rows)]
    collate = setting.collate(groups)
    found: dict[str, tuple[np.ndarray, ...]] = {}
    for start in range(0, len(groups), cfg.batch_size):
        part = groups[start : start + cfg.batch_size]
        filled = part + part[:1] * (cfg.batch_size - len(part))  # one shape, one program
        real = np.arange(cfg.batch_size) < len(part)
        batch = put_batch(run.mesh, collate(filled) | {"real": real})
        seen = jax.device_get(_moments(setting.bridge, setting.parties, batch))
        found = {key: combine(found.get(key), value) for key, value in seen.items()}
    arrays = {"fingerprints": np.array(json.dumps(setting.fingerprints))}
    for key, (count, mean, squares) in found.items():
        arrays |= {f"{key}/mean": mean, f"{key}/std": np.sqrt(squares / count)}
        arrays[f"{key}/tokens"] = count
    path = run.run_dir / "calibration" / f"{name}.npz"
    path.parent.mkdir(exist_ok=True)
    new = path.with_suffix(".part.npz")
    np.savez(new, **arrays)  # type: ignore[arg-type]
    os.replace(new, path)
    run.console.print(f"{name}: {len(groups)} contexts measured into {path}", highlight=False)


@partial(jax.jit, static_argnums=0)
def _moments(config: BridgeConfig, parties: Parties, batch: dict[str, Any]) -> dict[str, Moments]:
    """Moments over the real tokens of a batch, per tap of the source and per receiver."""
    taps = bridge.extract(config, parties.sender, batch)
    found = {"source": moments(taps.states, taps.mask & batch["real"][:, None])}
    for name, party in parties.receivers.items():
        ids, lengths = batch[f"{name}/context/ids"], batch[f"{name}/context/lengths"]
        mask = (jnp.arange(ids.shape[1])[None] < lengths[:, None]) & batch["real"][:, None]
        found[name] = moments(embed_tokens(party.params, ids)[None], mask)
    return found


def moments(x: Array, mask: Array) -> Moments:
    """Moments of x [n, B, T, D] over the tokens of mask [B, T], float32."""
    x = x.astype(jnp.float32)
    keep = mask.astype(jnp.float32)[None, :, :, None]
    count = jnp.sum(keep)
    mean = jnp.sum(x * keep, axis=(1, 2)) / jnp.maximum(1.0, count)
    return count, mean, jnp.sum(jnp.square(x - mean[:, None, None]) * keep, axis=(1, 2))


def combine(
    old: tuple[np.ndarray, ...] | None, new: tuple[np.ndarray, ...]
) -> tuple[np.ndarray, ...]:
    """Moments of two samples together, float64."""
    n, mean, squares = (np.asarray(x, np.float64) for x in new)
    if old is None or not n:
        return (n, mean, squares) if old is None else old
    m, mean_0, squares_0 = old
    gap = mean - mean_0
    total = m + n
    return total, mean_0 + gap * n / total, squares_0 + squares + np.square(gap) * m * n / total
