"""Honest compression: what the message costs in the receiver and on the wire.

See docs/design.md section 8.

Sizes are means per text. The text is counted as UTF-8 and as zlib of that, each text alone; the
latent as the bytes that `lw_jax.wire.packet` writes: slots in each codec with scales, mask, span,
header, and the codes of a bridge that has some.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lw_jax.models.arch import Arch
from lw_jax.wire import packet
from lw_jax.wire.codecs import CODECS


@dataclass(frozen=True)
class Adapters:
    """Keys of a message that adapters read in a receiver's layers, besides its columns.

    Attributes:
        keys: in each of those layers, one entry per text.
        layers: how many layers those are.
        entries: over all those layers and the adapters' heads, one entry per text.
    """

    keys: Sequence[int]
    layers: int
    entries: Sequence[int]


def of_texts(
    texts: Sequence[str],
    slots: Sequence[int],
    width: int,
    codec_name: str = "float32",
    levels: tuple[int, ...] = (),
    owners: bool = False,
    sent: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, Any]:
    """Texts against the latents that replace them: characters per slot, bytes, bits a character.

    Args:
        texts: the messages, as the receiver would be given them.
        slots: how many slots of that `width` each text takes.
        codec_name: in which the bridge sends its latents (`sent_as`).
        levels: of a slot's codes, where it sends those.
        owners: whether some slots are one receiver's own, which has to be said.
        sent: by codec the bytes of the packets that were sent; in the others none was, and what it
            would have had is counted.
    """
    characters = _mean(len(t) for t in texts)
    sizes = {
        "utf8": _mean(len(t.encode()) for t in texts),
        "zlib": _mean(len(zlib.compress(t.encode(), 9)) for t in texts),
        **{
            name: _mean(packet.nbytes(m, width, name, owners=owners) for m in slots)
            for name in CODECS
        },
    }
    if levels:
        sizes["codes"] = _mean(
            packet.nbytes(m, len(levels), "codes", levels=levels, owners=owners) for m in slots
        )
    sizes |= {name: _mean(held) for name, held in (sent or {}).items()}
    return {
        "characters": characters,
        "slots": _mean(slots),
        "slot_width": width,
        "sent_as": codec_name,
        "characters_per_slot": _per(characters, _mean(slots)),
        "bytes": sizes,
        "bits_per_character": {name: 8 * size / characters for name, size in sizes.items()},
    }


def of_columns(
    texts: Sequence[str],
    tokens: Sequence[int],
    columns: Sequence[int],
    arch: Arch,
    adapters: Adapters | None = None,
) -> dict[str, Any]:
    """Receiver tokens of the texts against the columns that the message occupies instead.

    Token budgets are matched to `columns`, those by K/V entries to `kv_tokens`, the tokens of text
    that hold as many. `keys` is all that the receiver holds of the
    message: a key, with its value, for every column in every layer, and those that adapters read
    (`adapter_keys` in each of `adapter_layers` layers); `kv_entries` the same over all heads.

    Args:
        texts, tokens, columns: one entry per text.
        arch: the receiver's; a column is one key and one value per layer and key/value head.
        adapters: what is read besides the columns; None: nothing.
    """
    characters, held = _mean(len(t) for t in texts), _mean(columns)
    more = adapters or Adapters([0] * len(texts), 0, [0] * len(texts))
    entries = held * arch.layers * arch.kv_heads + _mean(more.entries)
    return {
        "receiver_tokens": _mean(tokens),
        "columns": held,
        "tokens_per_column": _per(_mean(tokens), held),
        "characters_per_column": _per(characters, held),
        "adapter_keys": _mean(more.keys),
        "adapter_layers": more.layers,
        "keys": held * arch.layers + _mean(more.keys) * more.layers,
        "kv_entries": entries,
        "kv_tokens": entries / (arch.layers * arch.kv_heads),
    }


def _per(total: float, count: float) -> float:
    return total / count if count else float("inf")


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))
