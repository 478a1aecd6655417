"""A model's tokenizer as a layout sees it, with the special ids that the layout needs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer as Backend

Pieces = Sequence[str | int]
"""A text with control tokens in it: strings are text, whatever they spell; integers are ids."""


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
        pieces = [(text,) if isinstance(text, str) else _joined(text) for text in texts]
        flat = [one for row in pieces for one in row if isinstance(one, str)]
        ids = dict(zip(flat, self._apart(flat, self._inner), strict=True))
        found = [
            [i for one in row for i in (ids[one] if isinstance(one, str) else [one])]
            for row in pieces
        ]
        if start and self._inner is not self.backend:
            for n, row in enumerate(pieces):
                if row and isinstance(row[0], str) and row[0]:
                    found[n][: len(ids[row[0]])] = self._at_start(row[0], ids[row[0]])
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

    def _at_start(self, text: str, bare: list[int]) -> list[int]:
        """Ids of a text that begins a sequence: with the tokenizer's own space where decoding takes
        it off again, else without.
        """
        (own,) = self._apart([text], self.backend)
        back = [self.backend.decode(ids, skip_special_tokens=False) for ids in (own, bare)]
        return bare if back[0] != text and back[1] == text else own

    def _apart(self, texts: Sequence[str], backend: Backend) -> list[list[int]]:
        """Ids of texts, each alone; none is a control token's."""
        if not backend.encode_special_tokens:  # not kept when pickled
            backend.encode_special_tokens = True
        found = [e.ids for e in backend.encode_batch(list(texts), add_special_tokens=False)]
        for n, (text, ids) in enumerate(zip(texts, found, strict=True)):
            held = self._control.keys() & set(ids)
            spelled = {self._control[i] for i in held if self._control[i] in text}
            cut = next((text.index(one) + 1 for one in sorted(spelled) if len(one) > 1), None)
            if cut is not None:  # a vocabulary may hold the literal as a piece of text
                (first,) = self._apart([text[:cut]], backend)
                (rest,) = self._apart([text[cut:]], self._inner)
                found[n] = first + rest
        return found


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
