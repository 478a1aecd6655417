"""From which length of text, and for how many questions, a latent is cheaper than reading.

    python -m benchmarks.break_even speed.json                  # of a file of benchmarks.run
    python -m benchmarks.break_even speed.json --questions 1,4

Two ways of asking Q questions about a text of T tokens. Reading: the receiver reads the text and a
question Q times; or, where it keeps keys and values, the text once and Q questions. Latent: the
sender up to its tap and the bridge once, then the receiver as before, with the latent in the text's
place. FLOPs and bytes of keys and values are counted from the models' sizes; times are the medians
of `handoff` in the file: encode E(T), a latent read R, a text read X(T).

    Q times:        a latent is cheaper where E(T) + Q R < Q X(T), so from Q > E(T) / (X(T) - R) on
    kept:           where E(T) + R < X(T), for any Q: the rest, Q - 1 questions, costs both the same
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.speed.sizes import Sizes, sizes
from lw_jax.models.arch import Arch
from lw_jax.models.encoder_arch import arch_from_hf

LONGEST = 2**17
BEFORE = 1
"""Tokens before the message: BOS."""


def forward(arch: Arch, tokens: int, layers: int | None = None, after: int = 0) -> float:
    """FLOPs of a decoder's layers on tokens that see each other and `after` before them; a
    multiply-add is two, attention is causal; norms, RoPE, softmax and embeddings are not counted.

    Args:
        arch: the decoder.
        tokens: that are run.
        layers: that are run; None: all.
        after: tokens before them whose keys and values are there.
    """
    heads = arch.heads * arch.head_dim
    weights = arch.width * (heads + 2 * arch.kv_heads * arch.head_dim + 3 * arch.mlp_width)
    weights += heads * arch.width
    seen = tokens * (after + tokens / 2)
    return (arch.layers if layers is None else layers) * (2 * tokens * weights + 4 * heads * seen)


def first_token(arch: Arch, tokens: int) -> float:
    """FLOPs of reading so many tokens and of the logits after them."""
    return forward(arch, tokens) + 2 * arch.width * arch.vocab_size


def bridge(s: Sizes, tokens: int) -> float:
    """FLOPs of the bridge of `benchmarks.speed`: learned queries that read the source."""
    wide, slots = s.width, s.slots
    block = 4 * tokens * wide**2 + 4 * slots * wide**2 + 4 * slots * tokens * wide  # cross
    block += 8 * slots * wide**2 + 4 * slots**2 * wide + 16 * slots * wide**2  # self, MLP
    ends = 2 * tokens * s.sender["hidden_size"] * wide
    return ends + s.depth * block + 2 * slots * wide * s.receiver["hidden_size"]


def flops(s: Sizes, text: int, questions: int, kept: bool) -> tuple[float, float]:
    """FLOPs to the first token of each answer: by reading, and by a latent.

    Args:
        s: sizes of models, bridge and question.
        text: its tokens.
        questions: about it.
        kept: whether the receiver keeps keys and values of text or latent for all questions.
    """
    sender, receiver = (arch_from_hf(x, None, where="") for x in (s.sender, s.receiver))
    assert isinstance(sender, Arch)
    assert isinstance(receiver, Arch)
    head = 2 * receiver.width * receiver.vocab_size

    def read(message: int) -> float:
        if kept:
            message += BEFORE
            each = forward(receiver, s.ask, after=message) + head
            return forward(receiver, message) + questions * each
        return questions * first_token(receiver, BEFORE + message + s.ask)

    made = forward(sender, text, s.tap) + bridge(s, text)
    return read(text), made + read(s.slots)


def kv_bytes(s: Sizes, tokens: int) -> int:
    """Bytes of the receiver's keys and values of so many tokens, in its dtype."""
    arch = arch_from_hf(s.receiver, None, where="")
    assert isinstance(arch, Arch)
    width = 2 if s.dtype == "bfloat16" else 4
    return 2 * arch.layers * arch.kv_heads * arch.head_dim * width * tokens


def first(cheaper: Callable[[int], bool]) -> int | None:
    """The shortest text, up to `LONGEST` tokens, from which on a latent is cheaper: cheaper for it
    and for all that are 1.2 times as long, and so on; None: there is none."""
    lengths, n = [], LONGEST
    while n >= 1:
        lengths.append(n)
        n = min(n - 1, int(n / 1.2))
    found = None
    for n in lengths:
        if not cheaper(n):
            break
        found = n
    if found is None or found == 1:
        return found
    low = max((n for n in lengths if n < found), default=0)
    while found - low > 1:
        middle = (found + low) // 2
        low, found = (low, middle) if cheaper(middle) else (middle, found)
    return found


def measured(parts: Mapping[str, Any], way: str = "lw_jax") -> dict[int, dict[str, float]]:
    """The times of a hand-off, ms, by tokens of the text: `encode`, `read`, `text`, `wire`."""
    found: dict[int, dict[str, float]] = {}
    for name, row in parts.get("handoff", {}).get(way, {}).items():
        what, _, length = name.rpartition("_")
        if length.isdigit() and "ms" in row:
            found.setdefault(int(length), {})[what] = row["ms"]
    return found


def table(s: Sizes, took: Mapping[int, Mapping[str, float]], asked: list[int]) -> str:
    """The break-even as a page has it."""
    lines = [
        "| questions | keys and values of the message | fewer FLOPs from | at 512 | at 8,192 |"
    ]
    lines.append("|---|---|---|---|---|")
    for questions in asked:
        for kept in (False, True):

            def cheaper(n: int, questions: int = questions, kept: bool = kept) -> bool:
                reading, latent = flops(s, n, questions, kept)
                return latent < reading

            least = first(cheaper)
            at = [_ratio(flops(s, n, questions, kept)) for n in (512, 8192)]
            lines.append(
                f"| {questions} | {'kept' if kept else 'made again'} | "
                f"{'never' if least is None else f'{least:,} tokens'} | {at[0]} | {at[1]} |"
            )
    lines += [
        "",
        "| text | encode | latent read | text read | latent, made now | questions | kept |",
    ]
    lines.append("|---|---|---|---|---|---|---|")
    for length, row in sorted(took.items()):
        gain = row["text"] - row["read"]
        many = "never" if gain <= 0 else f"from {math.floor(row['encode'] / gain) + 1}"
        kept = "cheaper" if row["encode"] + row["read"] < row["text"] else "dearer"
        ms = " | ".join(f"{row[k]:.2f} ms" for k in ("encode", "read", "text", "wire"))
        lines.append(f"| {length:,} tokens | {ms} | {many} | {kept} |")
    one, message = kv_bytes(s, 1), kv_bytes(s, s.slots)
    lines += [
        "",
        f"Keys and values of the receiver take {one / 1e3:.0f} KB a token: a message of {s.slots} "
        f"slots {message / 1e6:.1f} MB for any text, a text of 8,192 tokens "
        f"{kv_bytes(s, 8192) / 1e6:.0f} MB. So a latent takes less from {s.slots + 1} tokens on.",
    ]
    return "\n".join(lines)


def _ratio(both: tuple[float, float]) -> str:
    return f"{both[1] / both[0]:.2f}"


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path, help="JSON file of `benchmarks.run` with its handoff")
    parser.add_argument("--questions", default="1,4,16")
    asked = parser.parse_args()
    found = json.loads(asked.file.read_text())
    questions = [int(n) for n in asked.questions.split(",")]
    print(table(sizes(found["preset"]), measured(found["parts"]), questions))
    return 0


if __name__ == "__main__":
    sys.exit(main())
