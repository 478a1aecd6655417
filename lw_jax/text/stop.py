"""Where an answer ends but for EOS: stop strings, and the tokens that hold one.

A model that was not trained for a task's form of answer goes on after it ("Catholicism\\nThis
question ..."), and would be judged by all it has said (docs/design.md section 8). No jax here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from lw_jax.data.base import DataSet
from lw_jax.data.example import Example
from lw_jax.text.layout import answer_text, target_text
from lw_jax.text.layout_config import LayoutConfig
from lw_jax.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Stop:
    """Stop strings in the tokens of one model. Make one with `stop_of`.

    Attributes:
        strings: an answer ends at the first of them that it holds.
        ids: tokens whose own text holds one: decoding ends there.
        clean: those of them that hold nothing but white space before it, so that what was written
            until then is the whole answer.
    """

    strings: tuple[str, ...] = ()
    ids: tuple[int, ...] = ()
    clean: tuple[int, ...] = ()

    def held(self, text: str) -> bool:
        """Whether a text holds a stop."""
        return any(stop in text for stop in self.strings)

    def cut(self, text: str) -> str:
        """A text up to its first stop; the whole text where there is none."""
        return cut(text, self.strings)

    def sure(self, text: str) -> str:
        """What of a text stays, whatever is written after it: without an end that may begin a stop,
        or a character of more bytes.
        """
        text = text.rstrip("\ufffd")
        begun = (s[:n] for s in self.strings for n in range(1, len(s)) if text.endswith(s[:n]))
        return text[: len(text) - max(map(len, begun), default=0)]

    def text(self, tokenizer: Tokenizer, ids: Sequence[int], length: int, stopped: bool) -> str:
        """What was written as it is shown and scored: up to the stop, without spaces around it.

        Args:
            tokenizer: of the model that wrote.
            ids: tokens that were written.
            length: how many, without the one that ended them.
            stopped: whether that one holds a stop: then what it holds before it counts.
        """
        whole = tokenizer.backend.decode(list(ids[: length + bool(stopped)]))
        if stopped and not self.held(whole):  # a token whose text is not shown, such as <|im_end|>
            whole = tokenizer.backend.decode(list(ids[:length]))
        return self.cut(whole).strip()


NO_STOP = Stop()


def cut(text: str, stops: Sequence[str]) -> str:
    """A text up to the first occurrence of any stop; the whole text where there is none."""
    return text[: min((at for at in map(text.find, stops) if at >= 0), default=len(text))]


@lru_cache(maxsize=16)
def stop_of(tokenizer: Tokenizer, strings: tuple[str, ...]) -> Stop:
    """Stop strings, and the tokens of a vocabulary whose text holds one of them."""
    if not strings:
        return NO_STOP
    ids = sorted(tokenizer.backend.get_vocab(with_added_tokens=True).values())
    texts = tokenizer.backend.decode_batch([[i] for i in ids], skip_special_tokens=False)
    holding = [(i, text) for i, text in zip(ids, texts, strict=True) if cut(text, strings) != text]
    clean = (i for i, text in holding if not cut(text, strings).strip())
    return Stop(strings, tuple(i for i, _ in holding), tuple(clean))


def stop_strings(
    given: Sequence[str] | None, data: DataSet, layout: LayoutConfig
) -> tuple[str, ...]:
    """Where answers end: as the config says, else as the task does.

    Args:
        given: `decode.stop` of the config; None: by the task.
        data: says where its answers end.
        layout: a receiver that writes more than the answer (`target`) has no stop of the task.
    """
    if given is not None:
        return tuple(given)
    return data.stop if layout.target == "answer" else ()


@dataclass(frozen=True)
class Unwritable:
    """Gold answers that decoding cannot write.

    Attributes:
        long: rows of which every accepted answer has more tokens than may be written.
        stopped: other rows of which every accepted answer holds a stop.
        rows: rows that were looked at.
        tokens: of the longest answer, where of every row the shortest that is accepted counts.
    """

    long: int = 0
    stopped: int = 0
    rows: int = 0
    tokens: int = 0

    @property
    def count(self) -> int:
        """Rows in all."""
        return self.long + self.stopped

    def words(self, receiver: str, max_new: int, stops: Sequence[str]) -> str:
        """In words; "" where every answer can be written."""
        parts = []
        if self.long:
            parts.append(
                f"{self.long} of {self.rows} gold answers are longer than decode.max_new_tokens "
                f"{max_new} (up to {self.tokens} tokens of {receiver}); raise it"
            )
        if self.stopped:
            parts.append(
                f"{self.stopped} of {self.rows} gold answers hold a stop of "
                f"{', '.join(map(repr, stops))}; set decode.stop (with [] none)"
            )
        return f"{'; '.join(parts)}: no method can write these" if parts else ""


def unwritable(
    layout: LayoutConfig,
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    max_new: int,
    stops: Sequence[str],
) -> Unwritable:
    """Which gold answers decoding cannot write, in the tokens of one receiver.

    Args:
        layout: says what the receiver has to write.
        tokenizer: the receiver's.
        examples: the rows.
        max_new: tokens written at most.
        stops: where answers end.
    """
    long = stopped = most = 0
    for example in examples:
        texts = [target_text(layout, one) for one in _each_answer(example)]
        least = min(len(ids) for ids in tokenizer.encode_all([answer_text(t) for t in texts]))
        most = max(most, least)
        if least > max_new:
            long += 1
        elif all(cut(text, stops) != text for text in texts):
            stopped += 1
    return Unwritable(long, stopped, len(examples), most)


def _each_answer(example: Example) -> list[Example]:
    return [
        Example(example.id, example.context_id, example.context, example.question, (answer,))
        for answer in example.answers or ("",)
    ]
