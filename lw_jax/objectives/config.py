"""The objectives: one or several of those in this folder."""

from __future__ import annotations

from lw_jax.utils.registry import Choice


class ObjectivesConfig(Choice[object], package="lw_jax.objectives", contract=object):
    """The objectives: one or several are set."""
