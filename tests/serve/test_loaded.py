"""A sender and a receiver as two processes: many at once, and one of them killed. Slow: each
process compiles before it is ready."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from benchmarks.serving import Served, bodies, timed
from lw_jax import Message
from tests.serve.test_serve import ASKED, CATS, TEXT

ROOT = Path(__file__).parents[2]
FACTS = "zoo/bridges/facts"
LIMITS = ("--parts", "1", "--window", "64", "--question-tokens", "32")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, Served]]:
    logs = tmp_path_factory.mktemp("logs")
    begun: list[Served] = []
    try:
        begun.append(receiver := Served(logs / "receiver", "--role", "receiver", *LIMITS))
        to = ("--receiver", receiver.address, *LIMITS)
        begun.append(sender := Served(logs / "sender", "--role", "sender", *to))
        yield sender.ready(), receiver.ready()
    finally:
        for one in begun:
            one.process.kill()
            one.process.wait()


def test_a_thousand_at_sixteen_at_once_and_none_is_lost(pair: tuple[Served, Served]) -> None:
    sender, receiver = pair
    sent = httpx.post(f"{sender.address}/encode", json={"text": TEXT}).json()["message"]
    for count, at_once in ((100, 1), (1000, 16)):
        asked = bodies(sent, count)
        found = asyncio.run(timed(receiver.address, "/answer", asked, at_once))
        expected = [(200, {"answer": ASKED[body["question"]]}) for body in asked]
        assert list(found.responses) == expected
        print(f"{count} at {at_once}: {found}")
    metrics = httpx.get(f"{receiver.address}/metrics").text
    assert "\nlw_jax_compilations_total 0.0\n" in metrics
    rows, batches = (
        float(re.search(rf"^lw_jax_batch_rows_{name} (\S+)$", metrics, re.MULTILINE)[1])  # type: ignore[index]
        for name in ("sum", "count")
    )
    assert rows == 1100
    assert batches < 700  # those that waited ran together
    # texts at sixteen at once, through both
    counts = range(2, 66)
    texts = [{"text": f"Ben Korim keeps {n} cats in the attic.", "question": CATS} for n in counts]
    through = asyncio.run(timed(sender.address, "/answer", texts, 16))
    assert {status for status, _ in through.responses} == {200}
    said = [body["answer"] for _, body in through.responses]
    assert sum(one == str(n) for one, n in zip(said, counts, strict=True)) > 48


def test_either_side_says_that_the_other_is_gone_and_goes_on(
    pair: tuple[Served, Served], tmp_path: Path
) -> None:
    sender, receiver = pair
    body = {"text": TEXT, "question": CATS}
    assert httpx.post(f"{sender.address}/answer", json=body).json() == {"answer": "31"}
    # the sender's request to the receiver is cut by a kill of the sender's own
    to = ("--receiver", receiver.address, *LIMITS)
    doomed = Served(tmp_path / "doomed", "--role", "sender", *to).ready()
    assert doomed.end(signal.SIGKILL) == -signal.SIGKILL
    assert httpx.get(f"{receiver.address}/health").json()["status"] == "ready"
    assert httpx.post(f"{sender.address}/answer", json=body).status_code == 200

    port = receiver.address.rpartition(":")[2]
    assert receiver.end(signal.SIGKILL) == -signal.SIGKILL
    lost = httpx.post(f"{sender.address}/answer", json=body)
    assert lost.status_code == 502
    assert f"the receiver at {receiver.address} does not answer" in lost.json()["error"]["message"]
    assert "does not answer" in httpx.get(f"{sender.address}/health").json()["receiver"]["status"]
    assert httpx.post(f"{sender.address}/encode", json={"text": TEXT}).status_code == 200
    again = Served(tmp_path / "again", "--role", "receiver", "--port", port, *LIMITS).ready()
    assert httpx.post(f"{sender.address}/answer", json=body).json() == {"answer": "31"}
    assert sender.said.count("does not answer") == 1
    assert "is back" in sender.said
    assert again.end(signal.SIGTERM) == 143
    assert sender.end(signal.SIGTERM) == 143
    assert "Traceback" not in sender.said + again.said


def test_a_text_crosses_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"sixteen bytes or more")
    key = ["--key-file", str(tmp_path / "key")]
    asks = [word for question in ASKED for word in ("--ask", question)]

    def run(given: bytes, *words: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-m", "lw_jax", *words],
            input=given,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            check=False,
        )

    sent = run(TEXT.encode(), "encode", FACTS, *key).stdout
    assert Message.from_bytes(sent).characters == len(TEXT)
    for more in ([], ["--stream"]):
        said = run(sent, "decode", FACTS, *key, *asks, *more).stdout
        assert said.decode().splitlines() == list(ASKED.values())
    refused = run(sent, "decode", FACTS, *asks)
    assert (refused.returncode, b"made with a key" in refused.stderr) == (2, True)
    assert b'"slots": 32' in run(sent, "decode", "--about").stdout
    wrong = run(b"\xff", "encode", FACTS)
    assert (wrong.returncode, wrong.stdout) == (2, b"")
    assert b"byte 0 is no UTF-8" in wrong.stderr


def test_the_pages_python_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    page = (ROOT / "docs/serving.md").read_text()
    (code,) = re.findall(r"```python\n(from lw_jax import .*?)```", page, re.DOTALL)
    exec(code, {})
