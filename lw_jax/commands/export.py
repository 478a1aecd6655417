"""`lw-jax export`: a bridge to ship, or a message for another engine."""

from __future__ import annotations

import json
import re
from argparse import Namespace
from pathlib import Path
from typing import Any

from lw_jax.commands._ends import new_directory, read, writable
from lw_jax.commands.base import Command, Parser
from lw_jax.errors import UserError

ENGINES = ("prompt_embeds", "inputs_embeds", "past_key_values", "vllm_completion", "vllm_chat")
_OF_MESSAGES = ("text", "message", "question", "receiver")


def run(given: Namespace) -> int:
    """Writes it."""
    out = Path(given.out)
    if given.form is not None:
        if given.hf or given.push or given.licence:
            raise UserError("export: --hf, --push and --licence go with a bridge, not with --as")
        return _message(given, out)
    if wrong := [name for name in _OF_MESSAGES if getattr(given, name) is not None]:
        raise UserError(f"export: --{wrong[0]} goes with --as")
    if given.public and not given.push:
        raise UserError("export: --public goes with --push")
    if given.licence is not None and not re.fullmatch(r"[\w.+-]{1,100}", given.licence):
        raise UserError("export: --licence: expected a name that the hub knows, such as apache-2.0")
    new_directory(given.out, "export", "bridge.json")
    from lw_jax.runs import export, hub

    if given.push is not None:
        hub.repository(given.push)
    export.export(hub.bridge_at(given.run), out, bool(given.hf or given.push), given.licence)
    print(hub.push(out, given.push, not given.public) if given.push else out)
    return 0


def _message(given: Namespace, out: Path) -> int:
    """A message as an engine takes it."""
    if (given.text is None) == (given.message is None):
        raise UserError("export: give --text, or --message with a file that `lw-jax encode` wrote")
    writable(given.out, "export")
    data = None if given.message is None else read(given.message, "export")

    from lw_jax.api import engines
    from lw_jax.api.bridge import Bridge

    bridge = Bridge.load(given.run, role="receiver" if data is not None else "both")
    packet = data if data is not None else bridge.encode(given.text)
    engine = given.form.startswith("vllm")
    form: Any = "prompt_embeds" if engine else given.form
    prompt = engines.export(
        bridge, packet, given.question or "", form=form, receiver=given.receiver
    )
    if not engine:
        engines.to_file(prompt, out)
    else:
        from lw_jax.utils.files import write_text

        make = engines.vllm_chat_part if given.form == "vllm_chat" else engines.vllm_completion
        write_text(out, json.dumps(make(prompt)) + "\n")
    print(out)
    return 0


def _arguments(parser: Parser) -> None:
    parser.add_argument("run", metavar="RUN_DIR", help="of a run, or of an exported bridge")
    parser.add_argument("out", metavar="OUT", help="a directory; with --as a file")
    parser.add_argument("--hf", action="store_true", help="with a model card")
    parser.add_argument("--licence", metavar="NAME", help="of the weights, for the card")
    parser.add_argument("--push", metavar="USER/NAME", help="to the Hugging Face hub as well")
    parser.add_argument("--public", action="store_true", help="a new repository is public")
    parser.add_argument(
        "--as", dest="form", choices=ENGINES, help="a message instead, in this form"
    )
    parser.add_argument("--text", help="the message's text")
    parser.add_argument("--message", metavar="FILE", help="the message's bytes")
    parser.add_argument("--question", help="that is asked about it")
    parser.add_argument("--receiver", metavar="NAME", help="where there are several")


COMMAND = Command(
    summary="write a bridge to ship, or a message for another engine",
    about=(
        "A bridge is safetensors and JSON, with --hf a model card. With --as one message goes\n"
        "to an engine that lw_jax does not run: prompt_embeds, inputs_embeds and past_key_values\n"
        "as safetensors (lw_jax.api.engines reads them), vllm_completion and vllm_chat as JSON.\n"
        "`lw-jax doctor CONFIG` says which a bridge can be, before it is trained."
    ),
    examples=(
        ("export runs/facts bridges/facts --hf", "to ship, or to push by hand"),
        ("export runs/facts bridges/facts --push=me/facts", "to the hub, private"),
        (
            'export runs/mine a.safetensors --as=inputs_embeds --text="A text." --question="What?"',
            "for transformers",
        ),
    ),
    arguments=_arguments,
    run=run,
)
