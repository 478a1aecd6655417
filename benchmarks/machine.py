"""What a benchmark was measured on: the device, the cores, the versions."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from lw_jax.utils.provenance import provenance

PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch", "transformers")


def measured_on() -> dict[str, Any]:
    """Hardware and versions; the device is asked for in a process that then lets go of it."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    code = "import jax; d = jax.devices(); print(len(d), d[0].device_kind, sep='|')"
    count, _, kind = last_line(code).partition("|")
    return {
        "date": datetime.date.today().isoformat(),
        "device": kind.strip(),
        "devices": int(count),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": versions,
        **provenance(),
    }


def last_line(code: str) -> str:
    """What Python code prints last in a process of its own; empty where it prints nothing."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return (done.stdout.strip().splitlines() or [""])[-1]
