"""The product's given shape: folders, packages, and the command that runs a config."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = "lw_jax lw_jax/models lw_jax/objectives launch configs tests".split()
PACKAGES = "jax flax optax orbax transformers datasets einops chex".split()


@pytest.mark.parametrize("folder", FOLDERS)
def test_folders(folder: str) -> None:
    assert any((ROOT / folder).iterdir())


def test_requirements() -> None:
    listed = (ROOT / "requirements.txt").read_text()
    for package in PACKAGES:
        assert re.search(rf"^{package}\b", listed, re.MULTILINE), package


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_are_used(package: str) -> None:
    used = re.compile(rf"^\s*(?:import|from) {package}\b", re.MULTILINE)
    assert any(used.search(path.read_text()) for path in (ROOT / "lw_jax").rglob("*.py"))


def test_the_command_reads_a_config() -> None:
    command = [sys.executable, "-m", "lw_jax.launch", "--config", "configs/quickstart.yaml"]
    done = subprocess.run(
        [*command, "--print_config"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "name: quickstart\n" in done.stdout
