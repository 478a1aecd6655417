"""Put mutants into copies of the tree, one at a time, and see whether the tests notice.

    python tests/mutation/run.py [--count 150] [--seed 17] [--jobs 8] [--out mutation.jsonl]
        [--timeout 1200] [--suite-timeout 3600] [--related-only] [--only PART] [--list]

`mutants.py` has the rules and the files. Which mutants are drawn depends on the seed and on the
mutants themselves alone. First the test files about the drawn mutants' files (`related.py`)
are run without any: what is red then is left out. Then each mutant is judged by those of its file,
nearest first, until a test fails; one that survives is judged by the rest of the default tests too
(not with `--related-only`). A mutant whose tests run longer than `--timeout` seconds (the rest:
`--suite-timeout`) counts as noticed. `--only` takes mutants with a part of their key, `--list`
prints them and runs none.

Results are added to `--out` line by line; the same command goes on where it was stopped, and wants
another file when the tree or the draw has changed. `known.yaml` lists mutants that change nothing
that can be told (`equivalent`: they are not drawn) and survivors with the reason. The exit code is
0 if at least 95 % of the mutants are noticed.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # as a command: `tests` is found from the tree's root

from tests.faults.run import copy_tree  # noqa: E402
from tests.mutation.mutants import Mutant, all_mutants, drawn  # noqa: E402
from tests.mutation.related import every, related  # noqa: E402

WANTED = 0.95
NOTICED, SURVIVED, TIMED_OUT, BROKEN = "noticed", "survived", "timed out", "broken"
UNJUDGED = "unjudged"
"""No test about the mutant is green without it; it counts as not noticed."""
OPTIONS = ("-q", "-x", "-p", "no:cacheprovider", "--no-header", "--tb=line", "-p", "no:randomly")


@dataclass(frozen=True)
class Outcome:
    """What pytest says.

    Attributes:
        code: its exit code; None: it ran out of time.
        failed: the tests that failed, or files that could not be read.
        seconds: that it took.
        tail: the end of what it wrote.
    """

    code: int | None
    failed: tuple[str, ...]
    seconds: float
    tail: str


class Runs:
    """Processes of pytest, which end with this one.

    What one has compiled the others find, unless JAX_COMPILATION_CACHE_DIR says where; and each
    has processors of its own, where there are enough: tests start as many threads as they see.

    Args:
        jobs: how many run at once.
        cache: the folder of what was compiled.
    """

    def __init__(self, jobs: int = 1, cache: Path | None = None) -> None:
        self._lock = threading.Lock()
        self._given = {} if cache is None else {"JAX_COMPILATION_CACHE_DIR": str(cache)}
        self._cores: queue.Queue[set[int]] = queue.Queue()
        for cores in shares(sorted(os.sched_getaffinity(0)), jobs):
            self._cores.put(cores)
        self._running: set[subprocess.Popen[str]] = set()
        self.stopped = False

    def pytest(self, tree: Path, tests: Sequence[str], timeout: float, *options: str) -> Outcome:
        """Run tests in a tree."""
        command = [sys.executable, "-m", "pytest", *OPTIONS, *options, *tests]
        environment = self._given | os.environ
        environment |= {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
        cores = self._cores.get()
        began = time.monotonic()
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
            with self._lock:
                if self.stopped:
                    raise KeyboardInterrupt
                process = subprocess.Popen(
                    command,
                    cwd=tree,
                    env=environment,
                    stdout=said,
                    stderr=subprocess.STDOUT,
                    text=True,
                    start_new_session=True,
                )
                self._running.add(process)
                with contextlib.suppress(ProcessLookupError):
                    os.sched_setaffinity(process.pid, cores)
            try:
                code: int | None = process.wait(timeout)
            except subprocess.TimeoutExpired:
                code = None
                _kill(process)
            finally:
                self._running.discard(process)
                self._cores.put(cores)
            said.seek(0)
            text = said.read()
        if self.stopped:
            raise KeyboardInterrupt
        failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", text, flags=re.MULTILINE)
        return Outcome(code, tuple(failed), time.monotonic() - began, text[-1500:])

    def stop(self) -> None:
        """End all that run."""
        with self._lock:
            self.stopped = True
            for process in list(self._running):
                _kill(process)


def shares(cores: Sequence[int], jobs: int) -> list[set[int]]:
    """The processors of each of so many jobs, as equal as can be; all, where there are too few."""
    if len(cores) < jobs:
        return [set(cores)] * jobs
    return [set(cores[i::jobs]) for i in range(jobs)]


def _kill(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Journal:
    """The lines of `--out`: the draw, the baseline, and a line for each mutant.

    Args:
        path: the file.
        draw: what is drawn from what; other lines belong to another file.
    """

    def __init__(self, path: Path, draw: Mapping[str, Any]) -> None:
        self.path, self._lock = path, threading.Lock()
        self.baseline: dict[str, list[str]] = {}
        self.judged: dict[str, dict[str, Any]] = {}
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        held = [json.loads(line) for line in lines if line.endswith("}")]
        if not held:
            self._write({"draw": dict(draw)})
        elif held[0].get("draw") != dict(draw):
            raise SystemExit(f"{path}: of another tree, seed or count; remove it or name another")
        for line in held[1:]:
            if "baseline" in line:
                self.baseline[line["baseline"]] = line["failed"]
            elif "mutant" in line:
                self.judged[line["mutant"]] = line

    def sound(self, test: str, failed: Sequence[str]) -> None:
        """Keep what is red without any mutant."""
        self.baseline[test] = list(failed)
        self._write({"baseline": test, "failed": list(failed)})

    def add(self, line: dict[str, Any]) -> None:
        """Keep a mutant's verdict."""
        self.judged[line["mutant"]] = line
        self._write(line)

    def _write(self, line: Mapping[str, Any]) -> None:
        with self._lock, self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def known(root: Path) -> dict[str, dict[str, str]]:
    """`equivalent` and `survivors` of `known.yaml`, each a reason by key."""
    path = root / "tests" / "mutation" / "known.yaml"
    held = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    return {name: dict((held or {}).get(name) or {}) for name in ("equivalent", "survivors")}


