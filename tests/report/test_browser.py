"""The page of the quickstart's run in a browser: it says what its files say, filters work, and its
own script is the only one that runs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lw_jax.launch import main
from lw_jax.report import page
from tests.report.test_page import HOSTILE
from tests.tiny.reported import answers, make, rows

ROOT = Path(__file__).parents[2]
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed"),
    # playwright's own loop is left to the end of the process
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quickstart, with few steps and rows."""
    run_dir = tmp_path_factory.mktemp("runs") / "quickstart"
    few = ["--stages.fit.train.steps=4", "--stages.fit.train.eval_rows=4", "--seed=1"]
    few += ["--stages.fit.train.log_every=1", "--stages.fit.train.eval_every=2"]
    few += ["--stages.report.evaluate.rows=60", "--stages.before.evaluate.rows=8"]
    few += ["--stages.report.evaluate.bootstrap=50"]
    before = Path.cwd()
    os.chdir(ROOT)
    try:
        assert main(["--config", "configs/quickstart.yaml", f"--run_dir={run_dir}", *few]) == 0
    finally:
        os.chdir(before)
    return run_dir


class Opened:
    """A page that is open, with what its console said and what it asked the network for."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())

    def shown(self) -> list[str]:
        """Questions of the rows that are shown."""
        found: list[str] = self.page.locator("article.row:visible .question").all_inner_texts()
        return found


def test_the_quickstart_s_page(chromium: Any, home: Path) -> None:
    held = Opened(chromium, home / "report.html", viewport={"width": 1200, "height": 900})
    lines = [json.loads(x) for x in (home / "predictions.jsonl").read_text().splitlines()]
    metrics = json.loads((home / "metrics.json").read_text())["receivers"]["mistral"]
    first = lines[: page.ROWS]
    held.page.wait_for_selector("#filters:visible")
    assert held.shown() == [line["question"] for line in first]
    card = held.page.locator("#result .cards li.chief strong").inner_text()
    assert card == f"{metrics['latent']['em']:.3f}"

    def em(line: dict[str, Any], method: str) -> bool:
        return bool(line["receivers"]["mistral"][method]["em"] == 1)

    for method, want in (("latent", True), ("latent", False), ("deranged", False)):
        held.page.select_option("[name=method]", method)
        held.page.select_option("[name=is]", "1" if want else "0")
        expected = [line["question"] for line in first if em(line, method) == want]
        assert held.shown() == expected
        assert held.page.inner_text("#shown") == f"{len(expected)} of {len(first)} shown"
    held.page.select_option("[name=is]", "")
    word = first[3]["context"].split()[0]
    held.page.fill("[name=words]", word)
    assert 0 < len(held.shown()) < len(first)
    held.page.fill("[name=words]", "no row has these words")
    assert held.shown() == []
    held.page.fill("[name=words]", "")

    # slots: the keyboard moves from one to the next, and the tokens are those of the text
    maps = json.loads((home / "slot_maps.json").read_text())["texts"]
    held.page.focus("#slot")
    assert held.page.inner_text("#slot-number") == f"1 of {len(maps[0]['cosine'])}"
    held.page.keyboard.press("ArrowRight")
    assert held.page.inner_text("#slot-number").startswith("2 of")
    assert held.page.text_content("#slot-words") == "".join(maps[0]["tokens"])
    held.page.select_option("#slot-text", "1")
    assert held.page.text_content("#slot-words") == "".join(maps[1]["tokens"])
    assert held.page.evaluate("document.getElementById('reads').width") > 100

    # a click on the theme changes the colours
    before = held.page.evaluate("getComputedStyle(document.body).backgroundColor")
    held.page.click("#theme")
    assert held.page.evaluate("getComputedStyle(document.body).backgroundColor") != before
    assert held.said == []
    assert held.asked == [(home / "report.html").as_uri()]
    held.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_it_is_as_wide_as_the_phone(chromium: Any, home: Path, scheme: str) -> None:
    size = {"width": 390, "height": 844}
    held = Opened(chromium, home / "report.html", viewport=size, color_scheme=scheme)
    assert held.page.evaluate("document.documentElement.scrollWidth") == 390
    dark = held.page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    assert dark == (scheme == "dark")
    assert held.said == []
    held.context.close()


def test_without_scripts_all_rows_are_there(chromium: Any, home: Path) -> None:
    held = Opened(chromium, home / "report.html", java_script_enabled=False)
    assert len(held.shown()) == page.ROWS
    assert not held.page.locator("#filters").is_visible()
    held.context.close()


def test_hostile_texts_are_text(chromium: Any, tmp_path: Path) -> None:
    from dataclasses import replace

    examples = [
        replace(one, context=HOSTILE, question=HOSTILE, answers=(HOSTILE,)) for one in rows(3)
    ]
    mapped = {"row": examples[0].id, "tokens": [HOSTILE], "cosine": [[1.0]], "reads": [[1.0]]}
    run = make(tmp_path / "run", examples, answers(examples, 1), [mapped])
    held = Opened(chromium, page.write(run))
    held.page.on("dialog", lambda dialog: held.said.append(dialog.message))
    assert len(held.shown()) == 3
    assert held.page.text_content("#slot-words") == HOSTILE
    assert held.page.locator("img").count() == 0
    # and even a script that got into the page would not run
    held.page.evaluate(
        "() => { const s = document.createElement('script'); s.textContent = 'window.ran = 1';"
        " document.body.append(s); }"
    )
    assert held.page.evaluate("window.ran") is None
    held.context.close()
