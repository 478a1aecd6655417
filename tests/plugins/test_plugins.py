"""Parts from outside the package: each kind from one file, lw_jax installed as a wheel."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from lw_jax.config import parse
from lw_jax.errors import UserError
from tests.tiny.models import write_model

ROOT = Path(__file__).parents[2]
PARTS = Path(__file__).parent / "parts"
PAGE = (ROOT / "docs/how-to/add-a-part.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```$", PAGE, re.DOTALL | re.M))
"""The files that the page shows, as they are printed there."""


def config(home: Path) -> dict[str, object]:
    """A run that uses a part of every kind."""
    files = sorted(str(path) for path in (home / "mine").glob("*.py"))
    return {
        "name": "plugins",
        "plugins": files,
        "mesh": {"data": 1},
        "receivers": {"reader": {"path": str(home / "reader"), "dtype": "float32"}},
        "data": {"weather": {}},
        "bridge": {
            "latent_dim": 8,
            "source": {"letters": {}},
            "compressor": {"stretches": {"slots": 4}},
            "bottleneck": {"clipped": {}},
            "reader": {"plain": {}},
        },
        "objectives": {"answer_ce": {}, "quiet": {}},
        "stages": {
            "fit": {"train": {"steps": 2, "batch_size": 4, "eval_every": 0, "log_every": 1}},
            "report": {
                "evaluate": {
                    "rows": 8,
                    "batch_size": 4,
                    "bootstrap": 40,
                    # the last needs a bridge
                    "methods": ["text", "first_half", "token_budget_first"],
                    "decode": {"max_new_tokens": 4},
                }
            },
        },
    }


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """lw_jax as its wheel installs it."""
    home = tmp_path_factory.mktemp("wheel")
    for name in ("lw_jax", "pyproject.toml", "README.md", "LICENSE"):
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, home / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, home / name)
    build = "from setuptools.build_meta import build_wheel; build_wheel('dist')"
    (home / "dist").mkdir()
    subprocess.run([sys.executable, "-c", build], cwd=home, check=True, stdout=subprocess.DEVNULL)
    (wheel,) = (home / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(home / "site")
    assert (home / "site" / "lw_jax" / "py.typed").is_file()
    return home / "site"


def launch(site: Path, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line of the installed package, outside the repository."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PYTHONPATH": str(site)}
    code = (
        "import sys, lw_jax; from lw_jax.launch import main; "
        f"assert lw_jax.__file__.startswith({str(site)!r}), lw_jax.__file__; "
        "raise SystemExit(main(sys.argv[1:]))"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=home,
        env=env,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


@pytest.fixture(scope="module")
def run(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run that a part of every kind has part in."""
    home = tmp_path_factory.mktemp("outside")
    write_model(home / "reader", "mistral", vocab=290, width=24)
    (home / "mine").mkdir()
    for path in PARTS.glob("[!_]*.py"):
        shutil.copy(path, home / "mine" / path.name)
    for name, text in BLOCKS.items():
        (home / "mine" / name).write_text(text, encoding="utf-8")
    (home / "all.yaml").write_text(yaml.safe_dump(config(home)), encoding="utf-8")
    done = launch(site, home, "--config", "all.yaml", "--run_dir", "run")
    assert done.returncode == 0, done.stderr
    return home / "run"


def test_the_page_shows_a_file_of_three_kinds() -> None:
    assert set(BLOCKS) == {"stretches.py", "quiet.py", "first_half.py"}


@pytest.mark.parametrize("component", ["source", "compressor", "readers/reader/plain"])
def test_parts_of_the_bridge_are_trained(run: Path, component: str) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["parameters"]["components"][component] > 0
    lines = [json.loads(line) for line in (run / "diagnostics.jsonl").read_text().splitlines()]
    assert all(line[f"grad_norm/{component}"] > 0 for line in lines if "loss" in line)


def test_an_objective_has_its_share(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "diagnostics.jsonl").read_text().splitlines()]
    assert all(line["share/quiet"] > 0 for line in lines if "loss" in line)


def test_a_data_set_gives_the_rows(run: Path) -> None:
    predictions = [json.loads(x) for x in (run / "predictions.jsonl").read_text().splitlines()]
    assert {p["answers"][0] for p in predictions} <= {"sunny", "wet", "cold", "grey"}


def test_a_method_and_a_metric_are_in_the_table(run: Path) -> None:
    found = json.loads((run / "metrics.json").read_text())["receivers"]["reader"]
    assert found["first_half"]["columns"] < found["text"]["columns"]
    assert all(0 <= figures["words"] <= 4 for figures in found.values())  # four new tokens
    assert any(figures["words"] > 0 for figures in found.values())


def test_a_bottleneck_bounds_what_crosses(run: Path) -> None:
    resolved = yaml.safe_load((run / "config.yaml").read_text())
    assert resolved["bridge"]["bottleneck"] == {"clipped": {"limit": 3.0}}


def test_an_installed_package_names_parts_by_entry_points(site: Path, tmp_path: Path) -> None:
    own = tmp_path / "site"
    shutil.copytree(site, own)
    (own / "their_parts.py").write_text(BLOCKS["stretches.py"], encoding="utf-8")
    about = own / "their_parts-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: their_parts\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[lw_jax.compressors]\ntheirs = their_parts\n")
    done = launch(own, tmp_path, "--help", "bridge.compressor.theirs")
    assert done.returncode == 0, done.stderr
    assert "slots" in done.stdout


WRONG = {
    "no_base": ("class Config: pass", "Config has to derive from one of lw_jax.sources.base"),
    "not_frozen": (
        "from lw_jax.readers.base import Reader\n"
        "class Config(Reader):\n    def build(self, dims): ...",
        r"Config has to be a @dataclass\(frozen=True\)",
    ),
    "no_method": (
        "from dataclasses import dataclass\nfrom lw_jax.readers.base import Reader\n"
        "@dataclass(frozen=True)\nclass Config(Reader): pass",
        r"Config lacks build\(self, dims",
    ),
    "signature": (
        "from dataclasses import dataclass\nfrom lw_jax.readers.base import Reader\n"
        "@dataclass(frozen=True)\nclass Config(Reader):\n    def build(self, sizes): ...",
        r"Config.build\(self, sizes\) has other parameters than lw_jax.readers.base.Reader.build",
    ),
    "field_for_method": (
        "from dataclasses import dataclass\nfrom lw_jax.readers.base import Reader\n"
        "@dataclass(frozen=True)\nclass Config(Reader):\n    build: int = 1",
        "build is a method of lw_jax.readers.base.Reader; call the field otherwise",
    ),
    "ends": ("import sys\nsys.exit(0)", "SystemExit: 0"),
    "nothing": ("x = 1", "it defines none of Config"),
    "broken": ("import nowhere_at_all", "ModuleNotFoundError: No module named 'nowhere_at_all'"),
    "lora": (
        "from dataclasses import dataclass\nfrom lw_jax.readers.base import Reader\n"
        "@dataclass(frozen=True)\nclass Config(Reader):\n    def build(self, dims): ...",
        "the name 'lora' is taken in lw_jax.readers",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_that_breaks_its_contract(tmp_path: Path, name: str) -> None:
    text, message = WRONG[name]
    path = tmp_path / f"{name}.py"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        parse.add_plugins({"plugins": [str(path)]})
    assert str(caught.value).startswith(f"plugins: {path}: ")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.py: no such Python file"):
        parse.add_plugins({"plugins": [str(tmp_path / "nowhere.py")]})
