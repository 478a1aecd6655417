"""Fingerprints of frozen models: 32 hex digits that change with whatever changes what they say.

Format 2 covers the architecture, the weight files, the tokenizer, the tokens that begin and end a
sequence, and the chat template. Format 1, which files without a `format` have, covers architecture
and weight files alone. A file of format 1 is compared with the fingerprints of that format.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lw_jax.errors import UserError
from lw_jax.text.tokenizer import Tokenizer

FORMAT = 2

_warned: set[str] = set()


def meaning(tokenizer: Tokenizer, ends: tuple[int, ...], named: Mapping[str, Any]) -> str:
    """A digest of what a model's ids stand for.

    Args:
        tokenizer: the model's tokenizer.
        ends: all tokens that end a sequence.
        named: special tokens and chat template as the model's files name them.
    """
    known = json.loads(tokenizer.backend.to_str())
    model = known["model"]
    if "merges" in model:  # written as pairs or as lines, by version of the library
        model["merges"] = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    parts: dict[str, Any] = {
        "tokens": {key: _stated(known.get(key)) for key in _PARTS},
        "begins": tokenizer.bos_id,
        "ends": [tokenizer.eos_id, *ends],
        "tail": tokenizer.tail,
        "named": dict(named),
    }
    first = tokenizer.backend.id_to_token(0)
    added = [token["content"] for token in known["added_tokens"]]
    if isinstance(model.get("vocab"), dict) and first not in (_USUAL, *added):
        parts["first"] = first
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


_PARTS = ("added_tokens", "normalizer", "pre_tokenizer", "model", "decoder")
"""Parts of a tokenizer that change ids or their text. Truncation and padding are not used, and of
what is put around a text only BOS and EOS are."""


_USUAL = "!"
"""The token of id 0 in vocabularies that begin with bytes, as GPT-2's. (`_stated` leaves out a 0,
and so the token that has it: one that is no added token is said apart. Not this one: so the
fingerprints in use stay.)"""


def _stated(node: Any) -> Any:
    """A JSON tree without what is off or empty: a library's versions write it or leave it out."""
    if isinstance(node, dict):
        return {k: _stated(v) for k, v in node.items() if v not in (None, False, [], {})}
    return [_stated(v) for v in node] if isinstance(node, list) else node


def whole(weights: str, means: str) -> str:
    """The fingerprint of format 2.

    Args:
        weights: the fingerprint of format 1: architecture and weight files.
        means: what `meaning` gives.
    """
    return hashlib.sha256(f"{FORMAT} {weights} {means}".encode()).hexdigest()[:32]


def comparable(
    saved: Mapping[str, Any], now: Mapping[str, str], weights: Mapping[str, str], where: Path | str
) -> Mapping[str, str]:
    """The fingerprints of this run's models, in the format of a file; says so for the old one.

    Args:
        saved: what the file holds, with its `format`; without: format 1.
        now: fingerprints of format 2, by model.
        weights: of format 1.
        where: the run or bridge that the file belongs to; it is named once.

    Raises:
        UserError: the file is of a format that this version does not know.
    """
    kind = saved.get("format", 1)
    if kind == FORMAT:
        return now
    if kind != 1:
        raise UserError(
            f"{where}: fingerprints of format {kind!r}; this version knows 1 and {FORMAT}"
        )
    place = str(Path(where).absolute())
    if place not in _warned:
        _warned.add(place)
        print(
            f"warning: {where}: fingerprints of format 1, which do not cover the tokenizers and "
            "chat templates; only weights and architectures are compared"
        )
    return weights


def as_saved(saved: Mapping[str, Any], now: Mapping[str, Any], where: Path | str) -> Any:
    """What a run would write of itself, in the format of a file; see `comparable`.

    Args:
        saved: what the file holds: `fingerprints`, with their `format` and `weights`.
        now: the same of this run.
        where: the run that the file belongs to.
    """
    if "weights" not in now:
        return now
    prints = comparable(saved, now["fingerprints"], now["weights"], where)
    if prints is now["fingerprints"]:
        return now
    rest = {key: value for key, value in now.items() if key not in ("format", "weights")}
    return rest | {"fingerprints": dict(prints)}
