"""The help names every key, and every key is documented."""

from __future__ import annotations

import dataclasses
import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from lw_jax.config import tree
from lw_jax.config.help import print_help, sections
from lw_jax.config.schema import Config
from lw_jax.errors import UserError
from lw_jax.utils import kinds


def shown(key: str) -> str:
    out = io.StringIO()
    print_help(key, Console(file=out, width=100))
    return out.getvalue()


def test_every_key_has_a_line_of_its_own() -> None:
    undocumented = [
        f"{section.key}.{name}"
        for section in sections()
        for name, _, doc in section.leaves
        if not doc
    ]
    assert undocumented == []


def test_every_key_that_a_flag_may_set_is_in_the_help() -> None:
    named = {"NAME": {}}
    stages = {"NAME": {"train": {"tasks": named}}}
    raw = {"stages": stages, "receivers": named, "bridge": {"sources": named}}
    listed = {f"{s.key}.{name}".lstrip(".") for s in sections() for name, _, _ in s.leaves}
    leaves = {
        path for path in tree.paths(Config, raw) if not path.endswith("NAME") and not _is_part(path)
    }
    assert leaves == listed


def _is_part(path: str) -> bool:
    kind = tree.at(Config, tuple(path.split(".")))
    return bool(kinds.fields(kind)) or dataclasses.is_dataclass(tree.named(kind))


def test_help_shows_types_and_defaults() -> None:
    text = shown("")
    assert "--config FILE" in text
    assert "stages.NAME.train" in text
    assert "int, required (1 to 65,536)" in text
    assert "float32|bfloat16 = bfloat16" in text


def test_help_of_one_part_and_of_one_key() -> None:
    part, key = shown("stages.fit.train.optimiser"), shown("stages.fit.train.optimiser.lr")
    assert "weight_decay" in part
    assert "latent_dim" not in part
    assert "number = 0.001 (above 1e-12, at" in key
    assert "weight_decay" not in key
    assert "text, required" in shown("name")


def test_help_of_an_unknown_key() -> None:
    with pytest.raises(UserError, match=r"did you mean bridge.latent_dim\?"):
        print_help("bridge.latent_dmi", Console(file=io.StringIO()))


def test_help_of_one_key_has_its_path_and_its_default_on_one_line() -> None:
    lines = [line.strip() for line in shown("stages.fit.train.steps").splitlines() if line.strip()]
    assert lines[0].startswith("stages.fit.train.steps")
    assert 'text = "\\nAnswer:"' in shown("layout.anchor")


@pytest.mark.parametrize(
    ("key", "guess"),
    [
        ("bridge.compresor", "bridge.compressor"),
        ("bridge.compressor.percever", "bridge.compressor.perceiver"),
        ("stages.NAME.train.step", "stages.NAME.train.steps"),
    ],
)
def test_help_guesses_parts_and_keys(key: str, guess: str) -> None:
    with pytest.raises(UserError, match=f"did you mean {guess}[?]"):
        print_help(key, Console(file=io.StringIO()))


def test_help_cites_what_is_there() -> None:
    text = shown("")
    assert "SPEC" not in text
    sections_of = {
        int(n) for n in re.findall(r"docs/design\.md section (\d+)", " ".join(text.split()))
    }
    design = (Path(__file__).parents[2] / "docs" / "design.md").read_text()
    assert sections_of
    assert sections_of <= {int(n) for n in re.findall(r"^## (\d+)\.", design, re.MULTILINE)}
