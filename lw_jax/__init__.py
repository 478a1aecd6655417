"""A wire between frozen language models. `Bridge` and `Message` are the Python API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lw_jax.api import Bridge
    from lw_jax.wire.message import Message

__version__ = "0.1.0"
__all__ = ["Bridge", "Message", "__version__"]


def __getattr__(name: str) -> Any:
    """`Bridge` and `Message`, imported on first use: the package alone loads nothing."""
    if name == "Bridge":
        from lw_jax.api import Bridge

        return Bridge
    if name == "Message":
        from lw_jax.wire.message import Message

        return Message
    raise AttributeError(f"module 'lw_jax' has no attribute {name!r}")
