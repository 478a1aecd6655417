"""A bridge goes to a hub and comes back by its name: a hub of the same API on this machine."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from lw_jax.__main__ import main
from lw_jax.errors import UserError
from lw_jax.runs import card, hub

ROOT = Path(__file__).parents[2]
NAME = "someone/a-bridge"
SHA = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Repositories with the files that were committed to them."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *args: Any) -> None:
        """Says nothing."""

    def reply(self, body: bytes, code: int = 200, **headers: str) -> None:
        self.send_response(code)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def json(self, found: Any, code: int = 200) -> None:
        self.reply(json.dumps(found).encode(), code, Content_Type="application/json")

    def do_POST(self) -> None:
        size = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(size)
        self.server.asked.append(self.path)
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else NAME
            self.server.repos.setdefault(name, {})
            self.json({"url": f"{self.server.url}/{name}", "id": name, "name": name})
        elif self.path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            self.json(
                {
                    "files": [
                        {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                        for f in files
                    ]
                }
            )
        elif "/commit/main" in self.path:
            for line in map(json.loads, body.decode().splitlines()):
                if line["key"] == "file":
                    held = base64.b64decode(line["value"]["content"])
                    self.server.repos[NAME][line["value"]["path"]] = held
            self.json(
                {
                    "success": True,
                    "commitOid": SHA,
                    "commitUrl": f"{self.server.url}/{NAME}/commit/{SHA}",
                }
            )
        else:
            self.json({})

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        files = self.server.repos.get(NAME, {})
        path = self.path.partition("?")[0]
        if not files or NAME not in path:
            self.reply(b"{}", 404, X_Error_Code="RepoNotFound")
        elif "/tree/" in path:
            self.json(
                [
                    {"type": "file", "path": n, "size": len(b), "oid": hashlib.sha1(b).hexdigest()}
                    for n, b in files.items()
                ]
            )
        elif "/resolve/" in path:
            data = files[path.rpartition("/")[2]]
            etag = f'"{hashlib.sha256(data).hexdigest()}"'
            self.reply(data, X_Repo_Commit=SHA, ETag=etag)
        else:
            names = [{"rfilename": name} for name in files]
            self.json({"id": NAME, "modelId": NAME, "sha": SHA, "siblings": names, "tags": []})

    do_HEAD = do_GET  # noqa: N815


@pytest.fixture
def server() -> Iterator[Hub]:
    held = Hub()
    thread = threading.Thread(target=held.serve_forever, daemon=True)
    thread.start()
    yield held
    held.shutdown()
    held.server_close()


LOADED = """
import sys
from lw_jax import Bridge
receivers = {"mistral": "zoo/tiny-mistral"}
bridge = Bridge.load(sys.argv[1], sender="zoo/tiny-llama", receivers=receivers)
sent = bridge.encode("Nadia Vusaz keeps 12 goats in the barn.")
print(bridge.answer(sent, "How many goats does Nadia Vusaz keep?"))
"""


PUSHED = f"""
from lw_jax import Bridge
print(Bridge.load("zoo/bridges/facts", role="sender").push({NAME!r}, licence="mit"))
"""


@pytest.mark.slow
def test_a_bridge_goes_there_and_comes_back(server: Hub, tmp_path: Path) -> None:
    environ = os.environ | {
        "HF_ENDPOINT": server.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HOME": str(tmp_path / "hf"),
        "HF_TOKEN": "hf_of_this_test_alone",
    }

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *words],
            cwd=ROOT,
            env=environ,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    out = tmp_path / "exported"
    words = ["export", "zoo/bridges/facts", str(out), f"--push={NAME}", "--licence=apache-2.0"]
    done = run("-m", "lw_jax", *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{server.url}/{NAME}\n"
    assert set(server.repos[NAME]) == {
        "README.md",
        "bridge.json",
        "bridge.safetensors",
        "receivers.json",
    }
    assert server.repos[NAME]["bridge.safetensors"] == (out / "bridge.safetensors").read_bytes()
    done = run("-c", LOADED, NAME)
    assert done.stdout == "12\n", (done.stderr, server.asked)
    # from Python, and only the last checkpoint
    server.repos.clear()
    done = run("-c", PUSHED)
    assert done.stdout == f"{server.url}/{NAME}\n", done.stderr
    assert (out / "bridge.safetensors").read_bytes() == server.repos[NAME]["bridge.safetensors"]
    assert b"license: mit" in server.repos[NAME]["README.md"]
    assert run("-c", LOADED, NAME).stdout == "12\n"
    # once fetched it is found without the hub
    server.repos.clear()
    environ["HF_HUB_OFFLINE"] = "1"
    assert run("-c", LOADED, NAME).stdout == "12\n"
    environ["HF_HUB_OFFLINE"] = "0"
    done = run("-m", "lw_jax", "evaluate", "no/such-run")
    assert done.returncode == 2
    wrong = run("-c", LOADED, "no/such-bridge")
    assert "no such bridge on the hub" in wrong.stderr.splitlines()[-1]


@pytest.mark.slow
def test_the_card_says_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # models that ship are no hub's, wherever the command is given
    out = tmp_path / "exported"
    words = ["export", str(ROOT / "zoo/bridges/facts"), str(out), "--hf", "--licence=apache-2.0"]
    assert main(words) == 0
    _, front, text = (out / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "lw_jax",
        "license": "apache-2.0",
        "tags": ["lw_jax", "latent-communication"],
    }
    assert "6,869,520 parameters" in text
    assert "Sentences generated by lw_jax (`facts`)" in text
    assert "no encryption" in text
    # figures come along, of a card of another form and of one that lw_jax wrote
    assert "## Evaluated\n\nIts own card says:\n\n>" in text and "\n> 0.999 [0.998, 1.000]" in text
    assert main(["export", str(out), str(tmp_path / "again"), "--hf"]) == 0
    again = (tmp_path / "again/README.md").read_text()
    assert text.partition("## Evaluated")[2] == again.partition("## Evaluated")[2]


def test_a_card_without_figures_claims_none(tmp_path: Path) -> None:
    assert card._figures(tmp_path) == "No figures stand beside what this was exported from."


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--text=a"], "--text goes with --as"),
        (["--as=inputs_embeds"], "give --text, or --message"),
        (["--as=inputs_embeds", "--text=a", "--hf"], "go with a bridge"),
        (["--as=inputs_embeds", "--message=nowhere"], "nowhere: no such file"),
    ],
)
def test_wrong_words(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "runs/x", "out", *words]) == 2
    assert said in capsys.readouterr().err


def test_what_is_no_bridge_is_not_pushed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no exported bridge"):
        hub.push(tmp_path, NAME)
    for name in ("facts", "a/b/c", "", "../x", 3):
        with pytest.raises(UserError, match="is no name of a repository; give USER/NAME"):
            hub.repository(name)  # type: ignore[arg-type]
    assert hub.bridge_at(tmp_path) == tmp_path
    assert hub.bridge_at("runs/a/b/c") == Path("runs/a/b/c")
