"""Dockerfiles: what they copy is there, what they install is declared, what they say can be run.

Images are not built here; `RUN` lines are commands of pip and of the shell alone.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest

from lw_jax.commands import base

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cuda"])
def test_a_dockerfile_fits_the_repository(name: str) -> None:
    lines = (ROOT / name).read_text().replace("\\\n", " ").splitlines()
    steps = [line.partition(" ")[::2] for line in lines if line and not line.startswith("#")]
    ignored = {line.rstrip("/") for line in (ROOT / ".dockerignore").read_text().split()}
    there: set[str] = set()
    for step, rest in steps:
        words = shlex.split(rest)
        if step == "COPY":
            for one in words[:-1]:
                assert (ROOT / one).exists() and one not in ignored
                there.add(one)
        if step == "RUN" and words[:2] == ["pip", "install"]:
            assert "--no-cache-dir" in words
            assert "requirements.txt" in there
            for extras in re.findall(r"^\.\[(.*)\]$", "\n".join(words), re.MULTILINE):
                assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
                assert {"pyproject.toml", "setup.py", "README.md", "LICENSE"} <= there
                assert {"lw_jax", "configs", "zoo"} <= there
                assert "serve" in extras  # `lw-jax serve` needs more than the package does
    found = dict(steps)
    assert found["FROM"].startswith("python:3.12")
    assert found["ENTRYPOINT"] == '["lw-jax"]' and "lw-jax" in PROJECT["scripts"]
    assert found["USER"] not in ("root", "0")
    # Whoever the container runs as can write where the packages and runs write.
    home = re.search(r"HOME=(\S+)", found["ENV"])
    assert home is not None and home[1] == found["WORKDIR"]
    assert f"chmod -R 1777 {home[1]} /cache" in next(r for s, r in steps[::-1] if s == "RUN")


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cuda", "docs/how-to/containers.md"])
def test_what_a_dockerfile_says_can_be_run(name: str) -> None:
    text = (ROOT / name).read_text()
    runs = re.findall(r"docker run .*? lw_jax(?::cuda)? (.*)", text)
    assert runs
    for line in runs:
        command, *words = shlex.split(line)
        known = base.command(command)
        if known.arguments is not None:
            base.parser_of(command, known).parse_args(words)
        assert all((ROOT / one).exists() for one in words if "/" in one)
