"""Rotary position embedding (Su et al. 2021), with the long-context scaling of Llama 3.1.

Angles are float32 for every dtype of the model: bf16 angles are wrong from position 256 on.
Positions may be fractions, so that latent slots can be spread over the length of a text.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from lw_jax.models.arch import Arch
from lw_jax.types import Array


def inverse_frequencies(arch: Arch) -> NDArray[np.float32]:
    """[h/2] float32, radians per position for each pair of channels."""
    exponents = np.arange(0, arch.head_dim, 2, dtype=np.float32) / np.float32(arch.head_dim)
    inverse = (1.0 / np.float32(arch.rope.theta) ** exponents).astype(np.float32)
    scaling = arch.rope.scaling
    if scaling is None:
        return inverse
    wavelength = 2 * np.pi / inverse
    low = scaling.original_max_positions / scaling.low_freq_factor
    high = scaling.original_max_positions / scaling.high_freq_factor
    span = scaling.high_freq_factor - scaling.low_freq_factor
    smooth = (scaling.original_max_positions / wavelength - scaling.low_freq_factor) / span
    blended = ((1 - smooth) / scaling.factor + smooth) * inverse
    slowed = np.where(wavelength > low, inverse / scaling.factor, blended)
    return np.where(wavelength < high, inverse, slowed).astype(np.float32)


def angles(arch: Arch, positions: Array) -> tuple[Array, Array]:
    """Cosines and sines [B, T, h/2] float32 at positions [B, T], whole or fractional."""
    turned = positions.astype(jnp.float32)[..., None] * inverse_frequencies(arch)[None, None]
    return jnp.cos(turned), jnp.sin(turned)


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Rotates heads x [B, T, N, h] by angles [B, T, h/2]; the dtype of x is kept.

    Channels c and c + h/2 form a pair (the Hugging Face order). Rotating by (cos, -sin) undoes it.
    """
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, :, None], sin[:, :, None]
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
