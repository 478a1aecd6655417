"""The README.md of a small model: how it was made, on what, in what time, and what it can do."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from lw_jax.models.arch import Arch
from lw_jax.pretrain.config import PretrainConfig
from lw_jax.train.diagnostics import read


def minutes(diagnostics: Path, stage: str) -> float:
    """Minutes that the stage's steps took, over all its resumed parts, without evaluation."""
    seconds, before = 0.0, 0
    for entry in read(diagnostics):
        if entry["stage"] == stage and entry["kind"] == "train" and "seconds_per_step" in entry:
            seconds += entry["seconds_per_step"] * (entry["step"] - before)
            before = entry["step"]
    return round(seconds / 60, 2)


def hardware() -> str:
    """Name of the hardware that the process runs on."""
    kinds = [device.device_kind for device in jax.devices()]
    return f"{len(kinds)} x {kinds[0]}, {os.cpu_count()} CPU cores ({platform.machine()})"


def _range(low: float, high: float) -> str:
    """An interval; of one text nothing is known of another."""
    return "–" if math.isnan(low) else f"{low:.3f} to {high:.3f}"


def model_card(
    name: str, cfg: PretrainConfig, arch: Arch, figures: Mapping[str, Any], command: str
) -> str:
    """The card, in Markdown.

    Args:
        name: the model's name.
        cfg: config of the stage.
        arch: the model's architecture.
        figures: figures of the final test, and of the training.
        command: the command line that trained it.
    """
    rows = [
        ("facts, 6 sentences, new words: exact match from text", figures["facts"], "em"),
        ("GSM8K questions read back: numbers and names kept", figures.get("read_back"), "recall"),
        ("facts: bits per byte", figures["bits_per_byte"]["facts"], "bits"),
        ("GSM8K questions: bits per byte", figures["bits_per_byte"].get("gsm8k"), "bits"),
    ]
    table = "\n".join(
        f"| {what} | {f[key]:.3f} | {_range(*f['ci'])} | {f['n']} |"
        for what, f, key in rows
        if f is not None
    )
    return f"""---
license: apache-2.0
library_name: transformers
---
# {name}

A small {arch.family} decoder ({figures["parameters"]:,} parameters) that reads short texts: it is
asked about facts that it has never seen, or repeats a passage. Made by lw_jax's `pretrain` stage to
be a frozen sender or receiver in tests and examples; it knows nothing of the world.

| | |
| --- | --- |
| shape | width {arch.width}, {arch.layers} layers, {arch.heads} heads of {arch.head_dim} \
({arch.kv_heads} key/value heads), MLP {arch.mlp_width}, RoPE base {arch.rope.theta:g} |
| tokenizer | byte-level BPE, {arch.vocab_size} tokens\
{", single digits" if cfg.tokenizer.single_digits else ""} |
| trained on | generated facts {cfg.facts:.0%}, their passages repeated {cfg.facts_copy:.0%}, \
GSM8K training questions (names and numbers changed) repeated {cfg.gsm8k_copy:.0%} and solved \
{cfg.gsm8k_solve:.0%}; longer than {cfg.max_tokens} tokens left out ({figures["left_out"]:.1%}) |
| training | {cfg.steps} steps of {cfg.batch_size} texts, {cfg.optimiser.name} {cfg.optimiser.lr} |
| hardware | {hardware()} |
| time | {figures["minutes"]:.1f} minutes |

```
{command}
```

| measured on the files here, greedy | | 95 % interval | n |
| --- | --- | --- | --- |
{table}

A context is followed by `\\nQuestion: ...\\nAnswer:`, or by `\\nRepeat:`; it begins with
`Context:` after the BOS, if the tokenizer has one.
"""
