"""A bridge behind HTTP, on loopback: what it answers, what it refuses and why, and none is lost."""

from __future__ import annotations

import asyncio
import base64
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn

from lw_jax import Bridge, Message
from lw_jax.api.bridge import Bridge as Loaded
from lw_jax.serve.app import Server
from lw_jax.serve.config import ServeConfig
from lw_jax.serve.demo import Demo
from lw_jax.serve.given import RefusedError
from lw_jax.wire.gate import MEASURES, Gate
from tests.tiny.shipped import facts
from tests.wire.crafted import changed

TEXT = "Ada Lumen keeps 7 goats in the barn. Ben Korim keeps 31 cats in the attic."
ASKED = {"How many cats does Ben Korim keep?": "31", "How many goats does Ada Lumen keep?": "7"}
CATS = next(iter(ASKED))
TOKEN = "a token"
CONFIG = ServeConfig(
    rows=1,
    queue=48,
    parts=1,
    window=64,
    question_tokens=32,
    most_bytes=200_000,
    stream=False,
)


@pytest.fixture(scope="module")
def wire() -> Bridge:
    return facts()


def listening(server: Server) -> Iterator[str]:
    """Serves in a thread; gives the address."""
    running = uvicorn.Server(uvicorn.Config(server.app, port=0, log_config=None, lifespan="on"))
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.01)
        assert thread.is_alive()
    yield f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}"
    running.should_exit = True
    thread.join()


def until(holds: Callable[[], bool]) -> None:
    for _ in range(3000):
        if holds():
            return
        time.sleep(0.02)
    raise AssertionError("it never was so")


def ready(address: str) -> None:
    for _ in range(6000):
        found = httpx.get(f"{address}/health").json()["status"]
        if found == "ready":
            return
        assert found == "warming up", found
        time.sleep(0.02)
    raise AssertionError("not ready")


@pytest.fixture(scope="module")
def server(wire: Bridge) -> Server:
    return Server(wire, CONFIG, "facts", TOKEN)


@pytest.fixture(scope="module")
def there(server: Server) -> Iterator[httpx.Client]:
    for address in listening(server):
        ready(address)
        headers = {"Authorization": f"Bearer {TOKEN}"}
        with httpx.Client(base_url=address, headers=headers, timeout=60) as client:
            yield client


@pytest.fixture(scope="module")
def sent(there: httpx.Client) -> str:
    found = there.post("/encode", json={"text": TEXT}).json()
    assert (found["slots"], found["parts"], found["characters"]) == (32, 1, len(TEXT))
    return str(found["message"])


def test_it_answers_as_the_bridge_does(there: httpx.Client, sent: str, wire: Bridge) -> None:
    message = Message.from_bytes(base64.b64decode(sent))
    assert message.parts[0].packet == wire.encode(TEXT)
    one = there.post("/answer", json={"message": sent, "question": CATS}).json()
    assert one == {"answer": "31"}
    asked = {"message": sent, "questions": list(ASKED)}
    assert there.post("/answer", json=asked).json() == {"answers": list(ASKED.values())}
    assert there.post("/answer", json={"text": TEXT, "question": CATS}).json() == one
    two = there.post(
        "/encode", json={"texts": [TEXT, "Ada keeps 50 hens."], "codec": "int8"}
    ).json()
    assert [one["codec"] for one in two["messages"]] == ["int8", "int8"]


def test_completions_are_openais_with_a_message(there: httpx.Client, sent: str) -> None:
    body = {"model": "facts", "prompt": CATS, "message": sent, "temperature": 0, "max_tokens": 8}
    found = there.post("/v1/completions", json=body).json()
    assert found["object"] == "text_completion"
    assert found["choices"] == [
        {"index": 0, "text": "31", "finish_reason": "stop", "logprobs": None}
    ]
    assert found["usage"]["total_tokens"] > found["usage"]["completion_tokens"] >= 1
    several = there.post("/v1/completions", json=body | {"prompt": list(ASKED)}).json()
    assert [one["text"] for one in several["choices"]] == list(ASKED.values())
    stopped = there.post("/v1/completions", json=body | {"stop": ["1"]}).json()["choices"][0]
    assert (stopped["text"], stopped["finish_reason"]) == ("3", "stop")
    assert there.get("/v1/models").json()["data"][0]["id"] == "facts"


