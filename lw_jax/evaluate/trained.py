"""The trained bridge of a run, for evaluation and for the Python API."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax

from lw_jax import bridge
from lw_jax.config.schema import Config
from lw_jax.errors import UserError
from lw_jax.mesh import replicated
from lw_jax.stages.setting import Setting
from lw_jax.train.checkpoint import checksum, load_params
from lw_jax.train.loop import checkpoint_root
from lw_jax.train.step import init_heads
from lw_jax.types import PyTree


@dataclass(frozen=True)
class Trained:
    """params: the bridge's, on the mesh; stage, step, which: of the checkpoint they come from;
    origin: how they began, in words; counts: parameters per component, equal to those trained;
    digest: names these very values."""

    params: PyTree
    stage: str
    step: int
    which: str
    origin: str
    counts: dict[str, int]
    digest: str

    @property
    def mark(self) -> bytes:
        """8 bytes that name the bridge on the wire."""
        return self.digest.encode()[:8]

    def to_json(self) -> dict[str, Any]:
        """As it stands in `metrics.json`."""
        return {
            "stage": self.stage,
            "step": self.step,
            "checkpoint": self.which,
            "origin": self.origin,
            "digest": self.digest,
            "components": self.counts,
            "total": sum(self.counts.values()),
        }


def load_trained(
    config: Config,
    run_dir: Path,
    setting: Setting,
    which: Literal["last", "best"] = "last",
    before: str | None = None,
) -> Trained:
    """The bridge as the last train stage left it.

    Args:
        before: only stages that come before this one count; None: all.

    Raises:
        UserError: no stage trains, none has a checkpoint yet, it holds other parameters, or it
            was trained between other frozen models.
    """
    names = list(config.stages)
    names = names[: names.index(before)] if before is not None else names
    trains = [n for n in names if config.stages[n].train is not None]
    if not trains:
        where = f"stages.{before}" if before is not None else str(run_dir)
        raise UserError(f"{where}: no train stage before it; `latent` needs a trained bridge")
    stage = config.stages[trains[-1]].train
    assert stage is not None
    objectives = stage.objectives or config.objectives

    def fresh() -> PyTree:
        key = jax.random.key(0)
        heads = init_heads(objectives, setting.dims, key)
        return {"bridge": bridge.init_bridge(setting.bridge, setting.dims, key), "heads": heads}

    everywhere = replicated(setting.mesh)
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere),
        jax.eval_shape(fresh),
    )
    root = checkpoint_root(run_dir, trains[-1])
    params, meta = load_params(root, like, which)
    _check_frozen(meta["identity"].get("fingerprints", {}), setting.fingerprints)
    return Trained(
        params=params["bridge"],
        stage=trains[-1],
        step=meta["step"],
        which=which,
        origin=_origin(config, trains[0]),
        counts=bridge.component_counts(params["bridge"]),
        digest=f"{checksum(params['bridge']):08x}",
    )


def _origin(config: Config, first: str) -> str:
    stage = config.stages[first].train
    assert stage is not None
    if stage.init_from is None:
        return "from random initialisation"
    return f"started from the bridge in {stage.init_from}"


def _check_frozen(trained: Mapping[str, str], here: Mapping[str, str]) -> None:
    for name in sorted(trained.keys() | here.keys()):
        if trained.get(name) != here.get(name):
            raise UserError(
                f"{name}: the bridge was trained with frozen weights {trained.get(name, 'absent')},"
                f" these are {here.get(name, 'absent')}; use the models of the run"
            )
