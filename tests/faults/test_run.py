"""The runner of faults: a fault must apply, its test must run, and go red."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.faults.run import ROOT, Fault, main, verdict

TEST = "tests/test_add.py::test_add"
PATCH = """\
The sum is off by one.
test: {test}
fails: {reason}
--- a/lw_jax/add.py
+++ b/lw_jax/add.py
@@ -1,2 +1,2 @@
 def add(a, b):
-    return {old}
+    return {new}
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree with one function and one test."""
    (tmp_path / "lw_jax").mkdir()
    (tmp_path / "lw_jax" / "__init__.py").touch()
    (tmp_path / "lw_jax" / "add.py").write_text("def add(a, b):\n    return a + b\n")
    (tmp_path / "tests" / "faults").mkdir(parents=True)
    test = "from lw_jax.add import add\n\n\ndef test_add():\n    assert add(1, 2) == 3\n"
    (tmp_path / "tests" / "test_add.py").write_text(test)
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\n")
    return tmp_path


def fault(
    tree: Path,
    test: str = TEST,
    old: str = "a + b",
    new: str = "a + b + 1",
    reason: str = "assert 4 == 3",
) -> Fault:
    path = tree / "tests" / "faults" / "off_by_one.patch"
    path.write_text(PATCH.format(test=test, old=old, new=new, reason=reason))
    return Fault.read(path)


@pytest.mark.slow  # as `.ci/run` does for every fault there is
def test_a_fault_that_is_noticed(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fault(tree)
    assert main([], tree) == 0
    assert "faults: 1 passed, 0 failed" in capsys.readouterr().out
    assert (tree / "lw_jax" / "add.py").read_text().endswith("return a + b\n")


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of pytest without plugins, which they spend most of their time importing."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")


@pytest.mark.usefixtures("bare")
def test_a_fault_that_nobody_notices(tree: Path) -> None:
    assert "stays green" in verdict(fault(tree, new="b + a"), tree)


def test_a_patch_that_no_longer_applies(tree: Path) -> None:
    assert "does not apply" in verdict(fault(tree, old="a - b"), tree)


@pytest.mark.usefixtures("bare")
def test_a_fault_that_breaks_the_import_is_no_proof(tree: Path) -> None:
    assert "could not run" in verdict(fault(tree, new="("), tree)


@pytest.mark.usefixtures("bare")
def test_a_test_that_is_red_for_another_reason(tree: Path) -> None:
    assert "for another reason than 'assert 5'" in verdict(fault(tree, reason="assert 5"), tree)
    assert "NameError" in verdict(fault(tree, new="c", reason="NameError"), tree)


@pytest.mark.usefixtures("bare")
def test_a_test_that_is_gone(tree: Path) -> None:
    assert "could not run" in verdict(fault(tree, test="tests/test_add.py::test_sum"), tree)


@pytest.mark.usefixtures("bare")
def test_a_test_that_is_red_anyway(
    tree: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_PLUGINS", "xdist.plugin")  # all tests are run in two processes
    fault(tree)
    (tree / "lw_jax" / "add.py").write_text("def add(a, b):\n    return a - b\n")
    assert main([], tree) == 1
    assert "the tests are not green" in capsys.readouterr().out


def test_a_patch_without_a_test(tree: Path) -> None:
    path = tree / "x.patch"
    path.write_text("--- a/x\n+++ b/x\n")
    with pytest.raises(ValueError, match="expected pairs of lines `test:"):
        Fault.read(path)
    path.write_text(f"test: {TEST}\n--- a/x\n+++ b/x\n")
    with pytest.raises(ValueError, match="expected pairs of lines `test:"):
        Fault.read(path)


@pytest.mark.parametrize("patch", sorted(ROOT.glob("tests/faults/*.patch")), ids=lambda p: p.stem)
def test_every_patch_applies_and_names_tests_that_are_there(patch: Path) -> None:
    done = subprocess.run(
        ["git", "apply", "--check", "--recount", "-C1", str(patch)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for test, _ in Fault.read(patch).tests:
        path, _, name = test.partition("::")
        assert f"def {name.partition('[')[0]}(" in (ROOT / path).read_text()
