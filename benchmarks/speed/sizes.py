"""What is measured, at which sizes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHAPES = Path(__file__).parents[2] / "configs" / "shapes"


@dataclass(frozen=True)
class Sizes:
    """Sizes of a preset.

    Attributes:
        sender, receiver: their config.json.
        dtype: of both models.
        tap: layers of the sender that are run.
        rows: of a training step.
        source, ask, answer: tokens.
        slots: of the latent.
        width, heads, depth: of the bridge's compressor.
        decoded: batch sizes of decoding.
        prompt, new: tokens of a prompt and of what is decoded.
        texts: tokens of the texts that are handed over.
        longest: tokens of the longest text of a sample of uneven ones; what is longer is left out.
        warm, times: calls before measuring, and measured.
    """

    sender: dict[str, Any]
    receiver: dict[str, Any]
    dtype: str
    tap: int
    rows: int
    source: int
    ask: int
    answer: int
    slots: int
    width: int
    heads: int
    depth: int
    decoded: tuple[int, ...]
    prompt: int
    new: int
    texts: tuple[int, ...]
    longest: int
    warm: int
    times: int


def run_of(s: Sizes, how: dict[str, str]) -> dict[str, Any]:
    """The run that is measured, but for its models: its bridge, objectives and training. With
    `questions` so many are asked about each text, as many in all as a step has rows; `shared`: a
    teacher reads the text once for all of them."""
    compressor = {"slots": s.slots, "width": s.width, "heads": s.heads, "depth": s.depth}
    questions = int(how.get("questions", 1))
    train = {
        "steps": 1000,
        "batch_size": max(1, s.rows // questions),
        "questions": questions,
        "shared_text": "shared" in how,
        "remat": how.get("remat", "full"),
        "optimiser": {"name": "adamw", "lr": 1e-4},
    }
    return {
        "bridge": {
            "latent_dim": s.width,
            "source": {"hidden_states": {"layers": [s.tap]}},
            "compressor": {"perceiver": compressor},
            "reader": {"soft_tokens": {}},
        },
        "objectives": {"answer_ce": {}, "kd": {}},
        "stages": {"fit": {"train": train}},
    }


def _tiny(kind: str) -> dict[str, Any]:
    return {
        "model_type": kind,
        "vocab_size": 128,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def sizes(preset: str) -> Sizes:
    """The sizes of `smoke` (a minute on a CPU), `h200` (one GPU of 80 GB or more), or `real` (the
    models of configs/real)."""
    if preset == "smoke":
        return Sizes(
            sender=_tiny("llama"),
            receiver=_tiny("mistral"),
            dtype="float32",
            tap=1,
            rows=2,
            source=16,
            ask=4,
            answer=4,
            slots=4,
            width=32,
            heads=2,
            depth=1,
            decoded=(1,),
            prompt=8,
            new=8,
            texts=(16,),
            longest=128,
            warm=1,
            times=3,
        )
    if preset == "real":
        sender, receiver = _shapes("smollm2-135m-instruct.gguf", "qwen2.5-coder-0.5b-instruct.gguf")
        return Sizes(
            sender=sender,
            receiver=receiver,
            dtype="bfloat16",
            tap=24,
            rows=64,
            source=160,
            ask=24,
            answer=8,
            slots=40,
            width=640,
            heads=10,
            depth=3,
            decoded=(1, 16),
            prompt=192,
            new=32,
            texts=(160,),
            longest=320,
            warm=3,
            times=20,
        )
    sender, receiver = _shapes("llama-3.1-8b-instruct", "mistral-7b-instruct-v0.3")
    return Sizes(
        sender=sender,
        receiver=receiver,
        dtype="bfloat16",
        tap=16,
        rows=16,
        source=512,
        ask=16,
        answer=64,
        slots=128,
        width=1024,
        heads=16,
        depth=2,
        decoded=(1, 16),
        prompt=512,
        new=128,
        texts=(512, 2048, 8192),
        longest=512,
        warm=3,
        times=12,
    )


def _shapes(*names: str) -> list[dict[str, Any]]:
    return [json.loads((SHAPES / f"{name}.json").read_text()) for name in names]
