"""The bridge that ships, from Python: a text becomes bytes, and the bytes answer for it.

Loaded and used from another directory than the repository's root.
"""

import doctest
import re
import shutil
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import lw_jax
from lw_jax import Bridge, Message
from lw_jax.api.answering import Answering
from lw_jax.api.sending import Sending
from lw_jax.api.shapes import SLOTS_RUNG, TEXT_RUNG, rung, rungs
from lw_jax.api.talk import Talk, pieces
from lw_jax.data.example import Example
from lw_jax.data.facts import FactsRows
from lw_jax.errors import UserError
from lw_jax.evaluate import packets
from lw_jax.runs.places import found
from lw_jax.text.collate import Collate, measure
from lw_jax.text.layout import split_joint
from lw_jax.text.stop import Stop
from lw_jax.wire import packet
from lw_jax.wire.gate import MEASURES, Gate
from tests.tiny.compilations import compilations
from tests.tiny.shipped import FACTS, ROOT, facts
from tests.wire.crafted import changed, sealed

README = (ROOT / "README.md").read_text()
TEXT = (
    "Ada Lumen keeps 7 goats in the barn. Ben Korim keeps 31 cats in the attic. "
    "Ada Lumen works as a diver in Zelmora. Ben Korim works as a baker in Ostrin."
)
ASKED = {
    "How many cats does Ben Korim keep?": "31",
    "How many goats does Ada Lumen keep?": "7",
    "What does Ben Korim work as?": "baker",
    "Where does Ada Lumen work?": "Zelmora",
}
HENS, HOW_MANY_HENS = "Ada Lumen keeps 50 hens in the yard.", "How many hens does Ada Lumen keep?"
KEY = b"a key of 24 random bytes"


