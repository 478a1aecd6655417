"""What is said of rows at the start of a stage and by the doctor: what was left out, what leaks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from lw_jax.bridge.config import BridgeConfig, fits
from lw_jax.config.schema import Config
from lw_jax.data.example import Group, Remark, Rows
from lw_jax.data.leak import overlap, touching
from lw_jax.data.load import data_set, load_rows, sample
from lw_jax.data.source import FileSource, ListRows, Reason
from lw_jax.errors import UserError
from lw_jax.models.arch import Arch
from lw_jax.models.encoder_arch import AnyArch
from lw_jax.models.spec import SENDER
from lw_jax.runs.places import OTHER_RUNS, located
from lw_jax.runs.trained import config_at
from lw_jax.text.collate import Collate, Lengths, Sources, by_key, limit_of, too_long
from lw_jax.text.fit import length_remark
from lw_jax.text.layout_config import LayoutConfig
from lw_jax.text.tokenizer import Tokenizer
from lw_jax.train.config import TrainConfig
from lw_jax.utils.registry import chosen

LOOKED_AT = 512
"""Contexts whose lengths are looked at before a run; a stage looks at more."""


def remarks_of(rows: Any) -> list[Remark]:
    """What a data set says of the rows that it left out."""
    said = list(getattr(rows, "remarks", ()))
    if not said and rows.malformed:
        count, first = len(rows.malformed), rows.malformed[0]
        said = [Remark("warning", f"{count} malformed rows left out: {first}")]
    return said


def account_of(rows: Any) -> dict[str, Any]:
    """What became of a data set's records, for `data` of metrics.json; {} if it does not say."""
    account = getattr(rows, "account", None)
    return {} if account is None else account.to_json()


Load = Callable[[Any, str, int, int | None], Rows]
"""`lw_jax.data.load.load_rows`, or what remembers what it gave."""


APART = Reason(
    "apart",
    "left out of training, whose contexts are, hold or stand in contexts of an evaluation of this "
    "run; train.apart=false keeps them",
)


def training_rows(
    config: Config, cfg: TrainConfig, data: Any, level: int | None, load: Load = load_rows
) -> Rows:
    """The rows that a stage trains on.

    Args:
        config: config of the run.
        cfg: the stage, or one of its tasks.
        data: the stage's or the task's.
        level: of the rows; None: as the data says.
        load: reads rows.

    Raises:
        UserError: they cannot be read, cannot be kept apart, or none would be left.
    """
    rows = load(data, "train", config.seed, level)
    if not cfg.apart:
        return rows
    if not isinstance(rows, ListRows):
        (name,) = chosen(data)
        raise UserError(
            f"train.apart: rows of data.{name} are not held as a file has them, so that none can "
            "be left out; set it to false"
        )
    evaluated: list[Group] = []
    for each in _evaluated_on(config):
        found = load(each, "eval", config.seed, None)
        evaluated += [found[i] for i in range(len(found))]
    kept = rows.without(touching(rows.groups, evaluated), APART)
    if not len(kept):
        raise UserError(
            "train.apart: every training context is, holds or stands in a context of an evaluation "
            "of this run; train on other rows"
        )
    return kept


def _evaluated_on(config: Config) -> list[Any]:
    """The data of all evaluations of a run that are of rows in files, each once."""
    data = (s.evaluate.data or config.data for s in config.stages.values() if s.evaluate)
    return [d for d in dict.fromkeys(data) if isinstance(data_set(d), FileSource)]


def leaks(config: Config, stage: str, evaluation: Rows, load: Load = load_rows) -> list[Remark]:
    """What is said of evaluation rows that are, stand in, or hold rows which the run trains on, or
    on which a bridge was trained that it starts from, its teacher, or a rival of the evaluation.

    Args:
        config: config of the run.
        stage: the evaluate stage.
        evaluation: its rows.
        load: reads the training rows.

    Raises:
        UserError: the training rows cannot be read.
    """
    found: list[Remark] = []
    known: list[tuple[Any, int | None]] = []

    def look(config: Config, where: str) -> None:
        for name, data, level in _trained_on(config):
            if (data, level) in known:
                continue
            known.append((data, level))
            leak = overlap(load(data, "train", config.seed, level), evaluation)
            if leak is not None:
                of = "" if level is None else f" (level {level})"
                text = f"evaluation rows of stages.{stage} {leak.how} training rows of "
                found.append(Remark("warning", f"{text}{where}stages.{name}{of}: {leak}"))

    look(config, "")
    starts, seen = _starts(config, stage), set[str]()
    while starts:
        start = starts.pop(0)
        if start in seen:
            continue
        seen.add(start)
        try:
            theirs = located(config_at(Path(start)), Path(start))
            look(theirs, f"{start}, ")
            starts += _starts(theirs)
        except (UserError, OSError):
            text = f"rows that {start} was trained on cannot be read here, and were not compared"
            found.append(Remark("ok", text))
    return found