def body(value: str, **more: Any) -> dict[str, Any]:
    return {"message": value, "question": CATS} | more


def spoilt(sent: str, change: Any) -> str:
    return base64.b64encode(change(base64.b64decode(sent))).decode()


WRONG: dict[str, tuple[str, Any, int, str]] = {
    "no base64": ("/answer", lambda m: body("§"), 400, "message: no base64"),
    "no packet": ("/answer", lambda m: body("AAAA"), 400, "are no lw_jax latent"),
    "damaged": (
        "/answer",
        lambda m: body(spoilt(m, lambda b: changed(b, 90, lambda x: x ^ 1))),
        400,
        "the checksum differs",
    ),
    "cut": ("/answer", lambda m: body(spoilt(m, lambda b: b[:99])), 400, "its header says"),
    "too many parts": (
        "/answer",
        lambda m: body(spoilt(m, lambda b: Message.of([b] * 2).to_bytes())),
        413,
        "a message of 2 parts; 1 are the most",
    ),
    "question too long": (
        "/answer",
        lambda m: body(m, question="word " * 60),
        413,
        "tokens; 32 are the most",
    ),
    "no question": ("/answer", lambda m: {"message": m}, 400, "question: there is nothing in it"),
    "no message": ("/answer", lambda m: {"question": CATS}, 400, "message: missing"),
    "unknown key": ("/answer", lambda m: body(m, qestion=""), 400, "qestion: not known; known are"),
    "another kind": ("/answer", lambda m: body(m, receiver=3), 400, "receiver: expected text"),
    "receiver": ("/answer", lambda m: body(m, receiver="x"), 400, "'x' is not one of mistral"),
    "text too long": (
        "/encode",
        lambda m: {"text": "Ada keeps goats. " * 200},
        413,
        "a text of more than 1 windows",
    ),
    "empty text": ("/encode", lambda m: {"text": " "}, 400, "there is nothing in it"),
    "NUL": ("/encode", lambda m: {"text": "a\0"}, 400, "is a NUL"),
    "codec": ("/encode", lambda m: {"text": TEXT, "codec": "x"}, 400, "unknown codec 'x'"),
    "body": ("/encode", lambda m: {"text": "a" * 250_000}, 413, "more than 200,000 bytes"),
    "ratio": ("/encode", lambda m: {"text": TEXT, "ratio": 10**400}, 400, "ratio: too large"),
    "list": ("/encode", lambda m: [], 400, "expected a JSON object"),
    "temperature": (
        "/v1/completions",
        lambda m: {"prompt": CATS, "message": m, "temperature": 0.7},
        400,
        "temperature: 0.7 is not offered; this bridge has 0.0",
    ),
    "max_tokens": (
        "/v1/completions",
        lambda m: {"prompt": CATS, "message": m, "max_tokens": 0},
        400,
        "max_tokens: expected 1 or more",
    ),
    "stream": (
        "/v1/completions",
        lambda m: {"prompt": CATS, "message": m, "stream": True},
        400,
        "stream: this server was started without it",
    ),
    "another model": (
        "/v1/completions",
        lambda m: {"prompt": CATS, "message": m, "model": "gpt-x"},
        404,
        "model: 'gpt-x' is not served here; facts is",
    ),
    "empty stop": (
        "/v1/completions",
        lambda m: {"prompt": CATS, "message": m, "stop": [""]},
        400,
        "stop: expected some text",
    ),
    "true is no number": (
        "/v1/completions",
        lambda m: {"prompt": CATS, "message": m, "n": True},
        400,
        "n: True is not offered",
    ),
    "header": (
        "/answer",
        lambda m: body(spoilt(m, lambda b: changed(b, 5, lambda x: x ^ 1))),
        400,
        "where zeros belong",
    ),
    "a text and a message": (
        "/answer",
        lambda m: body(m, text=TEXT),
        400,
        "give either a message or a text",
    ),
    "a message in a codec": (
        "/answer",
        lambda m: body(m, codec="int8"),
        400,
        "codec: of a text; a message is encoded already",
    ),
    "questions for which there is never room": (
        "/answer",
        lambda m: {"message": m, "questions": [CATS] * 49},
        413,
        "49 texts or questions at once; 48 are the most",
    ),
    "texts for which there is never room": (
        "/encode",
        lambda m: {"texts": ["Ada keeps 7 goats."] * 49},
        413,
        "49 texts or questions at once; 48 are the most",
    ),
    "an option of streams": (
        "/v1/completions",
        lambda m: {"prompt": CATS, "message": m, "stream_options": {"usage": True}},
        400,
        "usage: not known; known are include_usage",
    ),
    "usage that is neither true nor false": (
        "/v1/completions",
        lambda m: {"prompt": CATS, "message": m, "stream_options": {"include_usage": "no"}},
        400,
        "include_usage: expected true or false",
    ),
    "options of no stream": (
        "/v1/completions",
        lambda m: {"prompt": CATS, "message": m, "stream_options": {"include_usage": True}},
        400,
        "stream_options: of a stream",
    ),
    "path": ("/nowhere", lambda m: {}, 404, "there is no such thing here"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_refused_with_the_reason(
    name: str, there: httpx.Client, sent: str
) -> None:
    path, made, status, reason = WRONG[name]
    response = there.post(path, json=made(sent))
    said = response.json()["error"]
    assert (response.status_code, said["code"]) == (status, status), said
    assert reason in said["message"]
    assert "\n" not in said["message"]


def test_where_not_all_texts_have_room_none_waits(
    there: httpx.Client, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    send, held, sent = Loaded.send, threading.Event(), list[int]()

    def slow(self: Loaded, texts: Any) -> Any:
        held.wait(10)
        sent.append(len(texts))
        return send(self, texts)

    monkeypatch.setattr(Loaded, "send", slow)
    text = "Ada keeps 7 goats."
    with ThreadPoolExecutor() as pool:

        def waits(count: int) -> Future[httpx.Response]:
            return pool.submit(there.post, "/encode", json={"texts": [text] * count})

        first = waits(1)
        until(lambda: not server.batcher.waiting and not first.done())
        others = waits(40)
        until(lambda: server.batcher.waiting == 40)
        assert there.post("/encode", json={"texts": [text] * 20}).status_code == 429
        assert server.batcher.waiting == 40
        held.set()
        assert [one.result().status_code for one in (first, others)] == [200, 200]
    assert sum(sent) == 41


def test_an_empty_list_of_stops_is_none(there: httpx.Client, sent: str) -> None:
    found = there.post("/v1/completions", json={"prompt": CATS, "message": sent, "stop": []})
    assert found.json()["choices"][0]["text"] == "31"


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"text": [TEXT, TEXT], "question": CATS}, "text: expected text"),
        ({"text": TEXT, "question": [CATS, CATS]}, "question: expected text"),
        ({"question": CATS}, "text: missing"),
    ],
)
def test_the_demo_takes_one_text_and_one_question(given: dict[str, Any], reason: str) -> None:
    request: Any = SimpleNamespace(state=SimpleNamespace(body=given))
    with pytest.raises(RefusedError, match=reason):
        asyncio.run(Demo(SimpleNamespace(bridge=None))(request))  # type: ignore[arg-type]


