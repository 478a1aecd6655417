"""Put each fault back once, and see that the test that guards against it goes red.

    python tests/faults/run.py [NAME ...]

A fault is `tests/faults/NAME.patch`: lines of text that say what it is, one or more pairs of lines

    test: tests/...::test_...
    fails: REGULAR EXPRESSION

then a diff against the tree. Every fault is applied to a copy of the tree. The run fails for a
patch that no longer applies, a test that stays green, and one that is red for another reason: what
pytest says of the failure (its lines that begin with `E`) has to match the expression, and may not
be an error of a broken program (`BROKEN`).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("lw_jax", "tests", "pyproject.toml")
"""What a patch may change; the rest of the tree is linked."""
TIMEOUT = 900
BROKEN = ("AttributeError", "NameError", "ImportError", "ModuleNotFoundError", "TypeError")
"""Failures that show a patch which no longer fits the code, whatever it is said to show."""


@dataclass(frozen=True)
class Fault:
    """A patch, and the tests that must go red.

    Attributes:
        patch: its file.
        tests: each with the regular expression that its failure has to match.
    """

    patch: Path
    tests: tuple[tuple[str, str], ...]

    @staticmethod
    def read(patch: Path) -> Fault:
        """The fault in a patch file; ValueError if it names no test, or not how one fails."""
        head = re.split(r"^(?:diff |--- )", patch.read_text(), maxsplit=1, flags=re.MULTILINE)[0]
        named = re.findall(r"^test: *\S+ *$", head, flags=re.MULTILINE)
        tests = re.findall(r"^test: *(\S+) *\nfails: *(.+?) *$", head, flags=re.MULTILINE)
        if not named or len(named) != len(tests):
            raise ValueError(
                f"{patch.name}: expected pairs of lines `test: tests/...::test_...` and "
                "`fails: REGULAR EXPRESSION` before the diff"
            )
        return Fault(patch, tuple(tests))


def copy_tree(root: Path, to: Path) -> None:
    """A working copy of the tree."""
    for path in root.iterdir():
        if path.name not in COPIED:
            if not path.name.startswith("."):
                (to / path.name).symlink_to(path)
        elif path.is_dir():
            shutil.copytree(path, to / path.name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, to / path.name)


def pytest_in(tree: Path, tests: tuple[str, ...], *options: str) -> tuple[int, str]:
    """Exit code and output of pytest on some tests, slow ones too."""
    plain = ["-q", "-p", "no:cacheprovider", "-m", ""]
    command = [sys.executable, "-m", "pytest", *plain, *options, *tests]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        command,
        cwd=tree,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    return done.returncode, done.stdout


def apply(patch: Path, tree: Path) -> str:
    """Apply a patch; what is wrong if it does not apply, else nothing."""
    done = subprocess.run(
        ["git", "apply", "--recount", "-C1", str(patch)],
        cwd=tree,
        env=os.environ | {"GIT_CEILING_DIRECTORIES": str(tree.parent)},  # this is no repository
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stderr.strip() if done.returncode else ""


def verdict(fault: Fault, root: Path = ROOT) -> str:
    """What is wrong with a fault: it does not apply, or a test stays green. Nothing if red."""
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name)
        copy_tree(root, tree)
        if wrong := apply(fault.patch, tree):
            return f"does not apply: {wrong}"
        for test, reason in fault.tests:
            code, output = pytest_in(tree, (test,))
            if code == 0:
                return f"{test} stays green with the fault in place"
            if code != 1 or not re.search(r"^FAILED ", output, flags=re.MULTILINE):
                return f"{test} could not run (pytest's exit code {code}):\n{output[-2000:]}"
            if wrong := another_reason(output, reason):
                return f"{test} is red for another reason than {reason!r}:\n{wrong}"
    return ""


def another_reason(output: str, reason: str) -> str:
    """What pytest says of the failures, where it is not the reason that a patch names."""
    said = "\n".join(re.findall(r"^E +(.*)$", output, flags=re.MULTILINE))
    broken = re.search(rf"^(?:\w+\.)*(?:{'|'.join(BROKEN)})\b", said, flags=re.MULTILINE)
    return said[-2000:] if broken or not re.search(reason, said) else ""


def sound(faults: list[Fault], root: Path = ROOT) -> str:
    """What is wrong with the named tests on the tree as it is; nothing if all are green."""
    tests = tuple(dict.fromkeys(test for fault in faults for test, _ in fault.tests))
    code, output = pytest_in(root, tests, "--numprocesses", "2", "--dist", "loadfile")
    return "" if code == 0 else f"without any fault, the tests are not green:\n{output[-4000:]}"


def main(names: list[str], root: Path = ROOT) -> int:
    """Judge the faults of those names, or all; the exit code."""
    patches = sorted((root / "tests" / "faults").glob("*.patch"))
    faults = [Fault.read(p) for p in patches if not names or p.stem in names]
    if not faults:
        print(f"no fault named {', '.join(names) or 'at all'} under {root / 'tests/faults'}")
        return 2
    if wrong := sound(faults, root):
        print(wrong)
        return 1
    failed = 0

    def judge(fault: Fault) -> tuple[Fault, str, float]:
        began = time.monotonic()
        return fault, verdict(fault, root), time.monotonic() - began

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for fault, wrong, seconds in pool.map(judge, faults):
            failed += bool(wrong)
            print(f"{'WRONG' if wrong else 'red  '}  {fault.patch.stem}  {seconds:.0f} s  {wrong}")
    print(f"faults: {len(faults) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
