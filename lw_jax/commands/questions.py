"""`lw-jax questions`: a frozen receiver writes questions about texts, to be trained on."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from lw_jax.commands import _flags
from lw_jax.commands.base import Command
from lw_jax.errors import UserError

OWN = ("out", "apart", "receiver")


def run(given: Namespace) -> int:
    """Writes the rows, and prints an account of them."""
    places = [word for word in given.words if not word.startswith("--")]
    if len(places) < 3:
        raise UserError(
            "questions: give the run of a writer, the run of a reader, and files of texts "
            "(see lw-jax questions --help)"
        )
    from lw_jax.runs import questions

    flags = [word for word in given.words if word.startswith("--")]
    config, own = _flags.read("questions", flags, questions.Config, OWN)
    writer, reader, *texts = places
    if not own.get("out", "-"):
        raise UserError("questions: --out: the name of the file to write is empty")
    account = questions.write(
        config,
        lambda: questions.opened(writer, reader, own.get("receiver")),
        texts,
        Path(own.get("out", "written.jsonl")),
        [one for one in own.get("apart", "").split(",") if one],
    )
    for what, count in account.items():
        print(f"{count:>10,}  {what}")
    return 0


COMMAND = Command(
    summary="a frozen receiver writes questions about texts, to be trained on",
    usage="WRITER_RUN READER_RUN TEXTS ... [--out=FILE] [--apart=FILE,...] [--KEY=VALUE ...]",
    about=(
        "WRITER_RUN is a receiver tuned to write a question with its answer, READER_RUN the same\n"
        "receiver tuned to answer (configs/real/overlays/writer.yaml, prompt_tuning_text.yaml). A\n"
        "question stays where both agree, the reader is sure, and its answer stands in the text.\n"
        "--apart names the files of evaluations, of which no text and no question is used; --out\n"
        "(written.jsonl) takes SQuAD's rows. Stopped, the same command goes on where it was.\n\n"
        "keys: each, temperature, question_tokens, answer_tokens, agree, sure, least_words,\n"
        "texts, batch_size, chunk, minutes, seed"
    ),
    examples=(
        (
            "questions runs/real_writer runs/real_prompt_tuning_text prose.jsonl --apart=eval.json",
            "four questions a text",
        ),
    ),
    run=run,
    words=True,
)
