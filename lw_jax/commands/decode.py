"""`lw-jax decode`: a message and questions become answers."""

from __future__ import annotations

import json
from argparse import Namespace

from lw_jax.commands._ends import add_gate, add_key, add_models, key_of, models_of, read, read_text
from lw_jax.commands.base import Command, Parser
from lw_jax.errors import UserError


def run(given: Namespace) -> int:
    """Prints a line for each question; without one, what the message says of itself."""
    if given.bridge is None and not given.about:
        raise UserError("decode: BRIDGE: missing; without one, only --about can be answered")
    if given.questions == "-" == given.message:
        raise UserError("decode: the message and --questions cannot both come from standard input")
    data = read(given.message, "decode")
    key, receivers = key_of(given), models_of(given)
    asked = list(given.ask)
    if given.questions is not None:
        lines = read_text(given.questions, "decode").split("\n")
        asked += [line.strip() for line in lines if line.strip()]
    from lw_jax.wire.message import Message

    message = Message.from_bytes(data)
    if given.about:
        facts = ("bridge", "codec", "slots", "width", "tokens", "characters", "nbytes")
        print(json.dumps({"parts": len(message)} | {f: getattr(message, f) for f in facts}))
        return 0
    from lw_jax import Bridge

    wire = Bridge.load(given.bridge, role="receiver", receivers=receivers, key=key, gate=given.gate)
    asks = wire.pipeline.layout.question_in == "receiver" and bool(wire.pipeline.layout.question)
    if asks and not asked:
        raise UserError("decode: give a question with --ask, or a file of them with --questions")
    if given.stream:
        for question in asked or [""]:
            for piece in wire.answer_stream(message, question, given.receiver):
                print(piece, end="", flush=True)
            print()
        return 0
    for line in wire.answer(message, asked or [""], given.receiver):
        print(line)
    return 0


def _arguments(parser: Parser) -> None:
    parser.add_argument(
        "bridge", metavar="BRIDGE", nargs="?", help="directory of a run or exported bridge"
    )
    parser.add_argument(
        "-m", "--message", metavar="FILE", default="-", help="what encode wrote; -: stdin"
    )
    parser.add_argument(
        "--ask", metavar="QUESTION", action="append", default=[], help="may be given again"
    )
    parser.add_argument("--questions", metavar="FILE", help="questions, a line each")
    parser.add_argument("--stream", action="store_true", help="print answers as they are written")
    parser.add_argument(
        "--about", action="store_true", help="print what the message says of itself, as JSON"
    )
    parser.add_argument("--receiver", metavar="NAME", help="of a bridge that has several")
    add_models(parser)
    add_key(parser)
    add_gate(parser)


COMMAND = Command(
    summary="answer questions about a message",
    examples=(
        ("decode zoo/bridges/facts -m story.lwj --ask 'Who keeps goats?'", "a file"),
        ("decode --about < story.lwj", "what the message says of itself; no model is loaded"),
    ),
    arguments=_arguments,
    run=run,
)
