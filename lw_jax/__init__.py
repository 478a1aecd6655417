"""A wire between frozen language models. `lw_jax.Bridge` is the Python API (see `lw_jax.api`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lw_jax.api import Bridge

__version__ = "0.1.0"
__all__ = ["Bridge", "__version__"]


def __getattr__(name: str) -> Any:
    """`Bridge`, imported on first use: importing the package alone loads nothing."""
    if name == "Bridge":
        from lw_jax.api import Bridge

        return Bridge
    raise AttributeError(f"module 'lw_jax' has no attribute {name!r}")
