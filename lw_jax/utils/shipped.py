"""Where the configs, models and bridges that ship are: in a checkout, or where the wheel put them.

A wheel lays `configs` and `zoo` into `share/lw_jax` of the environment. A path such as
`configs/quickstart.yaml` or `zoo/tiny-llama` is looked up from the current directory first.
"""

from __future__ import annotations

import sysconfig
from functools import cache
from pathlib import Path

PARTS = ("configs", "zoo")


@cache
def home() -> Path | None:
    """The directory that holds `configs` and `zoo`; None: they are not installed."""
    checkout = Path(__file__).resolve().parents[2]
    places = [checkout, Path(sysconfig.get_path("data")) / "share" / "lw_jax"]
    if "posix_user" in sysconfig.get_scheme_names():
        places.append(Path(sysconfig.get_path("data", "posix_user")) / "share" / "lw_jax")
    return next((one for one in places if all((one / part).is_dir() for part in PARTS)), None)


def found(path: str) -> str:
    """A path as it is, if something is there; else what ships under that name, if there is that."""
    plain, place = Path(path), home()
    if place is None or plain.is_absolute() or plain.exists() or plain.parts[:1] == ("..",):
        return path
    other = place / plain
    return str(other) if plain.parts[:1] and plain.parts[0] in PARTS and other.exists() else path
