"""Which device a run uses: a GPU that is there and that jax cannot use is an error."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

import jax
from jax._src import xla_bridge  # jax says nowhere else whether it has begun

from lw_jax.errors import UserError
from lw_jax.utils.failures import DETERMINISTIC

FILES = ("/dev/nvidiactl", "/dev/nvidia0")
"""Device files of NVIDIA's driver."""
HIDDEN = ("", "-1", "NoDevFiles", "none", "void")
"""Values of CUDA_VISIBLE_DEVICES that show no GPU."""


def gpu_expected(environ: Mapping[str, str], root: Path = Path("/")) -> str | None:
    """What says that there is an NVIDIA GPU to use; None: nothing does.

    Args:
        environ: environment variables.
        root: of the file system.
    """
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return None if visible.strip() in HIDDEN else f"CUDA_VISIBLE_DEVICES is {visible}"
    files = [file for file in FILES if (root / file.lstrip("/")).exists()]
    return f"{files[0]} is there" if files else None


def be_deterministic(environ: MutableMapping[str, str]) -> None:
    """Makes programs for GPUs give the same bits in every process; before jax uses a device.

    Args:
        environ: environment variables, which XLA reads.

    Raises:
        UserError: XLA has read them already.
    """
    if DETERMINISTIC in environ.get("XLA_FLAGS", "").split():
        return
    if jax_uses_devices():
        raise UserError(
            f"deterministic: jax runs already; set XLA_FLAGS={DETERMINISTIC} before it starts"
        )
    environ["XLA_FLAGS"] = f"{environ.get('XLA_FLAGS', '')} {DETERMINISTIC}".strip()


def jax_uses_devices() -> bool:
    """Whether jax has begun to use devices in this process."""
    return bool(xla_bridge.backends_are_initialized())


def use_device(asked: str, environ: Mapping[str, str], root: Path = Path("/")) -> None:
    """Makes jax use the CPU if the config asks for it, and else checks that a GPU is used.

    Args:
        asked: `auto` or `cpu`.
        environ: environment variables.
        root: of the file system.

    Raises:
        UserError: there is an NVIDIA GPU, and jax has none.
    """
    if asked == "cpu":
        jax.config.update("jax_platforms", "cpu")
        return
    said = gpu_expected(environ, root)
    chosen = getattr(jax.config, "jax_platforms", None) or environ.get("JAX_PLATFORMS", "")
    if said is None or chosen.strip() == "cpu" or jax.default_backend() != "cpu":
        return
    raise UserError(
        f"device: {said}, and jax {jax.__version__} has no GPU, so all would run on the CPU; "
        'install jax for it (pip install "jax[cuda13]", or cuda12 for an older driver), or set '
        "device: cpu or JAX_PLATFORMS=cpu to have it so"
    )


def peak_memory() -> list[float]:
    """GiB that were in use at most so far on each local device; [] where it is not known."""
    found = []
    for device in jax.local_devices():
        held: Any = device.memory_stats() or {}
        if "peak_bytes_in_use" not in held:
            return []
        found.append(round(held["peak_bytes_in_use"] / 2**30, 3))
    return found