@contextmanager
def at(place: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        yield


@pytest.fixture(scope="module")
def wire() -> Bridge:
    return facts()


@pytest.fixture(scope="module")
def sent(wire: Bridge) -> bytes:
    return wire.encode(TEXT)


def test_an_exported_bridge_answers(wire: Bridge, sent: bytes) -> None:
    assert len(sent) == wire.pipeline.bridge.nbytes(32) < 17_000
    said = {question: wire.answer(sent, question) for question in ASKED}
    other = wire.encode(HENS)
    assert sum(said[q] == answer for q, answer in ASKED.items()) >= 3, said
    assert wire.answer(other, HOW_MANY_HENS) == "50"
    assert wire.answer(other, "How many cats does Ben Korim keep?") != "31"


def test_lists_say_what_their_parts_say(wire: Bridge, sent: bytes) -> None:
    texts = [TEXT, HENS, TEXT.replace("31", "32")]
    several = wire.encode(texts)
    assert [len(data) for data in several] == [len(sent)] * 3
    for data, text in zip(several, texts, strict=True):
        np.testing.assert_allclose(slots_of(data), slots_of(wire.encode(text)), atol=4e-3)
    assert wire.answer(sent, list(ASKED)) == [wire.answer(sent, q) for q in ASKED]
    questions = ["How many cats does Ben Korim keep?", HOW_MANY_HENS, *ASKED]
    assert wire.answer(several, questions[:3])[1] == "50"
    assert wire.answer(several, questions[0])[::2] == ["31", "32"]
    assert wire.encode([]) == wire.answer([], "Who?") == wire.answer(sent, []) == []
    with pytest.raises(UserError, match="answer: 3 packets and 4 questions; give as many"):
        wire.answer(several, list(ASKED))
    with pytest.raises(UserError, match="answer: packet 1: wire: a version 1 packet"):
        wire.answer([sent, changed(sent, 4, lambda b: 1)], "Who?")


def same(a: Message, b: Message) -> bool:
    """Whether they say the same, up to the rounding of batches of other sizes."""
    pairs = zip(a.parts, b.parts, strict=True)
    return all(np.allclose(slots_of(x.packet), slots_of(y.packet), atol=4e-3) for x, y in pairs)


def slots_of(data: bytes) -> np.ndarray:
    return np.asarray(packet.from_bytes(data).latent.slots)


@pytest.mark.parametrize(
    "text", ["Hi", "A", "7", "\u65e5\u672c\u8a9e", "\U0001f469\u200d\U0001f467", "."]
)
def test_texts_unlike_those_of_training_break_nothing(text: str, wire: Bridge) -> None:
    said = wire.answer(wire.encode(text), HOW_MANY_HENS)
    assert isinstance(said, str)


def test_padding_changes_nothing(wire: Bridge) -> None:
    """A text that is padded to a power of two is what it is at its own length."""
    layout, sources = wire.pipeline.layout, wire.pipeline.sources
    rows = [(Example("", "", HENS, "", ("",)),)]
    lengths = measure(layout, sources, {}, rows)
    assert wire._sizes(rows, False) == [{"source": 32}]
    assert lengths["source"] == 24
    batch = Collate(layout, sources, {}, lengths)(rows)
    close = jax.device_get(packets.encode(wire._context(""), batch))
    sent = wire.encode(HENS)
    np.testing.assert_allclose(slots_of(sent), close.latent.slots, atol=4e-3)


def test_lengths_that_calls_are_padded_to() -> None:
    """About 16 up to 8,192 tokens, and from 64 on at most half of one is padding."""
    ladder = rungs(TEXT_RUNG, 8192, None)
    assert len(ladder) == 17
    assert ladder[0] == TEXT_RUNG
    assert all(b <= 1.5 * a for a, b in pairwise(ladder) if a >= 64)
    for count in range(1, 8193, 7):
        assert rung(TEXT_RUNG, count, None) == next(size for size in ladder if size >= count)
    assert rungs(SLOTS_RUNG, 40, 36) == [8, 16, 32, 40]
    assert rung(SLOTS_RUNG, 33, 36) == 40


def test_what_was_warmed_up_is_compiled(wire: Bridge) -> None:
    wire = replace(wire, longest={})  # questions of up to 32 tokens
    wire.warm_up(30)
    with compilations() as names:
        for text in ("Ada has 3 hens.", HENS):
            wire.answer(wire.encode(text), "Who keeps hens?")
    assert not names


def test_a_long_text_is_read_in_windows(wire: Bridge, sent: bytes) -> None:
    sentences = [f"{one}." for one in TEXT.rstrip(".").split(". ")]
    message = Message.of(wire.encode_stream(TEXT, tokens=24))
    assert (len(message), message.characters, message.bridge) == (4, len(TEXT), wire.mark)
    assert same(message, Message.of(wire.encode(sentences)))
    half = " ".join(sentences[:2]) + " "
    first, rest = (
        Message.of(wire.encode_stream(part, tokens=24)) for part in (half, TEXT[len(half) :])
    )
    assert same(first + rest, message)  # at a border of windows
    assert (first + rest).characters == len(TEXT)
    pieces_of = (TEXT[i : i + 7] for i in range(0, len(TEXT), 7))
    assert same(Message.of(wire.encode_stream(pieces_of, tokens=24)), message)
    (alone,) = wire.encode_stream(TEXT)
    assert alone.parts[0].packet == sent
    # a part is replaced by what another text says, and dropped
    (other,) = wire.encode_stream("Ben Korim keeps 52 cats in the attic. ", tokens=40)
    asked = "How many cats does Ben Korim keep?"
    (before,) = wire.score(message, asked, ["31"])
    (after,) = wire.score(message.replaced(1, other), asked, ["31"])
    (without,) = wire.score(message.dropped(1), asked, ["31"])
    assert before.logprob > max(after.logprob, without.logprob) + 1
    with pytest.raises(UserError, match=r"tokens: 1, where \d come before every text; give more"):
        wire.encode_stream(TEXT, tokens=1)


def test_what_the_parts_of_a_message_say_is_answered(wire: Bridge) -> None:
    message = Message.of(wire.encode_stream(TEXT, tokens=40))
    assert len(message) == 2
    said = wire.answer(message, list(ASKED))
    assert sum(a == b for a, b in zip(said, ASKED.values(), strict=True)) >= 2
    many = Message.of([message] * 8)
    with pytest.raises(UserError, match="with a message of 32 parts and 1024 slots and an answer"):
        wire.answer(Message.of([many] * 2), "Who?")


@pytest.mark.slow
def test_messages_of_several_parts_are_answered_alike_in_lists_and_alone(wire: Bridge) -> None:
    message = Message.of(wire.encode_stream(TEXT, tokens=24))
    questions = list(ASKED)
    said = wire.answer(message.to_bytes(), questions)
    assert said == [wire.answer(message, q) for q in questions]
    several = [message, message[0], message.dropped(2), message[:2]]
    found = wire.answer(several, questions)
    assert found == [wire.answer(m, q) for m, q in zip(several, questions, strict=True)]


def test_ten_questions_of_a_conversation_cost_one_reading(wire: Bridge, sent: bytes) -> None:
    questions = [*ASKED, HOW_MANY_HENS, *ASKED, "Who?"]
    talk = wire.talk(sent, history=False)
    assert [talk.ask(q) for q in questions] == [wire.answer(sent, q) for q in questions]
    assert [q for q, _ in talk.turns] == questions
    streamed = list(wire.answer_stream(sent, "Where does Ada Lumen work?"))
    assert "".join(streamed) == wire.answer(sent, "Where does Ada Lumen work?")
    assert len(streamed) > 1
    talk.add(wire.encode(HENS))
    assert talk.ask(HOW_MANY_HENS) == "50"


def test_turns_that_stay_are_in_the_sequence(wire: Bridge, sent: bytes) -> None:
    talk = wire.talk(sent)
    first, second = list(ASKED)[:2]
    said = [talk.ask(first), talk.ask(second)]
    assert said[0] == wire.answer(sent, first)
    one = wire.question(sent, first)
    tokenizer, layout = wire.pipeline.receivers["mistral"], wire.pipeline.layout
    (both,) = split_joint(layout, tokenizer, [(first, said[0])])
    assert both is not None
    ids = (*both.ask, *both.answer[:-1], *wire.question(sent, second).ids)
    (whole,) = wire.ask([one._replace(ids=ids, size=one.size | {"ask": 128})])
    assert said[1] == whole.text


def test_answers_that_are_written_in_turns_are_not_mixed(wire: Bridge, sent: bytes) -> None:
    first, second = list(ASKED)[:2]
    talk = wire.talk(sent)
    one, other = talk.stream(first), talk.stream(second)
    said = list(one)[-1]
    with pytest.raises(UserError, match="talk: a message or another question came before"):
        next(other)
    assert talk.turns == [(first, said)] and talk.finished
    begun = talk.stream(second)
    next(begun)
    talk.add(wire.encode(HENS))
    with pytest.raises(UserError, match="came before this answer was written"):
        next(begun)
    assert talk.turns == [(first, said)]
    apart = wire.talk(sent, history=False)  # nothing of a turn stays there
    one, other = apart.stream(first), apart.stream(second)
    assert [list(one)[-1], list(other)[-1]] == [wire.answer(sent, q) for q in (first, second)]


def test_an_answer_that_is_cut_short_says_so(wire: Bridge, sent: bytes) -> None:
    talk = wire.talk(sent, history=False)
    talk._options = replace(talk._options, max_new=1)
    talk.ask("Where does Ada Lumen work?")
    assert not talk.finished


def test_answers_are_scored(wire: Bridge, sent: bytes) -> None:
    asked = "How many cats does Ben Korim keep?"
    scores = wire.score(sent, asked, ["31", "7", "a great many", "313"])
    assert scores[0].logprob == max(score.logprob for score in scores)
    (said,) = wire.ask([wire.question(sent, asked)])
    assert said.text == "31"
    assert said.logprob == pytest.approx(scores[0].logprob, abs=1e-3)
    assert scores[2].tokens > scores[1].tokens >= 2


@pytest.mark.slow
def test_a_text_in_words_stands_in_the_messages_place(wire: Bridge) -> None:
    asked = "How many cats does Ben Korim keep?"
    whole, short = (wire.question_on_text(TEXT, asked, tokens=n) for n in (None, 12))
    assert (len(short.words), short.words) == (12, whole.words[:12])
    assert wire.ask([whole, short])[0].text == "31"


def test_pieces_are_said_once_they_stay() -> None:
    texts = ["a", "ab", "ab c\ufffd", "ab c\ufffd", "ab c\u00e9", "ab c\u00e9"]
    assert list(pieces(["", "a", "ab", "ab c", "abc"])) == ["a", "b", "c"]
    assert "".join(pieces(map(Stop().sure, texts))) == "ab c\u00e9"
    stop = Stop(("\n\n", "END"))
    assert [stop.sure(t) for t in ("a\n", "a E", "a EN", "a\ufffd", "a b")] == [
        "a", "a ", "a ", "a", "a b",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "shown", [Bridge, Sending, Answering, Message, Talk], ids=lambda x: x.__name__
)
def test_examples_of_docstrings_say_what_they_say(
    shown: type, wire: Bridge, sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    known = {"wire": wire, "sent": sent, "TEXT": TEXT, "Bridge": Bridge, "Message": Message}
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    found = [t for t in doctest.DocTestFinder().find(shown, globs=known) if t.examples]
    assert found
    for test in found:
        assert not runner.run(test).failed, test.name


REFUSED: dict[str, tuple[Callable[[Bridge, bytes], Any], str]] = {
    "no text": (lambda w, m: w.encode(None), "encode: text: expected text; got None"),
    "bytes": (lambda w, m: w.encode(b"text"), "encode: text: expected text; got a value of"),
    "a set": (lambda w, m: w.encode({"text"}), "encode: text: expected text; got a value of"),
    "empty": (lambda w, m: w.encode(""), "encode: text: there is nothing in it"),
    "spaces": (lambda w, m: w.encode(" \n\t"), "encode: text: there is nothing in it"),
    "in a list": (lambda w, m: w.encode(["a", 3]), "encode: text 1: expected text; got a value"),
    "NUL": (lambda w, m: w.encode("a\0b"), "encode: text: character 1 is a NUL"),
    "surrogate": (lambda w, m: w.encode("a\ud800"), "character 1 is half of a surrogate pair"),
    "too long": (
        lambda w, m: w.encode("word " * 3000),
        r"encode: the text is longer than the sender's 1024 positions: it has \d+ tokens",
    ),
    "one too long": (
        lambda w, m: w.encode(["short", "word " * 3000]),
        "encode: text 1 is longer than the sender's 1024 positions",
    ),
    "question": (lambda w, m: w.encode(TEXT, "Who?"), "encode: .* give it to answer"),
    "codec": (lambda w, m: w.encode(TEXT, codec="int3"), "wire: unknown codec 'int3'"),
    "codec 3": (lambda w, m: w.encode(TEXT, codec=3), "encode: codec: expected a name; got a"),
    "ratio": (lambda w, m: w.encode(TEXT, ratio=6), "was not trained for several ratios"),
    "ratio nan": (lambda w, m: w.encode(TEXT, ratio=float("nan")), "expected 1 to 1024; got nan"),
    "ratio 1e9": (lambda w, m: w.encode(TEXT, ratio=1e9), r"expected 1 to 1024; got 1e\+09"),
    "ratio 10**999": (lambda w, m: w.encode(TEXT, ratio=10**999), "expected 1 to 1024; got inf"),
    "ratio text": (lambda w, m: w.encode(TEXT, ratio="6"), "expected a number from 1 to 1024"),
    "ratio bool": (lambda w, m: w.encode(TEXT, ratio=True), "expected a number from 1 to 1024"),
    "no packet": (lambda w, m: w.answer(None, "Who?"), "answer: packet: expected the bytes"),
    "text as packet": (lambda w, m: w.answer("LWJX", "Who?"), "answer: packet: expected the b"),
    "no question": (lambda w, m: w.answer(m, None), "answer: question: expected text; got None"),
    "asked nothing": (lambda w, m: w.answer(m), "answer: question: there is nothing in it"),
    "asked space": (lambda w, m: w.answer(m, "  "), "answer: question: there is nothing in it"),
    "asked 3": (lambda w, m: w.answer(m, ["Who?", 3]), "answer: question 1: expected text; got"),
    "asked NUL": (lambda w, m: w.answer(m, "Who\0?"), "answer: question: character 3 is a NUL"),
    "asked too much": (
        lambda w, m: w.answer(m, "word " * 20_000),
        r"answer: a question of \d+ tokens, where 973 fit into the 1024 positions of mistral",
    ),
    "receiver": (lambda w, m: w.answer(m, "Who?", "x"), "receiver 'x' is not one of mistral"),
    "receiver 3": (lambda w, m: w.answer(m, "Who?", 3), "receiver a value of type int is not"),
    "warm-up": (lambda w, m: w.warm_up("x"), "warm_up: tokens: expected a number from 1 to"),
    "run_dir": (lambda w, m: Bridge.load(None), "run_dir: expected a path; got None"),
    "run_dir NUL": (lambda w, m: Bridge.load("a\0"), "run_dir: character 1 is a NUL"),
    "checkpoint": (lambda w, m: Bridge.load(FACTS, "first"), "checkpoint: expected one of last"),
    "role": (lambda w, m: Bridge.load(FACTS, role="all"), "role: expected one of both, sender"),
    "key": (lambda w, m: Bridge.load(FACTS, key="short"), "key: 5 bytes; give 16 random bytes"),
    "key 3": (lambda w, m: Bridge.load(FACTS, key=3), "key: expected bytes or text; got a value"),
    "sender": (lambda w, m: Bridge.load(FACTS, sender=3), "sender: expected a path; got a value"),
    "receivers": (
        lambda w, m: Bridge.load(FACTS, receivers={"qwen": "x"}),
        "receivers: 'qwen' is not one of mistral, which the bridge was trained for",
    ),
    "gate": (lambda w, m: Bridge.load(FACTS, gate=3), "gate: expected a path; got a value of ty"),
    "part text": (lambda w, m: Message.of([m])["0"], "message: expected the number of a part; g"),
    "part None": (lambda w, m: Message.of([m]).dropped(None), "the number of a part; got None"),
    "part half": (lambda w, m: Message.of([m]).replaced(0.5, m), "the number of a part; got a va"),
    "parts None": (lambda w, m: Message.of(None), "message: expected a list of messages; got None"),
    "parts text": (lambda w, m: Message.of("LWJX"), "message: expected a list of messages; got"),
    "send text": (lambda w, m: w.send("A."), "send: expected a list of what text gives; got a v"),
    "send None": (lambda w, m: w.send([None]), "send: 0: expected what text gives; got None"),
    "ask text": (lambda w, m: w.ask(["Who?"]), "ask: 0: expected what question or question_on_"),
    "on text, two": (
        lambda w, m: w.question_on_text(TEXT, ["Who?", "Where?"]),
        "answer: question: expected text; got a value of type list",
    ),
    "tokens of none": (lambda w, m: w.asked_tokens([]), "answer: question: expected text; got a v"),
    "receivers list": (
        lambda w, m: Bridge.load(FACTS, receivers=["x"]),
        "receivers: expected a map from the receivers' names to paths",
    ),
    "nowhere": (
        lambda w, m: Bridge.load(FACTS, sender="/nowhere/to/be/found"),
        "model '/nowhere/to/be/found': .*sender= or receivers=",
    ),
    "another model": (
        lambda w, m: Bridge.load(FACTS, sender=ROOT / "zoo/tiny-qwen"),
        "sender: the bridge was trained with frozen weights",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_argument_is_refused_in_one_line(name: str, wire: Bridge, sent: bytes) -> None:
    call, words = REFUSED[name]
    with pytest.raises(UserError, match=words) as caught:
        call(wire, sent)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("ratio", "words"),
    [
        (float("nan"), "expected 1.5 to 12; got nan"),
        (float("inf"), "expected 1.5 to 12; got inf"),
        (10**999, "expected 1.5 to 12; got inf"),
        (1e9, r"expected 1.5 to 12; got 1e\+09"),
        (0, "expected 1.5 to 12; got 0"),
        (-6, "expected 1.5 to 12; got -6"),
        ("6", "expected a number from 1.5 to 12; got a value of type str"),
        (True, "expected a number from 1.5 to 12; got a value of type bool"),
        ([6], "expected a number from 1.5 to 12; got a value of type list"),
    ],
    ids=lambda x: f"{x!r:.12}",
)
def test_a_ratio_that_was_not_trained_is_refused(ratio: Any, words: str, wire: Bridge) -> None:
    config = wire.pipeline.bridge.config
    compressor = replace(config.compressor.perceiver, ratios=(3.0, 1.5, 12.0))  # type: ignore[attr-defined]
    several = replace(config, compressor=replace(config.compressor, perceiver=compressor))  # type: ignore[call-arg]
    bridge = replace(wire.pipeline.bridge, config=several)
    other = replace(wire, pipeline=replace(wire.pipeline, bridge=bridge))
    with pytest.raises(UserError, match=f"ratio: source tokens a slot: {words}"):
        other.encode(TEXT, ratio=ratio)


def entry(data: bytes, name: str, value: Any) -> bytes:
    """The packet with other contents, and a right checksum and mark."""
    held = packet.from_bytes(data, key=None)
    latent = replace(held.latent, **{name: value})
    return packet.to_bytes(latent, codec_name="float32", mark=held.fingerprint)


def raw_slots(data: bytes, value: float, places: slice) -> bytes:
    """The packet, as float32, with numbers that no sender writes."""
    whole = bytearray(packet.to_bytes(packet.from_bytes(data).latent, mark=data[16:24]))
    numbers = np.frombuffer(whole, "<f4", offset=len(whole) - 32 * 256 * 4).copy()
    numbers[places] = value
    return sealed(bytes(whole[: len(whole) - numbers.nbytes]) + numbers.tobytes())


FORGED: dict[str, tuple[Callable[[bytes, np.ndarray], bytes], str]] = {
    "codec byte": (lambda m, x: changed(m, 5, lambda b: 2), "the checksum differs"),
    "one slot": (lambda m, x: of_slots(m, x[:, :1]), "1 slots, where this bridge sends 32"),
    "no slot": (lambda m, x: of_slots(m, x[:, :0]), "0 slots, where this bridge sends 32"),
    "256 slots": (lambda m, x: of_slots(m, np.repeat(x, 8, 1)), "256 slots, where this bridge"),
    "width 255": (lambda m, x: of_slots(m, x[..., :255]), "slots of width 255, where those of"),
    "width 1": (lambda m, x: of_slots(m, x[..., :1]), "slots of width 1, where those of this"),
    "width 512": (lambda m, x: of_slots(m, np.tile(x, 2)), "slots of width 512, where those of"),
    "all NaN": (lambda m, x: raw_slots(m, np.nan, slice(None)), "a slot is not finite"),
    "one NaN": (lambda m, x: raw_slots(m, np.nan, slice(7, 8)), "a slot is not finite"),
    "one inf": (lambda m, x: raw_slots(m, np.inf, slice(7, 8)), "a slot is not finite"),
    "times 1e30": (lambda m, x: entry(m, "slots", x * 1e30), "where those of this bridge are 65"),
    "mask": (lambda m, x: entry(m, "mask", np.zeros((1, 32), bool)), "0 of its 32 slots are us"),
    "hole": (lambda m, x: entry(m, "mask", np.arange(32)[None] != 3), "31 of its 32 slots are u"),
    "span 1e30": (lambda m, x: entry(m, "span", np.float32([1e30])), "a text of 1e.30 source to"),
    "span -1": (lambda m, x: entry(m, "span", np.float32([-1])), "a text of -1 source tokens"),
    "span 1025": (lambda m, x: entry(m, "span", np.float32([1025])), "reads 0 to 1,024"),
    "span nan": (
        lambda m, x: sealed(m[:24] + struct.pack("<f", np.nan) + m[28:]),
        "the span is not finite",
    ),
    "no span": (lambda m, x: entry(m, "span", None), "no length of the text, where this bridge"),
    "owner 7": (lambda m, x: entry(m, "owner", (7,) * 32), "the owners of its slots"),
    "owner -32768": (lambda m, x: entry(m, "owner", (-32768,) * 32), "the owners of its slots"),
    "no mark": (lambda m, x: packet.to_bytes(packet.from_bytes(m).latent), "of another bridge"),
    "a key": (
        lambda m, x: packet.to_bytes(packet.from_bytes(m).latent, mark=m[16:24], key=KEY),
        "made with a key; load the bridge with the same one",
    ),
}


def of_slots(data: bytes, slots: np.ndarray) -> bytes:
    held = packet.from_bytes(data)
    latent = replace(held.latent, slots=slots, mask=np.ones(slots.shape[:2], bool))  # type: ignore[arg-type]
    return packet.to_bytes(latent, mark=held.fingerprint)


@pytest.mark.parametrize("name", FORGED)
def test_a_packet_that_the_bridge_does_not_send_is_refused(
    name: str, wire: Bridge, sent: bytes
) -> None:
    make, words = FORGED[name]
    with pytest.raises(UserError, match=f"wire: .*{words}") as caught:
        wire.answer(make(sent, slots_of(sent)), "Who?")
    assert "\n" not in str(caught.value)


def test_a_gate_is_before_everything_that_reads_a_message(
    wire: Bridge, sent: bytes, tmp_path: Path
) -> None:
    question, mark = "How many cats does Ben Korim keep?", wire.trained.mark
    wide = dict.fromkeys(MEASURES, 1e9) | {"smallest_norm": 0.0}
    open_to_all = Gate(np.zeros(256), np.eye(256), wide, mark)
    assert replace(wire, gate=open_to_all).answer(sent, question) == wire.answer(sent, question)
    strict = replace(wire, gate=replace(open_to_all, bounds=wide | {"largest_norm": 1e-3}))
    said = r"gate: the largest norm of a slot is .* at most 0\.001"
    for use in (
        lambda: strict.answer(sent, question),
        lambda: strict.answer([sent, sent], question),
        lambda: strict.score(sent, question, ["31"]),
        lambda: strict.talk(sent),
        lambda: list(strict.answer_stream(sent, question)),
        lambda: strict.answer(Message.of([Message.from_bytes(sent)] * 2), question),
    ):
        with pytest.raises(UserError, match=said):
            use()
    open_to_all.save(tmp_path / "gate.npz")
    assert Bridge.load(FACTS, role="sender", gate=tmp_path / "gate.npz").gate is not None
    with pytest.raises(UserError, match="no gate there"):
        Bridge.load(FACTS, role="sender", gate=tmp_path / "nowhere.npz")


def test_with_a_key_both_ends_need_it(wire: Bridge, sent: bytes) -> None:
    ours, theirs = replace(wire, key=KEY), replace(wire, key=KEY[::-1])
    tagged = ours.encode(TEXT)
    assert len(tagged) == len(sent) + 16
    assert (
        slots_of(sent).tobytes()
        == np.asarray(packet.from_bytes(tagged, key=KEY).latent.slots).tobytes()
    )
    question = "How many cats does Ben Korim keep?"
    assert ours.answer(tagged, question) == wire.answer(sent, question)
    with pytest.raises(UserError, match="made without a key, and this bridge asks for one"):
        ours.answer(sent, "Who?")
    with pytest.raises(UserError, match="made with another key, or changed by someone"):
        theirs.answer(tagged, "Who?")


def test_longer_than_in_training_is_said(wire: Bridge, sent: bytes) -> None:
    assert wire.longest == {"source": 120, "mistral/ask": 40}
    rows = [(Example("", "", "word " * 130, "", ("",)),)]
    with pytest.warns(UserWarning, match=r"encode: the text has \d+ tokens, .* of up to 120"):
        wire._sizes(rows, False)
    with pytest.warns(UserWarning, match="answer: the question has .* questions of up to 40"):
        wire.answer(sent, "word " * 30)


def test_each_end_needs_its_own_models_alone(tmp_path: Path, wire: Bridge, sent: bytes) -> None:
    ends = {"sender": ("tiny-llama/",), "receiver": ("tiny-mistral/", "tiny-llama/config.json")}
    for role, needed in ends.items():
        place = tmp_path / role / "zoo"
        shutil.copytree(FACTS, place / "bridges/facts")
        for path in needed:
            (place / path).parent.mkdir(parents=True, exist_ok=True)
            (place / path.rstrip("/")).symlink_to(ROOT / "zoo" / path)
    bridges = {}
    for i, role in enumerate(ends):  # each on a device of its own
        with at(tmp_path / role):
            bridges[role] = Bridge.load("zoo/bridges/facts", role=role, devices=[i])  # type: ignore[arg-type]
    sender, receiver = bridges.values()
    for i, end in enumerate((sender.pipeline.frozen.sender, receiver.pipeline.frozen.receivers)):
        assert {d for x in jax.tree.leaves(end) for d in x.devices()} == {jax.devices()[i]}
    assert sender.pipeline.frozen.receivers == {}
    assert receiver.pipeline.frozen.sender is None
    message = sender.encode(TEXT)
    assert message == sent
    question = "How many cats does Ben Korim keep?"
    assert receiver.answer(message, question) == wire.answer(sent, question)
    with pytest.raises(UserError, match="answer: this bridge was loaded with role='sender'"):
        sender.answer(message, "Who?")
    with pytest.raises(UserError, match="encode: this bridge was loaded with role='receiver'"):
        receiver.encode(TEXT)


@pytest.mark.parametrize("devices", [[], [99], [0, 0], ["0"]])
def test_devices_that_are_not_there(devices: Any) -> None:
    with pytest.raises(UserError, match="devices: expected different numbers from 0 to 7"):
        Bridge.load(FACTS, devices=devices)


def test_where_a_model_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "a/runs/x"
    far, near = tmp_path / "models/m", tmp_path / "a/models/m"
    for path in (run, far):
        path.mkdir(parents=True)
    monkeypatch.chdir(run)
    assert found("models/m", run) == str(far)
    near.mkdir(parents=True)
    assert found("models/m", run) == str(near)  # the nearest above
    monkeypatch.chdir(tmp_path)
    assert found("models/m", run) == "models/m"  # from here first
    assert found("owner/name", run) == "owner/name"
    assert found("/models/m", run) == "/models/m"


def test_it_says_what_it_is_in_a_line(wire: Bridge) -> None:
    assert repr(wire) == (
        "<lw_jax.Bridge to mistral: 32 slots of 256 (float16), 6,869,520 parameters, stage facts, "
        "step 1600; on cpu>"
    )
    assert KEY.decode() not in repr(replace(wire, key=KEY))
    assert lw_jax.__version__
    assert (Path(lw_jax.__file__).parent / "py.typed").is_file()


@pytest.mark.slow
def test_the_same_bridge_says_it_in_fewer_bytes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wire = Bridge.load(ROOT / "zoo/bridges/facts_any_ratio")
    rows = FactsRows("eval", 0, 6, 6)
    examples: Sequence[Example] = [rows[i][0] for i in range(6)]
    few = [wire.encode(example.context, ratio=6) for example in examples]
    assert len(few[0]) < len(wire.encode(examples[0].context)) / 3
    said = [wire.answer(sent, e.question) for sent, e in zip(few, examples, strict=True)]
    assert sum(answer in e.answers for answer, e in zip(said, examples, strict=True)) >= 5, said
    with pytest.raises(UserError, match=r"ratio: source tokens a slot: expected 1.5 to 12; got 1"):
        wire.encode(TEXT, ratio=1)
    with pytest.raises(UserError, match="81 slots, where this bridge sends 1 to 80"):
        wire.answer(of_slots(few[0], np.ones((1, 81, 256), np.float32)), "Who?")


def test_loading_writes_nothing(tmp_path, wire):
    """Not even where the receivers' loudness is missing and has to be measured."""
    for name in ("bridge.json", "bridge.safetensors"):
        (tmp_path / name).symlink_to(FACTS / name)
    with at(ROOT):
        loaded = Bridge.load(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"bridge.json", "bridge.safetensors"}
    pair = (one.pipeline.bridge.dims.receivers["mistral"] for one in (loaded, wire))
    measured, held = pair
    assert measured.embed_rms == pytest.approx(held.embed_rms, rel=1e-4)
    assert measured.key_rms == pytest.approx(held.key_rms, rel=1e-4)


def test_neither_run_nor_bridge(tmp_path):
    with pytest.raises(UserError, match="no run directory"):
        Bridge.load(tmp_path)


@pytest.mark.slow
def test_readmes_own_example_answers_what_it_says(monkeypatch):
    monkeypatch.chdir(ROOT)
    (code,) = re.findall(r"```python\n(from lw_jax import Bridge\n.*?)```", README, re.DOTALL)
    asked = re.findall(r"^(wire\.answer\(.*\))  # (.+)$", code, re.MULTILINE)
    assert len(asked) == code.count("wire.answer(") >= 2
    names: dict[str, object] = {}
    exec(code, names)
    assert {call: eval(call, names) for call, _ in asked} == dict(asked)
