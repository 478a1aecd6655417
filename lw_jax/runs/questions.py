"""Questions that a frozen receiver writes about texts, and answers that it stands by.

One tuned to write (`configs/real/overlays/writer.yaml`) draws questions, each with an answer;
the same receiver tuned to read the text answers them again. A question stays where both answers
agree, the reader is sure of its own, and that stands in the text (round trips: Alberti et al. 2019,
arXiv:1906.05416). What stays are rows of SQuAD's form, of which `data.squad` trains.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, BinaryIO, NamedTuple, TypeVar

import jax
from annotated_types import Ge, Le

from lw_jax.data import records
from lw_jax.data.overlap import RunIndex, normalised
from lw_jax.data.source import short_hash
from lw_jax.errors import UserError
from lw_jax.evaluate.metrics import squad
from lw_jax.mesh import make_mesh
from lw_jax.models.frozen import FrozenDecoder, Teacher
from lw_jax.models.generate import DecodeOptions
from lw_jax.pipeline import Pipeline
from lw_jax.receiver import answer
from lw_jax.receiver.pack import Segment, segment
from lw_jax.receiver.read import expand
from lw_jax.runs import teacher
from lw_jax.runs.exported import is_exported
from lw_jax.runs.opened import Session
from lw_jax.runs.places import located
from lw_jax.runs.session import open_pipeline
from lw_jax.runs.trained import config_at, layout_at
from lw_jax.text.layout import asked_ids, message_ids
from lw_jax.text.layout_config import LayoutConfig
from lw_jax.text.stop import Stop, stop_of
from lw_jax.text.tokenizer import Tokenizer
from lw_jax.utils.bounds import Checked, Share, Tokens
from lw_jax.utils.device import use_device
from lw_jax.utils.files import read_json, write_json

Item = TypeVar("Item")

RUN = 13
"""Words in a row by which two texts are taken for parts of one."""
TILES = {"text": 128, "ask": 64}
"""Segments are padded to a multiple of so many tokens, so that few programs are compiled."""
MOST_WORDS = 40
"""Words of a question at most."""


@dataclass(frozen=True)
class Config(Checked):
    """How questions are written, and which of them stay.

    Args:
        each: questions drawn for each text.
        temperature: of these draws.
        question_tokens: tokens of a question with its answer at most.
        answer_tokens: tokens of the reader's answer at most.
        agree: least F1 between the writer's answer and the reader's.
        sure: least mean log-probability, in nats, of the tokens of the reader's answer.
        least_words: texts with fewer words are left out.
        texts: so many texts at most; null: all.
        batch_size: questions in a batch.
        chunk: texts between two looks at the clock, and two savings.
        minutes: no new texts are begun after so many; null: until the texts end.
        seed: of the draws.
    """

    each: Annotated[int, Ge(1), Le(64)] = 4
    temperature: Annotated[float, Ge(0.01), Le(10)] = 0.8
    question_tokens: Tokens = 64
    answer_tokens: Tokens = 16
    agree: Share = 0.6
    sure: Annotated[float, Ge(-100), Le(0)] = -0.5
    least_words: Annotated[int, Ge(1), Le(10**6)] = 20
    texts: Annotated[int, Ge(1), Le(10**9)] | None = None
    batch_size: Annotated[int, Ge(1), Le(2**16)] = 256
    chunk: Annotated[int, Ge(1), Le(10**6)] = 512
    minutes: Annotated[float, Ge(0), Le(10**6)] | None = None
    seed: Annotated[int, Ge(0), Le(2**32 - 1)] = 0


class Text(NamedTuple):
    """A text that questions are written about.

    Attributes:
        title: what it is a part of; "" where the file has none.
        context: the text.
    """

    title: str
    context: str


class Asked(NamedTuple):
    """A question with the writer's own answer.

    Attributes:
        text: what it is about.
        question: the question.
        said: the answer.
    """

    text: Text
    question: str
    said: str


class Said(NamedTuple):
    """What a receiver wrote.

    Attributes:
        text: without the token that ended it.
        sure: mean log-probability of its tokens, in nats.
        ended: whether it came to an end.
    """

    text: str
    sure: float
    ended: bool


@dataclass(frozen=True)
class Tuned:
    """A receiver that was tuned to read texts.

    Attributes:
        model: the receiver.
        tokenizer: its own.
        layout: its sequence.
        given: what the tuning gives it besides the text.
        stop: where what it writes ends, besides its EOS.
    """

    model: FrozenDecoder
    tokenizer: Tokenizer
    layout: LayoutConfig
    given: Teacher
    stop: Stop

    def fits(self, texts: Sequence[str]) -> list[bool]:
        """Which texts have at most `layout.max_tokens` tokens."""
        most = self.layout.max_tokens
        ids = message_ids(self.layout, self.tokenizer, texts)
        return [most is None or len(row) <= most for row in ids]

    def write(
        self,
        texts: Sequence[str],
        questions: Sequence[str],
        options: DecodeOptions,
        batch_size: int,
        rng: jax.Array,
    ) -> list[Said]:
        """What it writes when it is asked about each text.

        Args:
            texts: the texts.
            questions: of each; "": none.
            options: of decoding; where it ends is added.
            batch_size: rows at once.
            rng: of sampling.
        """
        options = replace(options, eos_ids=self.model.arch.eos_ids, stop_ids=self.stop.ids)
        rows = message_ids(self.layout, self.tokenizer, texts)
        asked = [asked_ids(self.layout, self.tokenizer, one) for one in questions]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        given = expand(self.given.delivery, batch_size)
        found: dict[int, Said] = {}
        for number, places in enumerate(_batched(order, batch_size)):
            filled = [*places, *places[:1] * (batch_size - len(places))]
            context = _tiled([rows[i] for i in filled], "text")
            ask = _tiled([asked[i] for i in filled], "ask")
            assert context.ids is not None
            message = answer.delivered(
                self.model, self.given.prompt, given, context.ids, context.lengths
            )
            key = jax.random.fold_in(rng, number)
            out = jax.device_get(
                answer.write(self.model, self.given.prompt, message, ask, key, options)
            )
            for n, place in enumerate(places):
                length, stopped = int(out.lengths[n]), bool(out.stopped[n])
                said = self.stop.text(self.tokenizer, out.ids[n].tolist(), length, stopped)
                count = length + bool(out.ended[n])
                sure = float(out.logprobs[n, :count].sum()) / max(count, 1)
                found[place] = Said(said, sure, bool(out.ended[n]))
        return [found[i] for i in range(len(rows))]


def _batched(items: Iterable[Item], size: int) -> Iterator[tuple[Item, ...]]:
    """Items in groups of `size`, the last of which may be smaller."""
    rest = iter(items)
    while group := tuple(islice(rest, size)):
        yield group


def _tiled(rows: Sequence[Sequence[int]], role: str) -> Segment:
    """Rows of token ids as a segment, padded so that few shapes are compiled."""
    tile = TILES[role]
    return segment(rows, max(1, -(-max(map(len, rows)) // tile)) * tile, role)


def opened(writer: str, reader: str, receiver: str | None = None) -> tuple[Tuned, Tuned]:
    """The tuned receivers of two finished runs, or exported bridges, which share a model.

    Args:
        writer: the one that writes questions; its layout has `target: question_answer`.
        reader: the one that answers them.
        receiver: the receiver's name; None: the only one.

    Raises:
        UserError: one is no tuned receiver that reads the text, they are of different models, or
            there is a GPU, and jax has none.
    """
    home = Path(writer)
    config = located(config_at(home), home)
    use_device("auto" if is_exported(home) else config.device, os.environ)
    if layout_at(config).target != "question_answer":
        raise UserError(
            f"questions: {writer} writes no questions: its layout.target is not question_answer"
        )
    names = list(config.receivers)
    if receiver is None and len(names) > 1:
        raise UserError(f"questions: {writer} has several receivers ({', '.join(names)}); name one")
    name = names[0] if receiver is None else receiver
    if name not in names:
        raise UserError(f"questions: {writer} has no receiver {name!r}; there is {names[0]}")
    session = Session()
    pipeline = open_pipeline(
        config, make_mesh(config.mesh), run_dir=home, rows=False, session=session
    )
    return _tuned(writer, name, pipeline, session), _tuned(reader, name, pipeline, session)


def _tuned(directory: str, receiver: str, pipeline: Pipeline, session: Session) -> Tuned:
    layout = layout_at(located(config_at(Path(directory)), Path(directory)))
    given = teacher.load(directory, pipeline, session)
    if receiver not in given:
        raise UserError(f"questions: {directory} has no receiver {receiver!r}")
    tokenizer, model = pipeline.receivers[receiver], pipeline.frozen.receivers[receiver]
    stop = stop_of(tokenizer, () if layout.target == "question_answer" else ("\n",))
    return Tuned(model, tokenizer, layout, given[receiver], stop)


def texts_of(names: Sequence[str]) -> Iterator[Text | None]:
    """The texts of files: rows with a `context`, or SQuAD's articles; None: a malformed row."""
    for name in names:
        for part in _parts(name):
            context, title = part.get("context"), part.get("title")
            found = context.strip() if isinstance(context, str) else ""
            yield Text(title if isinstance(title, str) else "", found) if found else None


