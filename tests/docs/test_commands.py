"""Every command of the docs is one that `launch` takes: its files, keys and values are right."""

import re
import shlex
from pathlib import Path

import pytest

from lw_jax.launch import main

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


def test_there_are_commands() -> None:
    every = [line for page in PAGES for line in commands(page) if line.startswith(LAUNCH)]
    assert len(every) > 20
