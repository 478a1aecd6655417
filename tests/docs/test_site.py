"""The documentation as a site, and its notebooks: built and run without a network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_the_site_is_built_without_a_network(tmp_path: Path) -> None:
    nowhere = {f"{kind}_proxy": "http://127.0.0.1:9" for kind in ("http", "https", "HTTP", "HTTPS")}
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env=os.environ | nowhere | {"NO_MKDOCS_2_WARNING": "1", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    pages = {p.relative_to(tmp_path / "site") for p in (tmp_path / "site").rglob("*.html")}
    for page in ("index", "tutorial", "concepts", "reference/python", "reference/config"):
        assert Path(f"{page}.html") in pages
    keys = (tmp_path / "site/reference/config.html").read_text()
    assert 'id="bridge.compressor.perceiver"' in keys and "<code>latent_dim</code>" in keys
    python = (tmp_path / "site/reference/python.html").read_text()
    shown = ("Bridge.encode", "Bridge.answer", "Message.from_bytes", "Talk.ask", "engines.export")
    for one in shown:
        assert re.search(rf'id="lw_jax\.[a-z.]+\b{one}"', python), one
    for page in pages:
        text = (tmp_path / "site" / page).read_text()
        loaded = re.findall(r"<(?:script|img|link)[^>]+(?:src|href)=\"?(https?:[^\"\s>]+)", text)
        assert not [one for one in loaded if "canonical" not in one], page


@pytest.mark.parametrize("book", BOOKS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore")
def test_notebooks_run(book: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    read = nbformat.read(book, as_version=4)
    assert not any(cell.get("outputs") for cell in read.cells)
    NotebookClient(read, timeout=1500, resources={"metadata": {"path": str(ROOT)}}).execute()


def test_there_are_notebooks() -> None:
    assert len(BOOKS) >= 2
