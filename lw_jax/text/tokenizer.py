"""A model's tokenizer as a layout sees it, with the special ids that the layout needs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, NamedTuple

from tokenizers import Tokenizer as Backend

from lw_jax.text.align import Span

Pieces = Sequence[str | int]
"""A text with control tokens in it: strings are text, whatever they spell; integers are ids."""


class Encoded(NamedTuple):
    """A text in tokens.

    Attributes:
        ids: the tokens.
        spans: the characters of each, spaces included; a control token has none.
    """

    ids: list[int]
    spans: list[Span]


@dataclass(frozen=True)
class Tokenizer:
    """The tokenizer of one model, with its special ids and literals.

    A segment of a sequence is tokenised as it stands in the sequence: SentencePiece-like tokenizers
    put a space before every text that they are given, which belongs before the first text alone.

    Attributes:
        name: the model's name, for error messages.
        backend: tokenizer that adds no special tokens.
        bos_id: BOS token; None: the family has none.
        eos_id: token that ends an answer.
        chat: what the chat template puts before and after the message; None: no template.
        limit: the most tokens of a text; None: as `layout.max_tokens` says.
        tail: ids that end a text that is read as a source (an encoder's [SEP]).
        positions: tokens that the model can read; None: no limit.
    """

    name: str
    backend: Backend
    bos_id: int | None
    eos_id: int
    chat: tuple[str, str] | None = None
    limit: int | None = None
    tail: tuple[int, ...] = ()
    positions: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        """The fields alone: what is derived from them is made again."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def encode(self, text: str | Pieces, start: bool = False) -> list[int]:
        """Token ids of a text; a control token that is spelled out in it is text.

        Args:
            text: the text; or text and control ids, in order.
            start: whether the text begins a sequence (else it goes on from what stands before it).
        """
        return self.encode_all([text], start)[0]

    def encode_all(
        self, texts: Sequence[str] | Sequence[Pieces], start: bool = False
    ) -> list[list[int]]:
        """Token ids of several texts; see `encode`."""
        return [one.ids for one in self._encoded(texts, start, located=False)]

    def locate_all(
        self, texts: Sequence[str] | Sequence[Pieces], start: bool = False
    ) -> list[Encoded]:
        """Token ids as `encode_all` gives them, with the characters that each stands for.

        Args:
            texts: texts; of one with control ids in it, characters are counted without them.
            start: see `encode`.
        """
        return self._encoded(texts, start, located=True)

    def _encoded(
        self, texts: Sequence[str] | Sequence[Pieces], start: bool, located: bool
    ) -> list[Encoded]:
        """Tokens of several texts; `spans` are empty unless they are asked for."""
        pieces = [(text,) if isinstance(text, str) else _joined(text) for text in texts]
        flat = [one for row in pieces for one in row if isinstance(one, str)]
        parts = dict(zip(flat, self._apart(flat, self._inner, located), strict=True))
        opens = start and self._inner is not self.backend
        found = []
        for row in pieces:
            whole, at = Encoded([], []), 0
            for n, one in enumerate(row):
                if isinstance(one, str):
                    part = parts[one]
                    if opens and one and not n:
                        part = self._at_start(one, part, located)
                    _append(whole, part, at)
                    at += len(one)
                else:
                    _append(whole, Encoded([one], [(0, 0)] if located else []), at)
            found.append(whole)
        return found

    def literal(self, text: str) -> tuple[str | int, ...]:
        """A chat template's text with its control tokens as ids."""
        if not text:
            return ()
        if not any(content in text for content in self._control.values()):
            return (text,)
        self.backend.encode_special_tokens = False
        try:
            found = self.backend.encode(text, add_special_tokens=False)
        finally:
            self.backend.encode_special_tokens = True
        pieces: list[str | int] = []
        last = 0
        for token, (begin, end) in zip(found.ids, found.offsets, strict=True):
            if token in self._control and self._control[token] in text[begin:end]:
                pieces += [text[last:begin], token]
                last = end
        return _joined([*pieces, text[last:]])

    def spelled(self, pieces: Pieces) -> str:
        """The text of pieces, control tokens spelled out."""
        return "".join(
            one if isinstance(one, str) else self.backend.decode([one], skip_special_tokens=False)
            for one in pieces
        )

    @cached_property
    def _control(self) -> dict[int, str]:
        """The control tokens, which no text may give."""
        added = self.backend.get_added_tokens_decoder()
        found = {i: token.content for i, token in added.items() if token.special}
        for token in (self.bos_id, self.eos_id):
            content = None if token is None or token < 0 else self.backend.id_to_token(token)
            if token is not None and content:
                found[token] = content
        return found

    @cached_property
    def _inner(self) -> Backend:
        """The tokenizer of texts that do not begin a sequence: without a space of its own."""
        parts = {"normalizer": self.backend.normalizer, "pre_tokenizer": self.backend.pre_tokenizer}
        bare = {}
        for key, part in parts.items():
            try:
                node = None if part is None else json.loads(part.__getstate__())
            except Exception:
                continue
            if (changed := _without_space(node)) != node:
                bare[key] = changed
        if not bare:
            return self.backend
        return Backend.from_str(json.dumps(json.loads(self.backend.to_str()) | bare))

    @cached_property
    def _untrimmed(self) -> tuple[Backend, Backend]:
        """The tokenizer, and that of texts that do not begin a sequence, whose tokens' spans hold
        their spaces too. (A post-processor takes them off; it changes no id here.)
        """
        own = _without_post_processor(self.backend)
        inner = own if self._inner is self.backend else _without_post_processor(self._inner)
        return own, inner

    def _at_start(self, text: str, bare: Encoded, located: bool) -> Encoded:
        """Tokens of a text that begins a sequence: with the tokenizer's own space where decoding
        takes it off again, else without.
        """
        (own,) = self._apart([text], self.backend, located)
        back = [self.backend.decode(one.ids, skip_special_tokens=False) for one in (own, bare)]
        return bare if back[0] != text and back[1] == text else own

    def _apart(self, texts: Sequence[str], backend: Backend, located: bool) -> list[Encoded]:
        """Tokens of texts, each alone; none is a control token."""
        used = backend
        if located:
            used = self._untrimmed[0 if backend is self.backend else 1]
        if not used.encode_special_tokens:  # not kept when pickled
            used.encode_special_tokens = True
        found = [
            Encoded(e.ids, e.offsets if located else [])
            for e in used.encode_batch(list(texts), add_special_tokens=False)
        ]
        for n, (text, whole) in enumerate(zip(texts, found, strict=True)):
            held = self._control.keys() & set(whole.ids)
            spelled = {self._control[i] for i in held if self._control[i] in text}
            cut = next((text.index(one) + 1 for one in sorted(spelled) if len(one) > 1), None)
            if cut is not None:  # a vocabulary may hold the literal as a piece of text
                (first,) = self._apart([text[:cut]], backend, located)
                (rest,) = self._apart([text[cut:]], self._inner, located)
                found[n] = Encoded(list(first.ids), list(first.spans))
                _append(found[n], rest, cut)
        return found


def _append(whole: Encoded, part: Encoded, at: int) -> None:
    """Adds tokens of the text that begins with the character `at`."""
    whole.ids.extend(part.ids)
    whole.spans.extend((first + at, stop + at) for first, stop in part.spans)


def _without_post_processor(backend: Backend) -> Backend:
    if backend.post_processor is None:
        return backend
    return Backend.from_str(json.dumps(json.loads(backend.to_str()) | {"post_processor": None}))


def _joined(pieces: Pieces) -> tuple[str | int, ...]:
    """The same with neighbouring texts as one, and no empty ones."""
    found: list[str | int] = []
    for one in pieces:
        if isinstance(one, str) and found and isinstance(found[-1], str):
            found[-1] += one
        elif one != "":
            found.append(one)
    return tuple(found)


def _without_space(node: Any) -> Any:
    """A normalizer or pre-tokenizer (as JSON) that puts no space before a text."""
    if not isinstance(node, dict):
        return node
    kind = node.get("type")
    if kind == "Sequence":
        inside = {k: v for k, v in node.items() if isinstance(v, list)}
        bare = {k: [_without_space(one) for one in v] for k, v in inside.items()}
        return node | {k: [one for one in v if one is not None] for k, v in bare.items()}
    if kind == "Prepend":
        return None
    if kind == "Metaspace" and node.get("prepend_scheme", "always") != "never":
        return node | {"prepend_scheme": "never"}
    if kind == "ByteLevel" and node.get("add_prefix_space"):
        return node | {"add_prefix_space": False}
    return node
