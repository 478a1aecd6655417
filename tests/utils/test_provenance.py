"""A figure can be traced to the code that measured it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import lw_jax
from lw_jax.stages.evaluate import versions
from lw_jax.utils import provenance


def test_version_and_commit_are_those_of_this_code() -> None:
    found = versions()
    assert found["lw_jax"] == lw_jax.__version__
    assert "not installed" not in found.values()
    root = Path(lw_jax.__file__).parents[1]
    if (root / ".git").exists():
        head = ["git", "-C", str(root), "rev-parse", "HEAD"]
        made = subprocess.run(head, capture_output=True, text=True, check=True)
        assert found["commit"].removesuffix("+") == made.stdout.strip()


def test_another_repository_around_an_installed_package_is_not_its_own(tmp_path: Path) -> None:
    def git(*given: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        subprocess.run(["git", "-C", str(tmp_path), *who, *given], check=True, capture_output=True)

    git("init")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-m", "one")
    (tmp_path / "site").mkdir()
    home = tmp_path.resolve()
    assert provenance.commit(home / "site") is None
    assert provenance.commit(home / "nowhere") is None
    found = provenance.commit(home)
    assert found is not None and len(found) == 40
    provenance.commit.cache_clear()
    (tmp_path / "file").write_text("2")
    assert provenance.commit(home) == f"{found}+"
    provenance.commit.cache_clear()
