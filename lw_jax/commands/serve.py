"""`lw-jax serve`: a bridge behind HTTP."""

from __future__ import annotations

import errno
import importlib.util
import logging
import socket
from argparse import Namespace
from dataclasses import fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lw_jax.commands._ends import add_gate, add_key, add_models, key_of, models_of, token_of
from lw_jax.commands.base import Command, Parser
from lw_jax.errors import UserError, said
from lw_jax.serve.config import DEMO_QUESTIONS, ServeConfig

PACKAGES = ("starlette", "uvicorn", "httpx", "prometheus_client")
STOPPED = 130
WORDS_IN_DEMO = 256
"""Tokens of a text that the demo page gives the receiver in words, unless more are asked for."""


def run(given: Namespace) -> int:
    """Serves until it is stopped."""
    if lacking := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise UserError(
            f'serve: {", ".join(lacking)} missing: python -m pip install "lw_jax[serve]"'
        )
    options: dict[str, Any] = {f.name: getattr(given, f.name) for f in fields(ServeConfig)}
    if given.demo:
        options["text_tokens"] = given.text_tokens or WORDS_IN_DEMO
        if given.role != "both":
            raise UserError("--demo: the page shows both ends; use --role both")
        if given.queue < DEMO_QUESTIONS:
            raise UserError(f"--queue: the demo page asks {DEMO_QUESTIONS} questions at once")
    if given.receiver is not None:
        if given.role != "sender":
            raise UserError("--receiver: a sender alone hands questions on; give --role sender")
        if not _is_address(given.receiver):
            raise UserError(f"--receiver: {given.receiver}: expected http://HOST:PORT")
    config = ServeConfig(**options)
    token, key, receivers = token_of(given), key_of(given), models_of(given)
    listening = _listening(given.host, given.port)
    import uvicorn

    from lw_jax import Bridge
    from lw_jax.serve.app import Server

    log = _log()
    wire = Bridge.load(
        given.bridge,
        role=config.role,
        sender=given.sender,
        receivers=receivers,
        key=key,
        gate=given.gate,
    )
    server = Server(wire, config, Path(given.bridge).resolve().name, token)
    host, port = listening.getsockname()[:2]
    log.info(
        "%s, listening on http://%s:%d%s; warming up", repr(wire), host, port, _page(given.demo)
    )
    run_on = uvicorn.Server(
        uvicorn.Config(server.app, log_config=None, access_log=False, timeout_graceful_shutdown=5)
    )
    try:
        run_on.run(sockets=[listening])
    except KeyboardInterrupt:
        return STOPPED
    return 0


def _is_address(text: str) -> bool:
    """Whether a server can be asked there."""
    try:
        found = urlsplit(text)
        return found.scheme in ("http", "https") and bool(found.hostname) and found.port != 0
    except ValueError:  # of a port that is no number
        return False


def _log() -> logging.Logger:
    """What the server says, on standard error: libraries may have set up the root's handlers."""
    found = logging.getLogger("lw_jax.serve")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    found.handlers, found.propagate = [handler], False
    found.setLevel(logging.INFO)
    return found


def _page(demo: bool) -> str:
    return "/ (the demo page)" if demo else ""


def _listening(host: str, port: int) -> socket.socket:
    """A socket that is bound.

    Raises:
        UserError: the address is taken, or not this machine's.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        found = socket.socket(family)
        try:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind((host, port))
        except (OSError, OverflowError):
            found.close()
            raise
    except (OSError, OverflowError) as error:
        text = error.strerror if isinstance(error, OSError) and error.strerror else said(error)
        ours = isinstance(error, OverflowError) or error.errno in (errno.EADDRINUSE, errno.EACCES)
        other = "--port" if ours else "--host"
        raise UserError(f"serve: {host}:{port}: {text.lower()}; use another {other}") from error
    return found


def _arguments(parser: Parser) -> None:
    d = ServeConfig()
    add = parser.add_argument
    add("bridge", metavar="BRIDGE", help="directory of a run or exported bridge")
    add("--role", choices=("both", "sender", "receiver"), default=d.role, help="which end it is")
    add("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    add("--port", type=int, default=8000, help="0: one that is free (%(default)s)")
    add("--demo", action="store_true", help="serve a page to try it, at /")
    add(
        "--receiver",
        metavar="URL",
        help="of a sender: server to which questions about texts are handed on",
    )
    add("--rows", type=int, default=d.rows, help="run at once, 1 to 16 (%(default)s)")
    add("--queue", type=int, default=d.queue, help="may wait; beyond: 429 (%(default)s)")
    add("--timeout", type=float, default=d.timeout, help="seconds; beyond: 504 (%(default)s)")
    add("--most-bytes", type=int, default=d.most_bytes, help="of a body; beyond: 413 (%(default)s)")
    add("--window", type=int, default=d.window, help="tokens of a window; 0: as in training")
    add("--parts", type=int, default=d.parts, help="of a message; beyond: 413 (%(default)s)")
    add(
        "--question-tokens",
        type=int,
        default=d.question_tokens,
        help="of a question, its anchor included; beyond: 413; 0: as in training (%(default)s)",
    )
    add(
        "--text-tokens",
        type=int,
        default=d.text_tokens,
        help=f"of a text in words; --demo: {WORDS_IN_DEMO} (%(default)s)",
    )
    add("--no-stream", dest="stream", action="store_false", help="answers are not streamed")
    add("--token-file", metavar="FILE", help="bearer token to ask for; else $LW_JAX_TOKEN, if set")
    add("--sender", metavar="PATH", help="the sender, if it has moved")
    add_models(parser)
    add_key(parser)
    add_gate(parser)


COMMAND = Command(
    summary="serve a bridge over HTTP: encode, answer, OpenAI's completions, a demo page",
    about=(
        "POST /encode, /answer and /v1/completions (with `message` beside `prompt`); GET /health,\n"
        "/metrics and /v1/models. Everything a request can need is compiled before it is ready."
    ),
    examples=(
        ("serve zoo/bridges/facts --demo", "both ends and a page at http://127.0.0.1:8000/"),
        ("serve zoo/bridges/facts --role receiver --port 8001", "the receiver alone"),
        (
            "serve zoo/bridges/facts --role sender --receiver http://127.0.0.1:8001",
            "a sender that hands questions on",
        ),
    ),
    arguments=_arguments,
    run=run,
)
