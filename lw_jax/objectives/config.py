"""The objectives: one or several of those in this folder."""

from __future__ import annotations

from lw_jax.objectives.base import Objective
from lw_jax.utils.registry import Choice


class ObjectivesConfig(Choice[Objective], package="lw_jax.objectives", contract=Objective):
    """The objectives: one or several are set."""
