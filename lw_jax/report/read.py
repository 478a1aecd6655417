"""What a report is made of: a run's files, read back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lw_jax.config.yaml_files import RUN_CONFIG, load
from lw_jax.errors import UserError
from lw_jax.runs.directory import DIAGNOSTICS, read_finished
from lw_jax.train import diagnostics
from lw_jax.utils import files
from lw_jax.utils.files import NUMBER, fits, number_of, read_json, read_lines

METRICS, PREDICTIONS, MAPS = "metrics.json", "predictions.jsonl", "slot_maps.json"
AGAIN = "evaluations"
ADVICE = "delete it; `lw-jax evaluate RUN` evaluates the run again"

SAID = {"text": str, "em": NUMBER, "f1": NUMBER, "nll": (*NUMBER, type(None))}
"""The form of what a receiver said with a method."""
ROW = {
    **dict.fromkeys(("id", "context_id", "context", "question"), str),
    "answers": [str],
    "receivers": {...: {...: SAID}},
}
"""The form of a line of predictions.jsonl (`lw_jax.utils.files.fits`)."""
MAP = {"row": str, "tokens": [str], "cosine": [[NUMBER]]}
"""The form of a text's slots in slot_maps.json."""


@dataclass(frozen=True)
class Evaluated:
    """One evaluation of a run.

    Attributes:
        name: the stage's, or `evaluations/N`.
        metrics: its `metrics.json`.
    """

    name: str
    metrics: Mapping[str, Any]


@dataclass(frozen=True)
class Read:
    """A run's files.

    Attributes:
        home: its directory.
        config: `config.yaml` as it stands there.
        last: the evaluation that the report shows; None: nothing was evaluated.
        evaluations: all of them, `last` among them, as they were made.
        rows: lines of `predictions.jsonl` of the last.
        maps: slots of a few texts to look at.
        journal: lines of `diagnostics.jsonl`.
        seconds: of finished stages.
        damaged: lines that could not be read, by file.
    """

    home: Path
    config: Mapping[str, Any]
    last: Evaluated | None
    evaluations: list[Evaluated]
    rows: list[dict[str, Any]] = field(default_factory=list)
    maps: list[dict[str, Any]] = field(default_factory=list)
    journal: list[dict[str, Any]] = field(default_factory=list)
    seconds: Mapping[str, float] = field(default_factory=dict)
    damaged: Mapping[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The run's name."""
        return str(self.config.get("name") or self.home.name)

    @property
    def metrics(self) -> Mapping[str, Any]:
        """Figures of the last evaluation; {} if there is none."""
        return self.last.metrics if self.last else {}


def read(home: Path, config: Mapping[str, Any] | None = None) -> Read:
    """A run's files, or those of one of its other evaluations: of a further one
    (`RUN/evaluations/N`), or of a stage before the last (`RUN/STAGE`).

    Args:
        home: its directory.
        config: of the run, if it is known; None: its `config.yaml` says.

    Raises:
        UserError: it is no run directory, or a file in it is damaged.
    """
    root = home.parent.parent if home.resolve().parent.name == AGAIN else home
    if config is None:
        config, above = _config(home / RUN_CONFIG), home.resolve().parent
        if config is None and home.resolve().name in _evaluations(_config(above / RUN_CONFIG))[:-1]:
            config, root = _config(above / RUN_CONFIG), above
        if config is None:
            raise UserError(f"{home}: no {RUN_CONFIG} there, so it is no run directory")
    evaluations = [
        Evaluated(str(where.relative_to(root)) if where != root else _last_name(config), found)
        for where in _places(root, config)
        if (found := _metrics(where)) is not None
    ]
    own = _metrics(home)
    last = None if own is None else Evaluated(str(own.get("stage", "")), own)
    rows: list[dict[str, Any]] = []
    maps: list[dict[str, Any]] = []
    journal: list[dict[str, Any]] = []
    damaged: dict[str, int] = {}
    if last is not None and (home / PREDICTIONS).is_file():
        rows, bad = read_lines(home / PREDICTIONS, ROW)
        damaged |= {PREDICTIONS: bad} if bad else {}
    if last is not None and (home / MAPS).is_file():
        found = read_json(home / MAPS, dict, ADVICE)
        if not fits(found, {"texts": [MAP]}):
            raise files.damaged(home / MAPS, "a text without its tokens, slots or cosines", ADVICE)
        maps = found["texts"]
    if (root / DIAGNOSTICS).is_file():
        journal, bad = read_lines(root / DIAGNOSTICS, diagnostics.DIAGNOSTICS_LINE)
        damaged |= {DIAGNOSTICS: bad} if bad else {}
    seconds = read_finished(root)
    return Read(home, config, last, evaluations, rows, maps, journal, seconds, damaged)


def _config(path: Path) -> Mapping[str, Any] | None:
    """A run's config; None: there is none.

    Raises:
        UserError: it is damaged.
    """
    if not path.is_file():
        return None
    config = load(path)
    if not fits(config.get("stages") or {}, {...: dict}):
        raise UserError(f"{path}: stages: expected names, and a stage under each")
    return config


def _metrics(where: Path) -> dict[str, Any] | None:
    path = where / METRICS
    if not path.is_file():
        return None
    found = read_json(path, dict, ADVICE)
    if not {"receivers", "data"} <= found.keys():
        return None
    if not fits(found, {"receivers": {...: {...: dict}}, "data": dict}):
        raise files.damaged(path, "a receiver without methods, or a method without figures", ADVICE)
    return found


def _places(root: Path, config: Mapping[str, Any]) -> list[Path]:
    """Where evaluations may be: of earlier stages, of the last one, and later ones."""
    names = _evaluations(config)
    again = root / AGAIN
    numbered = (
        sorted(again.iterdir(), key=lambda p: number_of(p.name) or 0) if again.is_dir() else []
    )
    return [*(root / name for name in names[:-1]), root, *numbered]


def _evaluations(config: Mapping[str, Any] | None) -> list[str]:
    stages = (config or {}).get("stages") or {}
    found = ((n, s.get("evaluate")) for n, s in stages.items() if isinstance(s, Mapping))
    return [name for name, evaluate in found if evaluate is not None]


def _last_name(config: Mapping[str, Any]) -> str:
    return (_evaluations(config) or ["evaluate"])[-1]
