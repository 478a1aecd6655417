"""The demo page: what it is sent, and what is seen of it in a browser. Slow: all is compiled."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.serving import bodies, timed
from lw_jax import Bridge
from lw_jax.serve.app import Server
from lw_jax.serve.config import ServeConfig
from tests.report.test_browser import BROWSER
from tests.serve.test_serve import CATS, TEXT, listening, ready

ROOT = Path(__file__).parents[2]
CONFIG = ServeConfig(rows=4, parts=2, window=64, question_tokens=32, text_tokens=64, demo=True)
pytestmark = [
    pytest.mark.slow,
    # playwright's own loop is left to the end of the process
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    wire = Bridge.load(ROOT / "zoo/bridges/facts")
    for found in listening(Server(wire, CONFIG, "facts")):
        ready(found)
        yield found


@pytest.fixture
def there(address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address, timeout=60) as client:
        yield client


def test_the_demo_page_has_latent_text_and_cut_text(there: httpx.Client) -> None:
    page = there.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "http" not in page.text.replace("http-equiv", "")  # nothing from a network
    found = there.post("/demo", json={"text": TEXT, "question": CATS}).json()
    rows = found["rows"]
    assert rows["latent"]["answer"] == rows["text"]["answer"] == "31"
    assert rows["latent"]["columns"] == 32
    assert rows["cut"]["columns"] == min(32, rows["text"]["columns"])
    assert 0 < rows["latent"]["probability"] <= 1


def test_an_answer_is_streamed(there: httpx.Client) -> None:
    sent = there.post("/encode", json={"text": TEXT}).json()["message"]
    body = {"prompt": CATS, "message": sent, "stream": True}
    with there.stream("POST", "/v1/completions", json=body) as response:
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    said = [json.loads(line[6:])["choices"][0] for line in lines[:-1]]
    assert [one["text"] for one in said] == ["3", "1", ""]
    assert said[-1]["finish_reason"] == "stop"
    body |= {"max_tokens": 1, "stream_options": {"include_usage": True}}
    with there.stream("POST", "/v1/completions", json=body) as response:
        lines = [json.loads(line[6:]) for line in response.iter_lines() if "{" in line]
    assert "".join(c["text"] for one in lines for c in one["choices"]) == "3"
    assert lines[-2]["choices"][0]["finish_reason"] == "length"
    assert lines[-1]["usage"]["completion_tokens"] == 1


def test_those_that_wait_run_together(there: httpx.Client, address: str) -> None:
    sent = there.post("/encode", json={"text": f"{TEXT} {TEXT} {TEXT}"}).json()
    assert sent["parts"] == 2
    found = asyncio.run(timed(address, "/answer", bodies(sent["message"], 60), 16))
    assert {status for status, _ in found.responses} == {200}
    lines = dict(line.rsplit(" ", 1) for line in there.get("/metrics").text.splitlines())
    assert float(lines["lw_jax_compilations_total"]) == 0
    assert float(lines["lw_jax_batch_rows_count"]) < float(lines["lw_jax_batch_rows_sum"])


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_shows_it_in_a_browser(address: str, scheme: str, tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    said: list[str] = []
    asked: list[str] = []
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page: Any = browser.new_page(color_scheme=scheme, viewport={"width": 1000, "height": 1250})
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        page.fill("#text", TEXT)
        page.fill("#question", CATS)
        page.click("#ask")
        page.wait_for_selector("[data-row=latent]")
        for row in ("latent", "text"):
            assert page.inner_text(f"[data-row={row}] .answer") == "31"
        assert page.inner_text("#facts").startswith("32\nslots")
        assert len(page.query_selector_all("#slots i")) == 32
        page.fill("#question", "How many goats does Ada Lumen keep?")
        page.press("#question", "Enter")
        page.wait_for_function("document.querySelectorAll('#turns table').length == 2")
        page.screenshot(path=tmp_path / "demo.png")  # the picture of docs/serving.md
        assert not said
        page.fill("#text", "Ada keeps goats. " * 90)
        page.click("#encode")
        page.wait_for_selector("#error:not(.hidden)")
        assert "a text of more than 2 windows" in page.inner_text("#error")
        browser.close()
    assert {url.partition("/")[2].partition("/")[2].partition("/")[0] for url in asked} == {
        address.removeprefix("http://")
    }
