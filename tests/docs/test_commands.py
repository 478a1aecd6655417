"""Every command of the docs is one that `launch` takes: its files, keys and values are right."""

import re
import shlex
from pathlib import Path

import jax
import pytest

from lw_jax.config import parse
from lw_jax.config.command import read_command
from lw_jax.launch import main
from lw_jax.mesh import MeshConfig
from tests.test_configs import arch_of, steps, undivided

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LAUNCH = "python -m lw_jax.launch "


def commands(page: Path) -> list[str]:
    """The page's fenced lines, continued ones joined."""
    fences = re.findall(r"^```\w*\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    return [line for fence in fences for line in fence.replace("\\\n", " ").splitlines()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_are_taken(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("configs", "zoo"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    for line in commands(page):
        if made := re.fullmatch(r"echo '(.*)' > (\S+)", line):
            Path(made[2]).write_text(made[1])
        if line.startswith(LAUNCH):
            words = shlex.split(line.removeprefix(LAUNCH))
            assert main(["--print_config", *words]) == 0, (line, capsys.readouterr().err)


@pytest.mark.parametrize(
    "whole", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["parameters", "steps"]
)
def test_commands_for_models_that_do_not_ship_fit_their_shapes(
    monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    """Traced at the real sizes; and the sender is not read in its first layers alone."""
    monkeypatch.chdir(ROOT)
    tried = 0
    for line in (line for page in PAGES for line in commands(page) if line.startswith(LAUNCH)):
        command = read_command(shlex.split(line.removeprefix(LAUNCH)))
        if command.action != "run" or not all(
            Path(f).is_file() for f in (command.target, *command.over)
        ):
            continue
        config = parse.read(command.target, command.flags, command.over)
        models = [*config.receivers.values(), *([config.sender] if config.sender else [])]
        if all(Path(model.path).is_dir() for model in models) or config.bridge is None:
            continue
        tried += 1
        for step in steps(undivided(config), MeshConfig(data=1)):
            if whole:
                jax.eval_shape(step.step, *step.arguments)
        assert config.sender is not None
        sender = arch_of(config.sender.path)
        assert config.bridge.sender_layers(sender) >= sender.layers / 4, line
    assert tried


def test_there_are_commands() -> None:
    every = [line for page in PAGES for line in commands(page) if line.startswith(LAUNCH)]
    assert len(every) > 20
