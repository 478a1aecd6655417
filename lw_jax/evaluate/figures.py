"""From all predictions to the content of `metrics.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lw_jax.data.example import Example
from lw_jax.evaluate import bootstrap, normalised, summary
from lw_jax.evaluate.config import NormalisedConfig
from lw_jax.evaluate.methods import controls
from lw_jax.evaluate.metrics import squad
from lw_jax.evaluate.metrics.base import Prediction, Rows
from lw_jax.evaluate.summary import CHOICE, Settings
from lw_jax.evaluate.verdict import METRIC, judge

Said = Mapping[str, Mapping[str, tuple[Sequence[Prediction], float]]]
"""Per receiver and method: a prediction per example, and the seconds they took."""


@dataclass(frozen=True)
class Asked:
    """The rows of an evaluation.

    Attributes:
        examples: the rows.
        others: for each an example of another context, or none.
        seed: of the bootstrap.
        resamples: of the bootstrap.
        ends_in_number: whether final numbers are scored, as the data set says.
        counted: by the methods that do not count every row the indices of those that they do.
    """

    examples: Sequence[Example]
    others: Sequence[Example]
    seed: int
    resamples: int
    ends_in_number: bool = False
    counted: Mapping[str, Sequence[int]] = field(default_factory=dict)

    @property
    def settings(self) -> Settings:
        """How figures of these rows are made."""
        return Settings(self.seed, self.resamples, self.ends_in_number)

    @property
    def groups(self) -> list[str]:
        """Rows of one context are resampled together."""
        return [e.context_id for e in self.examples]


def figures(
    asked: Asked,
    said: Said,
    rescored: Sequence[str] | None = None,
    rivals: Sequence[str] = (),
    ends: NormalisedConfig | None = None,
) -> dict[str, Any]:
    """`receivers`, `joint`, `verdict` and, where it is asked for, `normalised` of metrics.json.

    Args:
        asked: the rows.
        said: the predictions.
        rescored: row by row what several receivers chose together.
        rivals: lines that are another bridge's.
        ends: of the normalised score.
    """
    receivers = {
        receiver: {
            name: _of_method(asked, name, rows, seconds)
            for name, (rows, seconds) in methods.items()
        }
        for receiver, methods in said.items()
    }
    verdicts = {
        receiver: _verdict(asked, methods, receivers[receiver]["latent"]["columns"], rivals)
        for receiver, methods in said.items()
        if "latent" in methods
    }
    together = joint(asked, said, rescored)
    found = {"receivers": receivers, "joint": together, "verdict": verdicts}
    if ends is not None:
        found["normalised"] = {
            receiver: _normalised(asked, methods, ends) for receiver, methods in said.items()
        }
    return found


def _of_method(
    asked: Asked, name: str, said: Sequence[Prediction], seconds: float
) -> dict[str, Any]:
    """A method's figures, of the rows that it counts."""
    rows = asked.counted.get(name)
    if rows is None:
        return summary.of_method(asked.examples, said, seconds, asked.settings)
    kept = [asked.examples[i] for i in rows], [said[i] for i in rows]
    found = summary.of_method(*kept, seconds, asked.settings)
    return found | {"left_out": len(said) - len(rows)}


def _normalised(
    asked: Asked,
    methods: Mapping[str, tuple[Sequence[Prediction], float]],
    config: NormalisedConfig,
) -> dict[str, Any]:
    """The normalised score of every line that counts all rows."""
    lines = {}
    for name, (said, _) in methods.items():
        if name not in asked.counted:
            named = (*normalised.FIGURES, normalised.EXACT)
            values = summary.per_row(Rows(asked.examples, said), named)
            lines[name] = {figure: normalised.Line(*values[figure]) for figure in values}
    apart = {*controls(), *config.text, config.nothing}
    return normalised.of_lines(
        lines,
        config.text,
        config.nothing,
        normalised.Groups.of([e.article for e in asked.examples], asked.groups),
        seed=asked.seed,
        resamples=asked.resamples,
        shown=[name for name in lines if name not in apart],
    )


def joint(asked: Asked, said: Said, rescored: Sequence[str] | None = None) -> dict[str, Any]:
    """Several receivers of one latent: `rescored`, what they chose together, and `oracle`, per row
    the better answer. {} for one receiver."""
    latents = [methods["latent"][0] for methods in said.values() if "latent" in methods]
    if len(latents) < 2:
        return {}
    found = {} if rescored is None else {"rescored": _best(asked, [[text] for text in rescored])}
    return {
        **found,
        "oracle": _best(asked, [[one.text for one in row] for row in zip(*latents, strict=True)]),
    }


def _best(asked: Asked, texts: Sequence[Sequence[str]]) -> dict[str, Any]:
    """EM and F1 with intervals, of the best of every row's texts."""
    found: dict[str, Any] = {"ci": {}, "n": len(asked.examples)}
    for name, metric in (("em", squad.exact_match), ("f1", squad.f1)):
        best = [
            max(metric(text, e.answers) for text in row)
            for row, e in zip(texts, asked.examples, strict=True)
        ]
        found[name] = float(np.mean(best))
        found["ci"][name] = list(
            bootstrap.interval(
                best,
                groups=asked.groups,
                seed=asked.seed,
                resamples=asked.resamples,
                bounds=(0, 1),
            )
        )
    return found


def data(
    asked: Asked, dropped: int, malformed: Sequence[str], candidates: Sequence[str] = ()
) -> dict[str, Any]:
    """`data` of metrics.json: which rows, how many were left out, what chance gives.

    candidates: answers that the receivers chose from.
    """
    floors = {}

    def of(candidate: str) -> float:
        return float(np.mean([candidate in summary.golds(e) for e in asked.examples]))

    if asked.others:
        floors = summary.floors(asked.examples, asked.others, asked.ends_in_number)
    return {
        "split": "eval",
        "rows": len(asked.examples),
        "contexts": len(set(asked.groups)),
        "dropped": dropped,
        "malformed": len(malformed),
        "malformed_first": list(malformed[:3]),
        "seed": asked.seed,
        "entity_floor": floors.get("entities", {}),
        "answer_floor": floors.get("answers", {}),
        "candidates": list(candidates),
        "most_frequent": max(map(of, candidates), default=None),
    }


def _verdict(
    asked: Asked,
    methods: Mapping[str, tuple[Sequence[Prediction], float]],
    columns: float,
    rivals: Sequence[str],
) -> dict[str, Any]:
    """The verdict by what is written, and under `choice` that by what is chosen, where it is: there
    an answer's form, which a trained latent teaches and `no_message` cannot know, counts nothing.
    """
    counted = {name: rows for name, rows in asked.counted.items() if name in methods}
    every = {
        name: summary.per_row(Rows(asked.examples, said)) for name, (said, _) in methods.items()
    }

    ran_on = {
        name: float(np.mean([p.ended == "limit" for p in said]))
        for name, (said, _) in methods.items()
    }

    def judged(metric: str) -> dict[str, Any]:
        rows = {name: values[metric][0] for name, values in every.items()}
        late = ran_on if metric == METRIC else None
        settings = asked.settings
        found = judge(rows, asked.groups, columns, settings, metric, rivals, late, counted)
        return found.to_json()

    chosen = all(CHOICE in values for values in every.values())
    return judged(METRIC) | ({CHOICE: judged(CHOICE)} if chosen else {})