def _parts(name: str) -> Iterator[dict[str, Any]]:
    """The rows of a file, of SQuAD's articles each passage; {}: a malformed one."""
    for _, record in records.read((name,), None, "train"):
        parts = record.get("paragraphs", [record]) if isinstance(record, dict) else None
        for part in parts if isinstance(parts, list) else [{}]:
            own = part if isinstance(part, dict) else {}
            yield {"title": record.get("title"), **own} if own else {}


def split_pair(text: str, anchor: str) -> tuple[str, str] | None:
    """The question and the answer that were written as one text; None: it is no such text."""
    question, found, said = text.partition(anchor)
    question, said = " ".join(question.split()), said.strip()
    short = 3 <= len(question.split()) <= MOST_WORDS
    return (question, said) if found and said and short and "\n" not in said else None


def verdict(config: Config, context: str, said: str, read: Said) -> str:
    """Why a question does not stay, in a word; "": it stays.

    Args:
        config: what is asked of it.
        context: the text.
        said: the writer's answer.
        read: the reader's.
    """
    if not read.ended or not read.text:
        return "unfinished"
    if _place(read.text, context) is None:
        return "not in the text"
    if squad.f1(read.text, [said]) < config.agree:
        return "another answer"
    return "unsure" if read.sure < config.sure else ""