def test_the_right_method_is_said(there: httpx.Client) -> None:
    response = there.get("/encode")
    assert response.status_code == 405 and response.headers["Allow"] == "POST"
    assert response.json()["error"]["message"] == "GET /encode: use POST"


def test_what_the_gate_refuses_gets_the_reason(
    there: httpx.Client, server: Server, sent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounds = dict.fromkeys(MEASURES, 1e9) | {"largest_norm": 1e-3}
    gate = Gate(np.zeros(256), np.eye(256), bounds, server.bridge.trained.mark)
    monkeypatch.setattr(server._work, "bridge", replace(server.bridge, gate=gate))
    response = there.post("/answer", json=body(sent))
    assert response.status_code == 400
    assert "gate: the largest norm of a slot is" in response.json()["error"]["message"]


def test_without_the_token_nothing_is_said(there: httpx.Client, sent: str) -> None:
    for given in ("", "Bearer another"):
        response = httpx.post(
            f"{there.base_url}/answer", json=body(sent), headers={"Authorization": given}
        )
        assert response.status_code == 401
    broken = there.post("/answer", content=b"{")
    assert (broken.status_code, "no JSON" in broken.text) == (400, True)
    assert there.get("/answer").status_code == 405
    odd = there.post("/answer", content=b'{"\\ud800": 1}')
    assert (odd.status_code, "not known" in odd.text) == (400, True)


def test_a_body_that_does_not_end_is_not_waited_for(
    there: httpx.Client, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.entry, "config", ServeConfig(**vars(CONFIG) | {"timeout": 0.2}))
    url = there.base_url
    with socket.create_connection((url.host, url.port)) as connection:
        head = f"POST /answer HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
        connection.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
        assert b" 504 " in connection.recv(200)


async def asked_at_once(address: str, sent: str, count: int, at_once: int) -> list[httpx.Response]:
    waiting = asyncio.Semaphore(at_once)
    limits = httpx.Limits(max_connections=at_once)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    questions = list(ASKED)
    async with httpx.AsyncClient(base_url=address, limits=limits, headers=headers) as client:

        async def one(i: int) -> httpx.Response:
            async with waiting:
                question = questions[i % len(questions)]
                return await client.post("/answer", json=body(sent, question=question), timeout=60)

        return await asyncio.gather(*(one(i) for i in range(count)))


def value(there: httpx.Client, name: str) -> float:
    lines = there.get("/metrics").text.splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(f"{name} "))