def _starts(config: Config, stage: str | None = None) -> list[str]:
    """The runs and bridges that a run's stages start from or learn from, and from which one of its
    evaluations starts, or with which it compares."""
    found: list[str | None] = []
    for name, one in config.stages.items():
        if one.train is not None:
            found += [getattr(one.train, key) for key in OTHER_RUNS]
        if one.evaluate is not None and name == stage:
            found += [one.evaluate.init_from, *one.evaluate.rivals.values()]
    return list(dict.fromkeys(start for start in found if start is not None))


def _trained_on(config: Config) -> Iterator[tuple[str, Any, int | None]]:
    """(stage, data, level) of all different training rows of a run."""
    seen: set[Any] = set()
    for name, stage in config.stages.items():
        fitted = config.bridge is not None and fits(config.bridge)
        if stage.calibrate is not None and fitted and (config.data, None) not in seen:
            seen.add((config.data, None))
            yield name, config.data, None
        if stage.train is None:
            continue
        for train in stage.train.each().values():
            data = train.data or config.data
            for level in () if train.apart else levels_of(train):
                if (data, level) not in seen:
                    seen.add((data, level))
                    yield name, data, level


def levels_of(cfg: TrainConfig) -> list[int | None]:
    """The levels of the rows that a stage trains on."""
    return list(dict.fromkeys(part.level for part in cfg.curriculum)) or [None]


def lengths_of(
    rows: Rows, layout: LayoutConfig, sources: Sources, receivers: dict[str, Tokenizer], which: str
) -> Remark | None:
    """What is said of contexts that are too long; nothing is measured if nothing has a limit.

    Args:
        rows: the rows, of which up to `LOOKED_AT` contexts are measured.
        layout: the receiver's sequence.
        sources: tokenizers of the source.
        receivers: the receivers' tokenizers by name.
        which: which contexts they are, in words.
    """
    limit, readers = layout.max_tokens, by_key(sources).values()
    if limit is None and all(limit_of(None, reader) is None for reader in readers):
        return None
    groups = sample(rows, LOOKED_AT)
    lengths = too_long(Collate(layout, sources, receivers, Lengths()), groups)
    return length_remark(lengths, limit, len(rows), which)


def beyond_models(
    bridge: BridgeConfig,
    collate: Collate,
    groups: Sequence[Group],
    sender: AnyArch | None,
    receivers: Mapping[str, AnyArch],
) -> list[Remark]:
    """What is said of contexts with more tokens than a decoder was made for; they are read.

    Args:
        bridge: config of the bridge, whose sources read the sender.
        collate: a collator, of whatever static lengths.
        groups: the contexts that are looked at.
        sender: architecture of the sender; None: there is none.
        receivers: architectures of the receivers by name.
    """
    views = bridge.views.items()
    archs = {bridge.batch_key(n): (SENDER, sender) for n, s in views if s.reads_sender}
    archs |= {f"{name}/context": (name, arch) for name, arch in receivers.items()}
    known = {part: (n, a) for part, (n, a) in archs.items() if isinstance(a, Arch)}
    limit = collate.layout.max_tokens
    if limit is not None and all(arch.max_positions >= limit for _, arch in known.values()):
        return []
    whole = replace(collate, layout=replace(collate.layout, text_budget=None))
    found, tokens = [], whole.contexts(groups)
    for part, (name, arch) in known.items():
        count = sum(len(ids) > arch.max_positions for ids in tokens[part])
        if count:
            text = (
                f"{count} of {len(groups)} contexts looked at have up to "
                f"{max(map(len, tokens[part]))} tokens; {name} was made for {arch.max_positions}: "
                "set layout.max_tokens"
            )
            found.append(Remark("warning", text))
    return list(dict.fromkeys(found))


def report(console: Console, key: str, remarks: Iterable[Remark | None]) -> None:
    """Prints what is said of rows, each line once.

    Args:
        console: prints for people.
        key: the config's key that it concerns.
        remarks: what is said; None: nothing.

    Raises:
        UserError: the first that is an error.
    """
    for one in dict.fromkeys(remarks):
        if one is None:
            continue
        if one.level == "error":
            raise UserError(f"{key}: {one.text}")
        word = "WARNING data" if one.level == "warning" else "data"
        console.print(f"{word}: {one.text}", markup=False, highlight=False, soft_wrap=True)
