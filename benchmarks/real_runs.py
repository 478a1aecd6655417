"""Runs of docs/results/real.md by name: tuned receivers first, then bridges at equal steps.

    python -m benchmarks.real_runs --data FOLDER --models FOLDER [--steps 2200] [--at_once 1]
        [--seconds 3600] [--only PART ...] [--recorded docs/records]

The data folder has `train.json`, `articles.json` and `prose.jsonl`, which
`benchmarks/real/split.py` makes, the other the models as GGUF files. The tuned receivers (`TUNED`)
are the ends of every bridge's score and the first one its teacher, so a bridge waits for them; each
bridge (`BRIDGES`) is one change to `configs/real/mixed.yaml`, trained for as many steps on the same
rows in the same order. `--list` prints the commands and runs none; the rest is as in
`benchmarks/versions.py`. On an H200 of its own a tuned receiver takes two to five minutes and a
bridge of 2,200 steps about eight (docs/results/real.md).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.real_cells import MODELS, configs
from benchmarks.versions import Job, arguments, started

TEXT, LORA, NOTHING = "prompt_tuning_text", "lora_text", "prompt_tuning_nothing"
FALLING = "--stages.questions.train.optimiser.schedule="
FALLING += "{shape: linear, ramp: 50, hold: 0.5, final: 0.02}"
TUNED = {
    TEXT: (600, ["--stages.questions.train.buckets=3"]),
    NOTHING: (300, []),
    LORA: (
        600,
        [
            "--stages.questions.train.buckets=3",
            "--stages.questions.train.optimiser.lr=0.0003",
            FALLING,
        ],
    ),
}
"""Files of `configs/real/rivals`: steps, and what else they were told."""
REPORT = [
    "--stages.report.evaluate.decode.max_new_tokens=12",
    "--stages.report.evaluate.methods=[text, latent, deranged_near]",
]
EMBEDDINGS = ["--bridge.source.hidden_states=null", "--bridge.source.embeddings={}"]
BRIDGES = {
    "mixed_short": [],
    "mixed_adapters": ["adapters"],
    "lora_taught": ["lora_taught"],
    "small": ["small"],
    "mixed_random_sender": ["--sender.random_weights=7"],
    "mixed_embeddings": ["--bridge.source.hidden_states.layers=[0]"],
    "mixed_receiver_embeddings": [*EMBEDDINGS, "--sender.path=RECEIVER"],
}
"""Overlays of `configs/real/overlays`, or flags, on `mixed.yaml`, the most telling first; RECEIVER
is its file."""


def jobs(data: Path, models: Path, steps: int = 2200) -> list[Job]:
    """All runs, in the order in which they are begun.

    Args:
        data: folder with `train.json`, `articles.json` and `prose.jsonl`.
        models: folder with SmolLM2 and Qwen2.5.
        steps: of each bridge.
    """
    sender, receiver = (models / file for file in MODELS)
    pair = [f"--sender.path={sender}", f"--receivers.qwen.path={receiver}"]
    squad = [("train", data / "train.json"), ("eval", data / "articles.json")]
    pair += [f"--data.squad.{part}={file}" for part, file in squad]
    found, before = list[Job](), None
    for rival, (count, flags) in TUNED.items():
        files = configs("questions.yaml", f"rivals/{rival}.yaml", "rivals/for_steps.yaml")
        name, last = f"real_{rival}", f"--stages.questions.train.steps={count}"
        said = (*files, *pair, last, *flags, f"--name={name}")
        found.append(Job(name, said, 1, before))
        before = name
    tasks = "--stages.mix.train.tasks"
    prose = data / "prose.jsonl"
    rows = [f"{tasks}.questions.data.squad.{part}={file}" for part, file in squad]
    kinds = {"sentences": "jsonl", "several": "jsonl", "passages": "jsonl", "gaps": "cloze"}
    rows += [f"{tasks}.{task}.data.{kind}.train={prose}" for task, kind in kinds.items()]
    for bridge, changes in BRIDGES.items():
        over = [f"overlays/{change}.yaml" for change in changes if not change.startswith("--")]
        flags = [c.replace("RECEIVER", str(receiver)) for c in changes if c.startswith("--")]
        name, last = f"real_{bridge}", f"--stages.mix.train.steps={steps}"
        said = (*configs("mixed.yaml", *over), *pair, *rows, last, *REPORT, *flags)
        after = f"real_{LORA if bridge == 'lora_taught' else NOTHING}"
        found.append(Job(name, (*said, f"--name={name}"), 1, after))
    return found


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with rows and prose")
    parser.add_argument("--models", type=Path, required=True, help="folder with both models")
    parser.add_argument("--steps", type=int, default=2200, help="of each bridge")
    parser.add_argument("--at_once", type=int, default=1)
    asked = arguments(parser)
    return started(jobs(asked.data, asked.models, asked.steps), asked)


if __name__ == "__main__":
    sys.exit(main())