def digest(root: Path) -> str:
    """Of the product and its tests."""
    found = hashlib.sha256()
    for folder in ("lw_jax", "tests"):
        for path in sorted((root / folder).rglob("*.py")):
            if "mutation" not in path.parts:
                found.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return found.hexdigest()[:16]


def sound(root: Path, journal: Journal, runs: Runs, files: Sequence[str], given: Any) -> None:
    """Run test files without any mutant, each by itself, and keep what is red."""
    left = [test for test in files if test not in journal.baseline]

    def one(test: str) -> None:
        outcome = runs.pytest(root, [test], given.suite_timeout, "--maxfail=1000")
        failed = outcome.failed or (() if outcome.code in (0, 5) else (test,))
        journal.sound(test, failed)
        print(f"baseline  {test}  {outcome.seconds:.0f} s  {' '.join(failed)}", flush=True)

    with ThreadPoolExecutor(given.jobs) as pool:
        list(pool.map(one, left))
    red = [test for test in files if test in journal.baseline[test]]
    if red:
        print(
            f"{len(red)} of {len(files)} files cannot be run here at all: {' '.join(red[:5])} ..."
        )


def judge(mutant: Mutant, tree: Path, journal: Journal, runs: Runs, given: Any) -> dict[str, Any]:
    """One mutant's verdict, in a copy of the tree that no other uses."""
    path = tree / mutant.path
    right = path.read_text(encoding="utf-8")
    near = related(given.root, mutant.path)
    rest = [] if given.related_only else [t for t in every(given.root) if t not in near]
    line: dict[str, Any] = {"mutant": mutant.key, "where": str(mutant), "seconds": 0.0}
    line |= {"verdict": UNJUDGED, "by": []}
    path.write_text(mutant.put(right), encoding="utf-8")
    try:
        for tests, limit in ((near, given.timeout), (rest, given.suite_timeout)):
            tests, options = _without_red(tests, journal)
            if not tests:
                continue
            outcome = runs.pytest(tree, tests, limit, *options)
            line["seconds"] = round(line["seconds"] + outcome.seconds, 1)
            line["by"] = list(outcome.failed[:1])
            if outcome.code in (0, 5):
                line["verdict"] = SURVIVED
                continue
            line["verdict"] = TIMED_OUT if outcome.code is None else NOTICED
            if outcome.code not in (None, 1, 2):
                line |= {"verdict": BROKEN, "said": outcome.tail}
            break
    finally:
        path.write_text(right, encoding="utf-8")
    return line


def _without_red(tests: Sequence[str], journal: Journal) -> tuple[list[str], list[str]]:
    """The files that can judge, and options that leave out single tests that are red anyway."""
    kept, options = [], []
    for test in tests:
        failed = journal.baseline.get(test, [])
        if test in failed:
            continue
        kept.append(test)
        options += [f"--deselect={name}" for name in failed]
    return kept, options


