"""The runs of docs/results/latentwire.md on two real models (`configs/real/cells`).

`CELLS` change what reads the text or how the receiver is given it; `FAILED` are settings that
failed the earlier system, one change each to the first cell. Steps, texts and order are the same in
all of them. `python -m benchmarks.latentwire --models MODELS --data DATA` runs them.
"""

from __future__ import annotations

from pathlib import Path

REAL = Path("configs/real")
MODELS = ("smollm2-135m-instruct.gguf", "qwen2.5-coder-0.5b-instruct.gguf")
"""The sender and the receiver in a folder of models."""
TRAIN = "--stages.fit.train"
CELLS = {
    "hidden_x_soft": None,
    "st_query_x_soft": "st_query",
    "bytes_x_soft": "bytes",
    "hidden_x_adapters": "adapters",
    "hidden_x_prefix": "prefix",
    "interlingua": "interlingua",
}
"""Files of `configs/real/cells`: what reads the text, and how the receiver is given it."""
WITH_ENCODER = ("st_query_x_soft", "interlingua")
SHORTER = [f"{TRAIN}.steps=240", f"{TRAIN}.eval_every=60", f"{TRAIN}.save_every=240"]
SHORTER += ["--stages.answers.evaluate.methods=[text, latent]"]
FAILED = {
    "wire": [],
    "first_token_12": ["--objectives.first_token_ce={weight: 12.0, auto_scale: 4.0}"],
    "k_token": ["--objectives.k_token_ce={weight: 0.5, tokens: 4}"],
    "mse_anchor": ["--objectives.embedding_anchor={weight: 1.0, distance: mse, to: answer}"],
    "tanh": ["--bridge.reader.soft_tokens.conditioning=tanh"],
    "rms_33": ["--bridge.reader.soft_tokens.init_scale=0.57"],
    "latent_keep_1": [f"{TRAIN}.latent_keep={{start: 0.5, end: 1.0, ramp: 240}}"],
}
"""Settings that failed the earlier system, one change each to `wire`, which is `hidden_x_soft` in
240 steps; its soft tokens are 64 times as loud as the receiver's embeddings, so a loudness of 33 is
half of that. All are looked at every 60 steps, so that it is known when an alarm fires."""
TUNED = {"tuned_text": [], "tuned_half": ["budget_first"]}
"""The receiver tuned to answer from the text, and from half of it: rivals."""


def flags_of(name: str, models: Path, data: Path, encoder: str) -> tuple[str, ...]:
    """The flags of a run.

    Args:
        name: of `CELLS`, `FAILED` or `TUNED`.
        models: folder with `MODELS`.
        data: folder with `train.json`, `articles.json` (SQuAD's form) and `prose.jsonl`.
        encoder: directory of all-MiniLM-L6-v2.
    """
    sender, receiver = (models / file for file in MODELS)
    squad = (("train", data / "train.json"), ("eval", data / "articles.json"))
    said = [f"--receivers.qwen.path={receiver}"]
    said += [f"--data.squad.{part}={file}" for part, file in squad]
    if name in TUNED:
        rivals = ["prompt_tuning_text", *TUNED[name]]
        files = ["questions.yaml", *(f"rivals/{rival}.yaml" for rival in rivals)]
        half = ["--layout.text_budget.ratio=2"] if TUNED[name] else []
        said += [f"--sender.path={sender}", *half]
        return (*configs(*files, "cells/tuned.yaml"), *said)
    files = ["mixed.yaml", "cells/short.yaml"]
    if (own := CELLS.get(name)) is not None:
        files.append(f"cells/{own}.yaml")
    tasks = f"{TRAIN}.tasks"
    said += [f"{tasks}.questions.data.squad.{part}={file}" for part, file in squad]
    prose = data / "prose.jsonl"
    said += [f"{tasks}.{task}.data.jsonl.train={prose}" for task in ("sentences", "several")]
    if name in WITH_ENCODER:
        said.append(f"--sender.path={encoder}")
    elif name != "bytes_x_soft":
        said.append(f"--sender.path={sender}")
    if name == "interlingua":
        said.append(f"--receivers.smollm.path={sender}")
    failed = [*SHORTER, *FAILED[name]] if name in FAILED else []
    return (*configs(*files), *said, *failed)


def configs(*files: str) -> list[str]:
    """The flags of files of `configs/real`, in the order in which they are merged."""
    return [part for file in files for part in ("--config", str(REAL / file))]
