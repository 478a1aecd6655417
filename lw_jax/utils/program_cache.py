"""Compiled programs on disk, so that a second start finds what the first one compiled.

JAX does it where it is told a folder. A folder that the user has named, in
`JAX_COMPILATION_CACHE_DIR` or JAX's own settings, is used as it is;
`JAX_ENABLE_COMPILATION_CACHE=0` keeps nothing.
"""

from __future__ import annotations

import hashlib
import os
import platform
import stat
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

FOLDER, SWITCH = "JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE"
OFF = ("0", "false", "f", "no", "n", "off")
"""What JAX takes for False."""
SECONDS = 0.1
"""A program that takes longer to compile is kept: a start has dozens of small ones."""
BYTES = 8 * 2**30
"""Room of the folder; what was not used for longest goes first."""


def settings(environ: Mapping[str, str]) -> dict[str, str]:
    """Variables for JAX, which reads them when it is loaded; the folder is made.

    Args:
        environ: the environment.

    Returns:
        None of them where the user has decided, or where no folder is to be had that nobody else
        can write: a program in it is run.
    """
    switch = environ.get(SWITCH, "1").strip().lower()
    if FOLDER in environ or switch in OFF:
        return {}
    folder = own_folder(environ, f"xla/{_processor()}")
    if folder is None:
        return {}
    _remove_unfinished(folder)
    found = {
        FOLDER: str(folder),
        "JAX_COMPILATION_CACHE_MAX_SIZE": str(BYTES),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": str(SECONDS),
    }
    return {name: value for name, value in found.items() if name not in environ}


def quiet() -> None:
    """Has JAX say nothing where a program cannot be kept or read back, as on a full disk: it is
    compiled, and a run that needs the disk itself says so in its own line."""
    warnings.filterwarnings(
        "ignore", r"Error (reading|writing) persistent compilation cache entry", UserWarning
    )


def own_folder(environ: Mapping[str, str], name: str) -> Path | None:
    """A folder of the user's cache that nobody else can write, made; None: there can be none.

    Args:
        environ: the environment.
        name: of the folder, below `lw_jax`.
    """
    home = environ.get("XDG_CACHE_HOME") or (
        str(Path(environ["HOME"]) / ".cache") if environ.get("HOME") else ""
    )
    if not home or not Path(home).is_absolute():
        return None
    folder = Path(home) / "lw_jax" / name
    return folder if _own(folder) else None


def use() -> None:
    """The same where JAX is loaded already, as in a program that imports this package."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    held = {name: getattr(jax.config, name.lower()) for name in (FOLDER, SWITCH)}
    if held[FOLDER] is not None or not held[SWITCH]:
        return
    found = settings(os.environ)
    if not found:
        return
    for name, value in found.items():
        kind = str if name == FOLDER else type(getattr(jax.config, name.lower()))
        jax.config.update(name.lower(), kind(value))
    compilation_cache.reset_cache()  # what was compiled before has settled that there is none


def _own(folder: Path) -> bool:
    """Makes a folder that the user alone can use; whether it is one."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        held = folder.stat()
    except OSError:
        return False
    return (
        held.st_uid == os.getuid()
        and not stat.S_IMODE(held.st_mode) & (stat.S_IWGRP | stat.S_IWOTH)
        and os.access(folder, os.W_OK)
    )


def _remove_unfinished(folder: Path) -> None:
    """Removes programs that a process was killed in writing: JAX would stumble over them for good.

    The time of their last use is written last.
    """
    with suppress(OSError):
        for program in folder.glob("*-cache"):
            if not program.with_name(f"{program.name.removesuffix('-cache')}-atime").exists():
                program.unlink(missing_ok=True)


def _processor() -> str:
    """16 hex digits of what the processor can do: a home directory may be shared by several kinds,
    and a program for one of them need not run on another."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line for line in lines if line.startswith(("flags", "Features", "model name"))]
    said = "\n".join(sorted(set(named))) or platform.processor()
    return hashlib.sha256(f"{platform.machine()}\n{said}".encode()).hexdigest()[:16]
