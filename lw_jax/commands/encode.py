"""`lw-jax encode`: a text becomes a message."""

from __future__ import annotations

import sys
from argparse import Namespace

from lw_jax.commands._ends import add_key, key_of, read_text, writable, write
from lw_jax.commands.base import Command, Parser


def run(given: Namespace) -> int:
    """Encodes it."""
    writable(given.out, "encode")
    text = read_text(given.text, "encode")
    key = key_of(given)
    from lw_jax import Bridge
    from lw_jax.wire.message import Message

    wire = Bridge.load(given.bridge, role="sender", sender=given.sender, key=key)
    windows = wire.encode_stream(
        text, given.question, codec=given.codec, ratio=given.ratio, tokens=given.tokens
    )
    message = Message.of(windows)
    write(given.out, message.to_bytes())
    print(f"{message!r} for {len(text.encode()):,} bytes of text", file=sys.stderr)
    return 0


def _arguments(parser: Parser) -> None:
    parser.add_argument("bridge", metavar="BRIDGE", help="directory of a run or exported bridge")
    parser.add_argument("text", metavar="FILE", nargs="?", default="-", help="UTF-8; -: stdin")
    parser.add_argument("-o", "--out", metavar="FILE", default="-", help="the message; -: stdout")
    parser.add_argument("--question", help="where it travels in the latent")
    parser.add_argument("--codec", help="of the slots, such as int8; left out: exact")
    parser.add_argument("--ratio", type=float, help="source tokens a slot, of a bridge for several")
    parser.add_argument("--tokens", type=int, help="the longest window; left out: as in training")
    parser.add_argument("--sender", metavar="PATH", help="the sender, if it has moved")
    add_key(parser)


COMMAND = Command(
    summary="encode a text of any length as a message",
    about="Longer texts are cut at the ends of sentences into windows, each a part of the message.",
    examples=(
        ("encode zoo/bridges/facts story.txt -o story.lwj", "a file"),
        (
            "encode zoo/bridges/facts < story.txt | ssh there lw-jax decode bridge --ask 'Who?'",
            "two machines and a pipe",
        ),
    ),
    arguments=_arguments,
    run=run,
)