def test_many_at_once_are_answered_and_compile_nothing(there: httpx.Client, sent: str) -> None:
    responses = asyncio.run(asked_at_once(str(there.base_url), sent, 24, 16))
    expected = list(ASKED.values())
    assert [r.status_code for r in responses] == [200] * 24
    assert [r.json()["answer"] for r in responses] == [expected[i % 2] for i in range(24)]
    assert value(there, "lw_jax_compilations_total") == 0
    assert value(there, "lw_jax_waiting") == 0
    assert 'lw_jax_requests_total{path="/answer",status="200"}' in there.get("/metrics").text


def test_beyond_the_queue_and_the_time_it_is_refused_and_goes_on(
    there: httpx.Client, sent: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask, held = Loaded.ask, threading.Event()

    def slow(self: Loaded, questions: Any) -> Any:
        held.wait(10)
        return ask(self, questions)

    monkeypatch.setattr(Loaded, "ask", slow)
    monkeypatch.setattr(server.entry, "config", ServeConfig(**vars(CONFIG) | {"timeout": 0.3}))
    late = there.post("/answer", json=body(sent))
    assert (late.status_code, late.json()["error"]["message"]) == (504, "not answered within 0.3 s")
    with pytest.raises(httpx.ReadTimeout):  # the other end goes away
        there.post("/answer", json=body(sent), timeout=0.05)
    until(lambda: server.batcher.waiting == 0)  # nobody waits for these any more
    monkeypatch.setattr(server.entry, "config", CONFIG)
    with ThreadPoolExecutor() as pool:
        asked = {"message": sent, "questions": [CATS] * 48}
        many = pool.submit(there.post, "/answer", json=asked)
        until(lambda: server.batcher.waiting == 48)
        more = there.post("/answer", json=body(sent))
        assert (more.status_code, more.headers["retry-after"]) == (429, "1")
        held.set()
        assert many.result().json() == {"answers": ["31"] * 48}
    assert there.post("/answer", json=body(sent)).json() == {"answer": "31"}
    assert value(there, "lw_jax_clients_left_total") == 1

    def broken(self: Loaded, questions: Any) -> Any:
        raise RuntimeError("the device\nis gone")

    monkeypatch.setattr(Loaded, "ask", broken)
    failed = there.post("/answer", json=body(sent))
    assert (failed.status_code, failed.json()["error"]["message"]) == (500, "the device is gone")
    monkeypatch.setattr(Loaded, "ask", ask)
    assert there.post("/answer", json=body(sent)).json() == {"answer": "31"}
