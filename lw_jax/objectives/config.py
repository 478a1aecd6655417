"""The objectives: one or several of those in this folder."""

from __future__ import annotations

from lw_jax.utils.registry import choice

ObjectivesConfig = choice(
    "ObjectivesConfig", "lw_jax.objectives", "The objectives: one or several are set."
)
