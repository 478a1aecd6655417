"""How long a question takes at a server: p50 and p99 in milliseconds, one at a time and 16 at once.

    python benchmarks/serving.py [--address URL] [--requests 1000] [--at_once 1,16]

Without an address `lw-jax serve zoo/bridges/facts --role receiver` is started on loopback. Requests
ask for answers to two questions about one message; each is timed from its sending to the end of its
answer, by a client on the same machine.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[1]
BRIDGE = "zoo/bridges/facts"
TEXT = "Ada Lumen keeps 7 goats in the barn. Ben Korim keeps 31 cats in the attic."
QUESTIONS = ("How many cats does Ben Korim keep?", "How many goats does Ada Lumen keep?")
WAIT = 600
"""Seconds in which a server has to be ready."""


@dataclass(frozen=True)
class Timed:
    """What came of some requests.

    Attributes:
        responses: status and body of each, in the order in which they were asked.
        seconds: of each.
        whole: seconds of all.
    """

    responses: tuple[tuple[int, Any], ...]
    seconds: tuple[float, ...]
    whole: float

    def quantile(self, percent: int) -> float:
        """Seconds that this percentage of the requests took no longer than."""
        return statistics.quantiles(self.seconds, n=100)[percent - 1]

    def __str__(self) -> str:
        wrong = sum(status != 200 for status, _ in self.responses)
        return (
            f"p50 {1000 * self.quantile(50):.1f} ms, p99 {1000 * self.quantile(99):.1f} ms, "
            f"{len(self.seconds) / self.whole:.0f} a second, {wrong} not answered"
        )


async def timed(
    address: str, path: str, bodies: Sequence[Mapping[str, Any]], at_once: int
) -> Timed:
    """Asks a server.

    Args:
        address: of the server.
        path: that is asked.
        bodies: of the requests.
        at_once: requests under way at any time.
    """
    waiting = asyncio.Semaphore(at_once)
    limits = httpx.Limits(max_connections=at_once, max_keepalive_connections=at_once)
    async with httpx.AsyncClient(base_url=address, limits=limits, timeout=60) as client:

        async def one(body: Mapping[str, Any]) -> tuple[tuple[int, Any], float]:
            async with waiting:
                began = time.monotonic()
                response = await client.post(path, json=body)
                return (response.status_code, response.json()), time.monotonic() - began

        began = time.monotonic()
        found = await asyncio.gather(*map(one, bodies))
        whole = time.monotonic() - began
    return Timed(tuple(r for r, _ in found), tuple(s for _, s in found), whole)


class Served:
    """`lw-jax serve` in a process of its own."""

    def __init__(self, log: Path, *flags: str) -> None:
        """Starts it; its address is known at once, and what it needs is compiled later.

        Args:
            log: file of what it says.
            flags: besides the bridge.
        """
        self.log = log
        words = [sys.executable, "-m", "lw_jax", "serve", BRIDGE, *flags]
        with log.open("w") as said:
            self.process = subprocess.Popen(
                words if "--port" in flags else [*words, "--port", "0"],
                cwd=ROOT,
                stderr=said,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
            )
        try:
            self.address = self._until(r"listening on (http://[\w.:\[\]]+)")
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise

    def _until(self, pattern: str) -> str:
        for _ in range(20 * WAIT):
            if found := re.search(pattern, self.said):
                return found[found.lastindex or 0]
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        raise RuntimeError(self.said)

    @property
    def said(self) -> str:
        """What it has said so far."""
        return self.log.read_text()

    def ready(self) -> Served:
        """Itself, once it is ready."""
        self._until(r"ready after")
        return self

    def end(self, number: int) -> int:
        """Its exit code after a signal."""
        self.process.send_signal(number)
        return self.process.wait(60)


@contextmanager
def served(*flags: str) -> Iterator[Served]:
    """A server that is ready, and ended afterwards."""
    with tempfile.TemporaryDirectory() as place:
        server = Served(Path(place) / "log", *flags)
        try:
            yield server.ready()
        finally:
            server.process.kill()
            server.process.wait()


def bodies(sent: str, count: int) -> list[dict[str, str]]:
    """Requests for answers to the two questions in turn."""
    return [{"message": sent, "question": QUESTIONS[i % 2]} for i in range(count)]


def measure(address: str, sent: str, requests: int, at_once: Sequence[int]) -> None:
    """Prints a line for each number of requests at once."""
    asyncio.run(timed(address, "/answer", bodies(sent, 20), 1))
    for count in at_once:
        print(
            f"{count:>3} at once:",
            asyncio.run(timed(address, "/answer", bodies(sent, requests), count)),
        )


def main() -> None:
    """Measures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--address", help="of a server with both ends; left out: one is started")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--at_once", default="1,16")
    given = parser.parse_args()
    counts = [int(n) for n in given.at_once.split(",")]

    def all_of(address: str) -> None:
        sent = httpx.post(f"{address}/encode", json={"text": TEXT}, timeout=60).json()["message"]
        measure(address, sent, given.requests, counts)

    if given.address:
        all_of(given.address)
        return
    with served("--parts", "1") as server:
        all_of(server.address)


if __name__ == "__main__":
    main()