def report(
    mutants: Sequence[Mutant], judged: Mapping[str, Mapping[str, Any]], reasons: Mapping[str, str]
) -> float:
    """Print the score and the survivors; the share that was noticed."""
    found = [judged[m.key] for m in mutants if m.key in judged]
    count = dict.fromkeys((NOTICED, TIMED_OUT, SURVIVED, BROKEN, UNJUDGED), 0)
    for line in found:
        count[line["verdict"]] += 1
    noticed = count[NOTICED] + count[TIMED_OUT]
    missed = count[SURVIVED] + count[UNJUDGED]
    score = noticed / max(1, noticed + missed)
    rules: dict[str, list[int]] = {}
    for line in found:
        rule = line["mutant"].split(" | ")[2]
        seen = rules.setdefault(rule, [0, 0])
        seen[0] += line["verdict"] in (NOTICED, TIMED_OUT)
        seen[1] += line["verdict"] != BROKEN
    for rule, (those, of) in sorted(rules.items()):
        print(f"{rule:12} {those} of {of}")
    for line in found:
        if line["verdict"] in (SURVIVED, BROKEN, UNJUDGED):
            print(f"{line['verdict']}  {line['where']}\n    {line['mutant']}")
            print(f"    {reasons.get(line['mutant'], 'no reason in known.yaml')}")
    left = f", {count[BROKEN]} could not be judged" if count[BROKEN] else ""
    print(
        f"mutants: {noticed} of {noticed + missed} noticed, {score:.1%} ({count[TIMED_OUT]} by "
        f"time{left}; {count[UNJUDGED]} without a test that is green without them)"
    )
    return score


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--count", type=int, default=150)
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 1) // 2))
    parser.add_argument("--out", type=Path, default=Path("mutation.jsonl"))
    parser.add_argument("--timeout", type=float, default=1200)
    parser.add_argument("--suite-timeout", type=float, default=3600)
    parser.add_argument("--related-only", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--list", action="store_true")
    return parser.parse_args(argv)


def main(argv: Sequence[str], root: Path = ROOT) -> int:
    """Judge the drawn mutants; the exit code."""
    given = arguments(argv)
    given.root = root
    listed = known(root)
    candidates = [
        m for m in all_mutants(root) if m.key not in listed["equivalent"] and given.only in m.key
    ]
    mutants = drawn(candidates, given.count, given.seed)
    print(f"{len(mutants)} of {len(candidates)} mutants, {given.jobs} at once", flush=True)
    if given.list:
        print(*mutants, sep="\n")
        return 0
    draw = {"tree": digest(root), "seed": given.seed, "count": given.count, "only": given.only}
    cache = tempfile.TemporaryDirectory(prefix="mutation-compiled-")
    journal, runs = Journal(given.out, draw), Runs(given.jobs, Path(cache.name))
    files = {test for mutant in mutants for test in related(root, mutant.path)}
    try:
        sound(root, journal, runs, sorted(files if given.related_only else every(root)), given)
        _judge_all(mutants, journal, runs, given)
    except KeyboardInterrupt:
        runs.stop()
        print(f"stopped; the same command goes on from {given.out}")
        return 130
    finally:
        cache.cleanup()
    return 0 if report(mutants, journal.judged, listed["survivors"]) >= WANTED else 1


def _judge_all(mutants: Sequence[Mutant], journal: Journal, runs: Runs, given: Any) -> None:
    left = [mutant for mutant in mutants if mutant.key not in journal.judged]
    with tempfile.TemporaryDirectory(prefix="mutation-") as home:
        trees: queue.Queue[Path] = queue.Queue()
        for number in range(min(given.jobs, len(left))):
            tree = Path(home) / str(number)
            tree.mkdir()
            copy_tree(given.root, tree)
            trees.put(tree)

        def one(mutant: Mutant) -> None:
            tree = trees.get()
            try:
                line = judge(mutant, tree, journal, runs, given)
            finally:
                trees.put(tree)
            journal.add(line)
            done = f"{len(journal.judged)}/{len(mutants)}"
            by = " ".join(line["by"])
            print(
                f"{done}  {line['verdict']:9} {line['seconds']:5.0f} s  {mutant}  {by}", flush=True
            )

        pool = ThreadPoolExecutor(given.jobs)
        try:
            list(pool.map(one, left))
        except BaseException:
            runs.stop()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
