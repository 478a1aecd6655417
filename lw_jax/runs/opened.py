"""The frozen models of a run, each opened once."""

from __future__ import annotations

from jax.sharding import Mesh

from lw_jax.config.schema import Config
from lw_jax.models.config import ModelConfig
from lw_jax.models.frozen import Frozen
from lw_jax.models.spec import FrozenSpec, open_model
from lw_jax.runs.identity import models_of


class Session:
    """The frozen models of a run: each is opened once and loaded once, for all of its stages.

    It keeps what the first stage that used a model needed: a sender's layers up to the highest tap,
    receivers complete. A stage that needs more of a model (`relay` the complete sender) gets it
    with the missing layers read, and the session does not keep those.
    """

    def __init__(self) -> None:
        self._specs: dict[tuple[str, ModelConfig], FrozenSpec] = {}
        self._models: dict[tuple[str, ModelConfig, Mesh], Frozen] = {}

    def open(self, name: str, config: ModelConfig) -> FrozenSpec:
        """A model of the run, or the sender of another bridge; see `open_model`.

        Args:
            name: `sender`, or the receiver's name.
            config: where its files are, and how its weights are stored.

        Raises:
            UserError: anything wrong with the model, in one line.
        """
        if (name, config) not in self._specs:
            self._specs[name, config] = open_model(name, config)
        return self._specs[name, config]

    def load(
        self, spec: FrozenSpec, mesh: Mesh, layers: int | None = None, head: bool = True
    ) -> Frozen:
        """A model with at least these layers; see `FrozenSpec.load`.

        Args:
            spec: the model.
            mesh: the device mesh.
            layers: number of layers, from the first on; None: all.
            head: whether the output head is needed.

        Raises:
            UserError: anything wrong with the weights, in one line.
        """
        key = spec.name, spec.config, mesh
        have = self._models.get(key)
        if have is None:
            self._models[key] = have = spec.load(mesh, layers, head)
        if spec.holds(have, layers, head):
            return have
        return spec.load(mesh, layers, head, have)

    def begin(self, config: Config, kind: str) -> None:
        """Releases what a stage does not need.

        Args:
            config: config of the run.
            kind: kind of the stage. `pretrain` needs no frozen model, and may write one that a
                later stage reads; the others need the config's models, but no other bridge's
                sender.
        """
        own = {(name, model) for name, model in models_of(config).items()}
        if kind == "pretrain":
            own = set()
            self._specs.clear()
        self._models = {key: model for key, model in self._models.items() if key[:2] in own}
