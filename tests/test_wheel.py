"""A wheel brings configs, models and bridges, and they are found from anywhere."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from lw_jax.utils import shipped

ROOT = Path(__file__).parents[1]


def test_every_file_is_packed() -> None:
    made = runpy.run_path(str(ROOT / "setup.py"))["shipped"]()
    files = {f for part in shipped.PARTS for f in (ROOT / part).rglob("*") if f.is_file()}
    assert {ROOT / file for _, held in made for file in held} == files
    assert ("share/lw_jax/zoo/tiny-qwen", "zoo/tiny-qwen/config.json") in [
        (folder, file) for folder, held in made for file in held
    ]


def test_what_ships_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert shipped.found("configs/facts.yaml") == str(ROOT / "configs/facts.yaml")
    assert shipped.found("zoo/tiny-llama") == str(ROOT / "zoo/tiny-llama")
    for other in ("configs/none.yaml", "lw_jax/api.py", "/configs/facts.yaml", "../configs", ""):
        assert shipped.found(other) == other
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/facts.yaml").write_text("name: mine\n")
    assert shipped.found("configs/facts.yaml") == "configs/facts.yaml"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_wheel_runs_the_quickstart_outside_the_repository(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-q"]
    source = tmp_path / "source"
    source.mkdir()
    for name in ("lw_jax", *shipped.PARTS):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run([*pip, "-w", str(tmp_path / "dist"), str(source)], check=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        names = [name for name in packed.namelist() if "/data/share/lw_jax/" in name]
    assert len(names) == sum(f.is_file() for p in shipped.PARTS for f in (ROOT / p).rglob("*"))

    home = tmp_path / "venv"
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    # what lw_jax needs is that of this environment; lw_jax itself is the wheel's alone
    (site,) = (home / "lib").glob("python*/site-packages")
    subprocess.run(
        [*pip[:3], "--python", str(python), "install", "--no-deps", "-q", str(wheel)], check=True
    )
    packages = next(p for p in sys.path if p.endswith("site-packages"))
    (site / "needed.pth").write_text(f"{packages}\n")
    environ = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    away = tmp_path / "elsewhere"
    away.mkdir()

    def run(*words: str) -> str:
        done = subprocess.run(
            [str(home / "bin" / "lw-jax"), *words],
            cwd=away,
            env=environ,
            capture_output=True,
            text=True,
            timeout=1500,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    where = subprocess.run(
        [str(python), "-c", "import lw_jax; print(lw_jax.__file__)"],
        cwd=away,
        env=environ,
        capture_output=True,
        text=True,
        check=True,
    )
    assert where.stdout.startswith(str(home))
    assert "configs/quickstart.yaml" in run("configs", "quickstart")
    few = ["--stages.fit.train.steps=2", "--stages.fit.train.eval_rows=4"]
    few += ["--stages.report.evaluate.rows=8", "--stages.before.evaluate.rows=8"]
    few += ["--stages.report.evaluate.bootstrap=40", "--stages.fit.train.eval_every=0"]
    assert "The wire carries content" in run("train", "configs/quickstart.yaml", *few)
    assert (away / "runs/quickstart/report.html").is_file()