def _place(said: str, context: str) -> re.Match[str] | None:
    """Where an answer stands in a text, case aside."""
    return re.search(re.escape(said), context, re.IGNORECASE)


def rows_of(
    config: Config,
    writer: Tuned,
    reader: Tuned,
    texts: Sequence[Text],
    rng: jax.Array,
    barred: frozenset[str] = frozenset(),
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """The questions about some texts that stay, in SQuAD's flat form, and an account of the others.

    Args:
        config: how they are written.
        writer: writes them.
        reader: answers them.
        texts: the texts.
        rng: of the draws.
        barred: questions, normalised, that may not be written.
    """
    account: Counter[str] = Counter(texts=len(texts))
    each = [text for text in texts for _ in range(config.each)]
    options = DecodeOptions(max_new=config.question_tokens, temperature=config.temperature)
    contexts = [text.context for text in each]
    drawn = writer.write(contexts, [""] * len(each), options, config.batch_size, rng)
    pairs: dict[tuple[str, str], Asked] = {}
    for text, one in zip(each, drawn, strict=True):
        account["drawn"] += 1
        pair = split_pair(one.text, writer.layout.anchor) if one.ended else None
        key = text.context, "" if pair is None else normalised(pair[0])
        if pair is None:
            account["no question"] += 1
        elif key[1] in barred:
            account["an evaluation's question"] += 1
        elif key in pairs:
            account["written twice"] += 1
        else:
            pairs[key] = Asked(text, *pair)
    asked = list(pairs.values())
    greedy = DecodeOptions(max_new=config.answer_tokens)
    read = reader.write(
        [one.text.context for one in asked],
        [one.question for one in asked],
        greedy,
        config.batch_size,
        rng,
    )
    found = []
    for (text, question, said), one in zip(asked, read, strict=True):
        why = verdict(config, text.context, said, one)
        account[why or "kept"] += 1
        if not why:
            place = _place(one.text, text.context)
            assert place is not None  # of the verdict
            found.append(
                {
                    "id": f"written-{short_hash(text.context)}-{short_hash(question)}",
                    "title": text.title,
                    "context": text.context,
                    "question": question,
                    "answers": {"text": [place[0]], "answer_start": [place.start()]},
                }
            )
    return found, account


def write(
    config: Config,
    tuned: Callable[[], tuple[Tuned, Tuned]],
    sources: Sequence[str],
    out: Path,
    apart: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> Counter[str]:
    """Writes questions about the texts of files, chunk by chunk; goes on where it was stopped.

    Args:
        config: how.
        tuned: opens writer and reader.
        sources: files of texts.
        out: the rows, JSON lines; what is done stands beside it, in `<out>.progress.json`.
        apart: files of an evaluation: texts that share 13 words in a row with its contexts are
            left out, and so are its questions.
        say: takes a line for people.

    Returns:
        An account: texts and questions by what became of them.

    Raises:
        UserError: there is no text; `out` was written with other settings.
    """
    index, barred = _evaluated(apart)
    progress = out.with_name(f"{out.name}.progress.json")
    own = {k: v for k, v in asdict(config).items() if k not in ("minutes", "batch_size")}
    own |= {"sources": list(sources), "apart": list(apart)}
    settings = hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()
    done: dict[str, Any] = {"settings": settings, "chunks": 0, "bytes": 0, "account": {}}
    if out.exists() and not progress.exists():
        raise UserError(
            f"questions: {out} exists already, and is not of this command; name another"
        )
    if progress.exists():
        done = read_json(progress, dict)
        if done.get("settings") != settings:
            raise UserError(
                f"questions: {out} was begun with other settings; give those again, or delete it "
                f"and {progress}"
            )
    account: Counter[str] = Counter(done["account"])
    begun, models, seen = time.monotonic(), None, False
    file: BinaryIO | None = None
    with ExitStack() as stack:

        def opened_file() -> BinaryIO:
            """What was written; only now, so that a start that failed is in nobody's way."""
            out.parent.mkdir(parents=True, exist_ok=True)
            write_json(progress, done)
            held = stack.enter_context(out.open("ab"))
            held.truncate(done["bytes"])
            return held

        some = islice(texts_of(sources), config.texts)
        for number, chunk in enumerate(_batched(some, config.chunk)):
            seen = True
            if number < done["chunks"]:
                continue
            if config.minutes is not None and time.monotonic() - begun > 60 * config.minutes:
                file = file or opened_file()
                say(f"questions: {config.minutes:g} minutes are over; the same command goes on")
                break
            models = tuned() if models is None else models
            kept, left = _usable(config, chunk, index)
            kept, long = _fitting(kept, models)
            rng = jax.random.fold_in(jax.random.key(config.seed), number)
            rows, own_account = (
                rows_of(config, *models, kept, rng, barred) if kept else ([], Counter())
            )
            account += left + long + own_account
            file = file or opened_file()
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            file.flush()
            done |= {"chunks": number + 1, "bytes": file.tell(), "account": dict(account)}
            write_json(progress, done)
            seconds = time.monotonic() - begun
            say(
                f"questions: {account['kept']:,} of {account['drawn']:,} on {account['texts']:,} "
                f"texts; {seconds:.0f} s"
            )
    if not seen:
        raise UserError(f"questions: no text in {', '.join(sources)}")
    return account


def _evaluated(names: Sequence[str]) -> tuple[RunIndex, frozenset[str]]:
    """The runs of words in the contexts of evaluations, and their questions, normalised."""
    contexts: list[str] = []
    questions: set[str] = set()
    for name in names:
        before = len(contexts)
        for part in _parts(name):
            if isinstance(context := part.get("context"), str) and context.strip():
                contexts.append(context)
            asked = part.get("qas", [part])
            asked = (
                [one for one in asked if isinstance(one, dict)] if isinstance(asked, list) else []
            )
            questions |= {normalised(str(one.get("question", ""))) for one in asked}
        if len(contexts) == before:
            raise UserError(f"questions: --apart={name}: no context there; nothing is held apart")
    return RunIndex(contexts, RUN), frozenset(questions - {""})


def _usable(
    config: Config, chunk: Sequence[Text | None], index: RunIndex
) -> tuple[list[Text], Counter[str]]:
    """The texts that may be asked about, each once, and an account of the others."""
    account: Counter[str] = Counter()
    found: dict[str, Text] = {}
    for text in chunk:
        if text is None:
            account["malformed rows"] += 1
        elif len(text.context.split()) < config.least_words:
            account["short texts"] += 1
        elif index.found and index.shared(text.context) is not None:
            account["texts of an evaluation"] += 1
        else:
            found.setdefault(text.context, text)
    return list(found.values()), account


def _fitting(texts: Sequence[Text], tuned: tuple[Tuned, Tuned]) -> tuple[list[Text], Counter[str]]:
    """The texts that both receivers take, and an account of the others."""
    contexts = [text.context for text in texts]
    fits = [all(pair) for pair in zip(*(one.fits(contexts) for one in tuned), strict=True)]
    kept = [text for text, fit in zip(texts, fits, strict=True) if fit]
    return kept, Counter({"long texts": len(texts) - len(kept)})
