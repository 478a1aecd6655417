"""`lw-jax` and its subcommands: help, and what is wrong, without jax; the rest as `launch` does."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lw_jax.__main__ import main
from lw_jax.commands import base

ROOT = Path(__file__).parents[2]
CODE = """
import sys
from lw_jax.__main__ import main
from lw_jax.commands import base
lines = sys.argv[1:] or [f"{name} --help" for name in base.names()]
codes = [main(line.split()) for line in lines]
assert not {"jax", "flax", "transformers"} & set(sys.modules), sorted(sys.modules)
print(codes)
"""


def test_help_and_wrong_command_lines_are_answered_without_jax() -> None:
    wrong = ["trian", "train", "sweep --seed=1", "evaluate --rows=3", "doctor", "configs --foo"]
    wrong += ["train nowhere.yaml", "help nowhere", "configs nothing-of-that-name"]
    right = ["", "help", "--help", "--version", "configs facts", "help train"]
    lines = [*wrong, *right, *(f"{name} --help" for name in base.names())]
    done = subprocess.run(
        [sys.executable, "-c", CODE, *lines],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.splitlines()[-1:] == [
        str([2] * len(wrong) + [0] * (len(lines) - len(wrong)))
    ]
    errors = done.stderr.splitlines()
    assert len(errors) == len(wrong)
    assert all(line.startswith("error: ") for line in errors)
    assert errors[0] == "error: lw-jax trian: no such command; did you mean train?"


@pytest.mark.parametrize("name", base.names())
def test_each_explains_itself_with_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    said = capsys.readouterr().out
    one = base.command(name)
    assert said.startswith(f"usage: lw-jax {name}")
    assert one.summary in said
    assert one.examples
    for line, _ in one.examples:
        assert f"  lw-jax {line}\n" in said
        assert line.split()[0] == name


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_command_lines_of_the_docs_and_of_examples_are_taken() -> None:
    lines = [
        line.partition(" | ")[0].partition(" < ")[0]
        for page in PAGES
        for fence in re.findall(r"^```\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
        for line in fence.replace("\\\n", " ").splitlines()
        if line.startswith("lw-jax ")
    ]
    assert len(lines) > 5
    shown = (base.command(name).examples for name in base.names())
    lines += [f"lw-jax {line}" for examples in shown for line, _ in examples]
    for line in lines:
        plain = line.partition(" | ")[0].partition(" < ")[0]
        _, name, *words = shlex.split(plain, comments=True)
        one = base.command(name)
        if not one.words:
            base.parser_of(name, one).parse_args(words)


def test_help_of_a_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help", "stages.fit.train.steps"]) == 0
    wanted = capsys.readouterr().out
    assert "steps" in wanted
    assert main(["help", "stages.fit.train.steps"]) == 0
    assert capsys.readouterr().out == wanted


def test_all_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    said = capsys.readouterr().out
    assert all(f"\n  {name} " in said for name in base.names())


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("a.yaml b.yaml --seed 3", "--config a.yaml --config b.yaml --seed 3"),
        ("--doctor a.yaml --x=1 b.yaml", "--doctor --config a.yaml --x=1 --config b.yaml"),
        ("--config a.yaml", "--config a.yaml"),
        ("a.yaml --sweep seed=1,2", "--config a.yaml --sweep seed=1,2"),
    ],
)
def test_config_files_stand_alone(words: str, wanted: str) -> None:
    assert base.config_words(words.split()) == wanted.split()


def test_they_are_the_flags_of_launch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    config = "configs/quickstart.yaml"
    assert main(["train", config, "--print_config", "--seed", "7"]) == 0
    ours = capsys.readouterr().out
    assert main(["--config", config, "--print_config", "--seed=7"]) == 0
    assert capsys.readouterr().out == ours
    assert "\nseed: 7\n" in ours
    assert main(["sweep", config, "seed=1,x"]) == 2
    assert "seed: expected a whole number" in capsys.readouterr().err
    assert main(["evaluate", "configs"]) == 2
    assert "no config.yaml there" in capsys.readouterr().err


def test_what_ships_is_listed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["configs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = {line.split()[0] for line in lines}
    shipped = {str(p.relative_to(ROOT)) for p in (ROOT / "configs").rglob("*.yaml")}
    assert shipped | {"zoo/bridges/facts", "zoo/tiny-qwen"} <= listed
    assert all(len(line.split(maxsplit=1)) == 2 for line in lines)
    monkeypatch.chdir(tmp_path)
    assert main(["configs", "tiny-qwen"]) == 0
    assert "zoo/tiny-qwen" in capsys.readouterr().out
