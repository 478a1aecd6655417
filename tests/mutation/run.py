"""Put mutants into copies of the tree, one at a time, and see whether the tests notice.

    python tests/mutation/run.py [--count 150] [--seed 17] [--jobs 8] [--out mutation.jsonl]
        [--timeout 1200] [--test-timeout 300] [--related-only] [--only PART] [--list]

`mutants.py` has the rules and the files. Which mutants are drawn depends on the seed and on the
mutants themselves alone. Each is judged by the test files about its file (`related.py`), a few at
a time, nearest first, until a test fails; one that survives those is judged by the rest of the
default tests too (not with `--related-only`). A test that runs longer than `--test-timeout` seconds
fails. Then the tests that failed are run without any mutant: those that are red all the same are
left out, and what they had judged is judged again. A few files that take longer than `--timeout`
seconds judge nothing: no mutant counts as noticed for the time it takes. `--only` takes those with
a part of their key, `--list` prints them and runs none.

Results are added to `--out` line by line; the same command goes on where it was stopped, and wants
another file when the tree or the draw has changed. `known.yaml` lists mutants that change nothing
that can be told (`equivalent`: they are not drawn) and survivors with the reason (they are drawn,
count as not noticed, and are not run again). The exit code is 0 if at least 95 % of the mutants are
noticed.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import queue
import re
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
from tests.mutation.related import every, few, related  # noqa: E402

WANTED = 0.95
NOTICED, SURVIVED, TIMED_OUT, BROKEN = "noticed", "survived", "timed out", "broken"
UNJUDGED = "unjudged"
"""No test about the mutant is green without it; it counts as not noticed, and so does one whose
tests ran out of time."""
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
        self._running: dict[subprocess.Popen[str], object] = {}
        self.stopped = False

    def pytest(
        self, tree: Path, tests: Sequence[str], timeout: float, *options: str, of: object = None
    ) -> Outcome | None:
        """Run tests in a tree, for something that they are to tell of; None: `end` ended them."""
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
                self._running[process] = of
                with contextlib.suppress(ProcessLookupError):
                    os.sched_setaffinity(process.pid, cores)
            try:
                code: int | None = process.wait(timeout)
            except subprocess.TimeoutExpired:
                code = None
                _kill(process)
            finally:
                with self._lock:
                    ended = process not in self._running
                    self._running.pop(process, None)
                self._cores.put(cores)
            said.seek(0)
            text = said.read()
        if self.stopped:
            raise KeyboardInterrupt
        if ended:
            return None
        failed = re.findall(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", text, flags=re.MULTILINE)
        return Outcome(code, tuple(failed), time.monotonic() - began, text[-1500:])

    def end(self, of: object) -> None:
        """End those that were to tell of something that is known."""
        with self._lock:
            for process in [p for p, told in self._running.items() if told is of]:
                del self._running[process]
                _kill(process)

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
    """The lines of `--out`: the draw, one for each mutant, one for each test without any mutant.

    Args:
        path: the file.
        draw: what is drawn from what; other lines belong to another file.
    """

    def __init__(self, path: Path, draw: Mapping[str, Any]) -> None:
        self.path, self._lock = path, threading.Lock()
        self.baseline: dict[str, bool] = {}
        self.judged: dict[str, dict[str, Any]] = {}
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        held = [json.loads(line) for line in lines if line.endswith("}")]
        if not held:
            self._write({"draw": dict(draw)})
        elif held[0].get("draw") != dict(draw):
            raise SystemExit(f"{path}: of another tree, seed or count; remove it or name another")
        for line in held[1:]:
            if "baseline" in line:
                self.baseline[line["baseline"]] = line["green"]
            elif "mutant" in line:
                self.judged[line["mutant"]] = line

    def without(self, test: str, green: bool) -> None:
        """Keep how a test ends without any mutant."""
        self.baseline[test] = green
        self._write({"baseline": test, "green": green})

    def red(self) -> list[str]:
        """Tests, and files that cannot be read, that fail without any mutant."""
        return [test for test, green in self.baseline.items() if not green]

    def left(self, mutants: Sequence[Mutant]) -> list[Mutant]:
        """Those without a verdict, and those judged by a test that is red all the same."""
        red = set(self.red())
        held = {key for key, line in self.judged.items() if red.isdisjoint(line["by"])}
        return [mutant for mutant in mutants if mutant.key not in held]

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


def confirm(root: Path, journal: Journal, runs: Runs, given: Any) -> bool:
    """Run the tests that failed once without any mutant, and keep how they end; whether all are
    green."""
    by = {test for line in journal.judged.values() for test in line["by"]}
    files: dict[str, list[str]] = {}
    for test in sorted(by - journal.baseline.keys()):
        files.setdefault(test.partition("::")[0], []).append(test)

    def one(tests: list[str]) -> None:
        for collected in ([t for t in tests if "::" not in t], [t for t in tests if "::" in t]):
            if not collected:
                continue
            only = () if "::" in collected[0] else ("--collect-only",)
            options = ("--maxfail=1000", f"--timeout={given.test_timeout:g}", *only)
            outcome = runs.pytest(root, collected, given.timeout, *options)
            assert outcome is not None
            for test in collected:
                green = test not in outcome.failed and (outcome.code == 0 or bool(outcome.failed))
                journal.without(test, green)
                if not green:
                    print(f"red without any mutant: {test}\n{outcome.tail}", flush=True)

    with ThreadPoolExecutor(given.jobs) as pool:
        list(pool.map(one, files.values()))
    return by.isdisjoint(journal.red())


class Case:
    """A mutant on its way to a verdict: lists of test files, of which several may be run at once.

    Attributes:
        mutant: it.
        waiting: lists that are still to be run, nearest first.
        running: how many are.
        line: what is kept of it.
        done: whether it has its verdict.
    """

    def __init__(self, mutant: Mutant, waiting: list[list[str]]) -> None:
        self.mutant, self.waiting, self.running, self.done = mutant, waiting, 0, False
        self.line: dict[str, Any] = {"mutant": mutant.key, "where": str(mutant), "seconds": 0.0}
        self.line |= {"verdict": UNJUDGED, "by": []}
        self.begun = 0

    def take(self) -> list[str]:
        """The next list."""
        self.begun, self.running = self.begun + 1, self.running + 1
        return self.waiting.pop(0)

    def put(self, outcome: Outcome | None) -> bool:
        """What pytest says of a list (None: stopped, as another had failed); whether that was the
        last thing to know."""
        self.running -= 1
        if outcome is None or self.done:
            return False
        self.line["seconds"] = round(self.line["seconds"] + outcome.seconds, 1)
        if outcome.code == 0 and self.line["verdict"] == UNJUDGED:
            self.line["verdict"] = SURVIVED
        if outcome.code is None:  # another list may still notice it
            self.line["verdict"] = TIMED_OUT
        elif outcome.code in (1, 2):
            self.line |= {"verdict": NOTICED, "by": list(outcome.failed[:1])}
        elif outcome.code not in (0, 5):
            self.line |= {"verdict": BROKEN, "said": outcome.tail}
        ended = self.line["verdict"] in (NOTICED, BROKEN)
        self.done = ended or not (self.waiting or self.running)
        return self.done


def cases(mutants: Sequence[Mutant], journal: Journal, given: Any) -> list[Case]:
    """Those without a verdict, each with the tests that are to judge it."""
    red, found = set(journal.red()), []
    for mutant in journal.left(mutants):
        groups = related(given.root, mutant.path)
        if not given.related_only:
            near = {test for group in groups for test in group}
            groups += few([test for test in every(given.root) if test not in near])
        groups = [[test for test in group if test not in red] for group in groups]
        found.append(Case(mutant, [group for group in groups if group]))
    return found


def report(
    mutants: Sequence[Mutant], judged: Mapping[str, Mapping[str, Any]], reasons: Mapping[str, str]
) -> float:
    """Print the score and the survivors; the share that was noticed."""
    found = [judged[m.key] for m in mutants if m.key in judged]
    count = dict.fromkeys((NOTICED, TIMED_OUT, SURVIVED, BROKEN, UNJUDGED), 0)
    for line in found:
        count[line["verdict"]] += 1
    noticed = count[NOTICED]
    missed = count[SURVIVED] + count[UNJUDGED] + count[TIMED_OUT]
    score = noticed / max(1, noticed + missed)
    rules: dict[str, list[int]] = {}
    for line in found:
        rule = line["mutant"].split(" | ")[2]
        seen = rules.setdefault(rule, [0, 0])
        seen[0] += line["verdict"] == NOTICED
        seen[1] += line["verdict"] != BROKEN
    for rule, (those, of) in sorted(rules.items()):
        print(f"{rule:12} {those} of {of}")
    for line in found:
        if line["verdict"] != NOTICED:
            print(f"{line['verdict']}  {line['where']}\n    {line['mutant']}")
            print(f"    {reasons.get(line['mutant'], 'no reason in known.yaml')}")
    left = f", {count[BROKEN]} could not be judged" if count[BROKEN] else ""
    print(
        f"mutants: {noticed} of {noticed + missed} noticed, {score:.1%} ({count[TIMED_OUT]} ran out"
        f" of time{left}; {count[UNJUDGED]} without a test that is green without them)"
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
    parser.add_argument("--test-timeout", type=float, default=300)
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
    journal = Journal(given.out, draw)
    cache = tempfile.TemporaryDirectory(prefix="mutation-compiled-")
    runs = Runs(given.jobs, Path(cache.name))
    try:
        for mutant in [m for m in journal.left(mutants) if m.key in listed["survivors"]]:
            journal.add(Case(mutant, []).line | {"verdict": SURVIVED})
        _judge_all(mutants, journal, runs, given)
        while not confirm(root, journal, runs, given):
            _judge_all(mutants, journal, runs, given)
    except KeyboardInterrupt:
        runs.stop()
        print(f"stopped; the same command goes on from {given.out}")
        return 130
    finally:
        cache.cleanup()
    return 0 if report(mutants, journal.judged, listed["survivors"]) >= WANTED else 1


def _judge_all(mutants: Sequence[Mutant], journal: Journal, runs: Runs, given: Any) -> None:
    """Each job takes the next list of the mutant with the fewest lists begun, so that none waits
    for one that many tests are about."""
    left, lock = cases(mutants, journal, given), threading.Lock()
    options = [f"--timeout={given.test_timeout:g}"]
    options += [f"--deselect={test}" for test in journal.red()]

    def keep(case: Case) -> None:
        journal.add(case.line)
        done = f"{len(mutants) - len(journal.left(mutants))}/{len(mutants)}"
        verdict, seconds, by = case.line["verdict"], case.line["seconds"], " ".join(case.line["by"])
        print(f"{done}  {verdict:9} {seconds:5.0f} s  {case.mutant}  {by}", flush=True)

    def work(tree: Path) -> None:
        copy_tree(given.root, tree)
        while True:
            with lock:
                open_ = [case for case in left if case.waiting and not case.done]
                if not open_:
                    return
                case = min(open_, key=lambda case: case.begun)
                tests = case.take()
            path = tree / case.mutant.path
            right = path.read_text(encoding="utf-8")
            path.write_text(case.mutant.put(right), encoding="utf-8")
            try:
                outcome = runs.pytest(tree, tests, given.timeout, *options, of=case)
            finally:
                path.write_text(right, encoding="utf-8")
            with lock:
                last = case.put(outcome)
            if last:
                runs.end(case)
                keep(case)

    for case in [case for case in left if not case.waiting]:
        left.remove(case)
        keep(case)
    with tempfile.TemporaryDirectory(prefix="mutation-") as home:
        trees = [Path(home) / str(number) for number in range(given.jobs)]
        for tree in trees:
            tree.mkdir()
        pool = ThreadPoolExecutor(given.jobs)
        try:
            list(pool.map(work, trees))
        except BaseException:
            runs.stop()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
