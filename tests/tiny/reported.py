"""A run's files as an evaluation leaves them, with given answers: figures are made of these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lw_jax.data.example import Example
from lw_jax.data.facts import FactsRows
from lw_jax.evaluate import compression, report
from lw_jax.evaluate.figures import Asked, data, figures
from lw_jax.evaluate.metrics.base import Prediction
from lw_jax.report.read import MAPS, METRICS, PREDICTIONS
from lw_jax.train.diagnostics import Journal
from lw_jax.utils.files import write_json, write_lines, write_text
from tests.tiny.arch import decoder

RECEIVER, METHODS = "reader", ("text", "token_budget_first", "latent", "no_message", "deranged")
CONFIG = """\
name: {name}
sender: {{path: zoo/tiny-llama, dtype: float32, quant: none}}
receivers: {{reader: {{path: zoo/tiny-mistral, dtype: float32}}}}
data: {{facts: {{levels: [2]}}}}
bridge: {{latent_dim: 12, compressor: {{perceiver: {{slots: 3}}}}}}
stages: {{fit: {{train: {{steps: 40}}}}, test: {{evaluate: {{rows: {rows}}}}}}}
"""


def rows(count: int) -> list[Example]:
    """Facts, each of its own context."""
    held = FactsRows("eval", 0, 2, count)
    return [held[i][0] for i in range(count)]


def said(example: Example, text: str, nll: float = 1.0) -> Prediction:
    """A method's output."""
    same = text == example.answers[0]
    return Prediction(text, nll, 2, 0, same, same, 3, 100)


def answers(examples: Sequence[Example], right: int) -> dict[str, list[Prediction]]:
    """By method: of the latent the first `right` rows are right, of text all, of others none."""
    own = [said(e, e.answers[0] if i < right else "none of it") for i, e in enumerate(examples)]
    wrong = [said(e, "someone else", 3.0) for e in examples]
    text = [said(e, e.answers[0], 0.1) for e in examples]
    return dict(zip(METHODS, (text, wrong, own, wrong, wrong), strict=True))


def make(
    home: Path,
    examples: Sequence[Example],
    methods: Mapping[str, Sequence[Prediction]],
    maps: Sequence[Mapping[str, Any]] = (),
    receiver: str = RECEIVER,
    name: str = "tiny",
) -> Path:
    """Writes the files of a run; its directory."""
    home.mkdir(parents=True)
    write_text(home / "config.yaml", CONFIG.format(name=name, rows=len(examples)))
    asked = Asked(examples, [*examples[1:], examples[0]], 42, 50)
    every = {receiver: {m: (list(found), 1.0) for m, found in methods.items()}}
    texts, arch = [e.context for e in examples], decoder("mistral")
    tokens = [len(t) // 3 for t in texts]
    metrics = {
        **figures(asked, every),
        "alarms": [],
        "compression": {
            "latent": compression.of_texts(texts, [3] * len(texts), 12),
            "receivers": {receiver: compression.of_columns(texts, tokens, [3] * len(texts), arch)},
        },
        "parameters": {},
        "warnings": [],
        "stage": "test",
        "versions": {"device": "cpu", "lw_jax": "0", "commit": "0" * 40},
        "data": data(asked, 0, []) | {"origins": ["Sentences of a test."]},
        "fingerprints": {},
    }
    write_json(home / "metrics.json", metrics)
    write_lines(home / PREDICTIONS, report.predictions(examples, every))
    write_json(home / MAPS, {"texts": list(maps)})
    journal = Journal(home / "diagnostics.jsonl", "fit")
    for step in (10, 20, 30, 40):
        late = {"share/kd": 0.25} if step > 20 else {}
        journal.write(step, "train", {"loss": 4.0 / step, "share/answer_ce": 0.75} | late)
    alarmed = {"alarm/loudness": 1, "alarms": ["ALARM loudness (fault 7): too loud"]}
    seen = {f"{receiver}/accuracy": 0.5, f"{receiver}/deranged_accuracy": 0.1}
    journal.write(20, "evaluate", seen | alarmed)
    journal.write(40, "evaluate", seen)
    assert (home / METRICS).is_file()
    return home
