"""What needs no jax is answered without it, and at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import lw_jax

ROOT = Path(__file__).parents[2]
SECONDS = 0.5
"""Of the processor, from the first line of the process to its last."""
CODE = """
import sys, time
from lw_jax.launch import main
code = main(sys.argv[1:])
assert not {"jax", "flax", "transformers"} & set(sys.modules), sorted(sys.modules)
print(time.process_time())
raise SystemExit(code)
"""


def answered(*arguments: str, cwd: Path = ROOT) -> tuple[int, list[str], str]:
    """Exit code, lines of standard output (the last one is the processor time), and errors."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    lines = done.stdout.splitlines()
    assert lines, done.stderr
    assert float(lines[-1]) <= SECONDS
    return done.returncode, lines[:-1], done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("run.yaml", "unexpected 'run.yaml': flags look like --key=value"),
        ("--config", "--config: needs a value"),
        ("--config x.yaml --steps", "--steps: needs a value"),
        ("--seed=1", "give either --config FILE or --evaluate RUN_DIR"),
        ("--config nowhere.yaml", "--config: no such file: nowhere.yaml"),
        ("--config bad.yaml", "bad.yaml"),
        ("--doctor --config nowhere.yaml", "--config: no such file: nowhere.yaml"),
        ("--evaluate nowhere", "nowhere: no config.yaml there, so it is no run directory"),
        ("--sweep seed --config bad.yaml", "give values as well"),
    ],
)
def test_wrong_command_lines_and_files(tmp_path: Path, arguments: str, message: str) -> None:
    (tmp_path / "bad.yaml").write_text("name: [unclosed\n")
    (tmp_path / ".hidden.yaml").touch()
    code, _, errors = answered(*arguments.split(), cwd=tmp_path)
    assert code == 2
    (line,) = errors.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert ".hidden" not in line  # files that are offered instead are such as people name


def test_version() -> None:
    assert answered("--version")[:2] == (0, [f"lw_jax {lw_jax.__version__}"])


@pytest.mark.parametrize("word", ["-h", "--help"])
def test_help_says_how_it_is_used_and_the_first_keys(word: str) -> None:
    code, lines, _ = answered(word)
    text = "\n".join(lines)
    assert code == 0
    assert "--config FILE" in text
    for key in ("stages", "bridge", "receivers", "plugins"):
        assert f"\n    {key}: " in text
