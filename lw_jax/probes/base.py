"""What probes have in common: the bridge, its rows, figures with intervals, the result's file."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike
from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from lw_jax.api.bridge import Bridge
from lw_jax.config.parse import to_yaml
from lw_jax.config.schema import Config
from lw_jax.data.example import Example
from lw_jax.data.load import load_rows, sample
from lw_jax.errors import UserError, said
from lw_jax.evaluate import bootstrap, packets
from lw_jax.evaluate.methods.base import EvalContext
from lw_jax.runs.directory import CONFIG
from lw_jax.runs.exported import is_exported
from lw_jax.runs.hub import bridge_at
from lw_jax.runs.places import located
from lw_jax.runs.trained import config_at
from lw_jax.types import Delivery, Latent
from lw_jax.utils.device import use_device
from lw_jax.utils.files import write_json, write_text
from lw_jax.utils.provenance import provenance
from lw_jax.wire import packet
from lw_jax.wire.codecs import CODECS, CODES, codec

SHARE = (0.0, 1.0)
EXPORTED = Path("runs/exported")
"""Where probes of exported bridges go, as their evaluations do."""
FOLDER = "probes"
_WIDEST = 400
_BORDER = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True)
class Figure:
    """A figure over rows.

    Attributes:
        value: mean over the rows.
        ci: 95 % interval.
        n: rows.
    """

    value: float
    ci: tuple[float, float]
    n: int


Lines = dict[str, dict[str, Figure]]
"""Figures by name, by line of the table."""


@dataclass(frozen=True, eq=False)
class Probed:
    """A bridge that is probed.

    Attributes:
        wire: both ends of it.
        config: of its run, with files and models as they are found from here.
        out: directory of the results.
        receiver: the name of the receiver that is probed.
        console: prints for people.
    """

    wire: Bridge
    config: Config
    out: Path
    receiver: str
    console: Console

    @cached_property
    def ctx(self) -> EvalContext:
        """The receiver and the wire that leads to it."""
        s = self.wire.pipeline
        return EvalContext(s.frozen, self.wire.trained.params, None, s.bridge, self.receiver)

    @property
    def asks(self) -> bool:
        """Whether the receiver is asked a question."""
        layout = self.wire.pipeline.layout
        return layout.question_in == "receiver" and bool(layout.question)

    def rows(self, split: str, count: int, seed: int) -> list[Example]:
        """`count` rows of the run, one a context, of which the sender can read the texts."""
        found = sample(load_rows(self.config.data, split, seed), count)
        return [group[0] for group in found if self.fits(group[0])]

    def fits(self, row: Example) -> bool:
        """Whether the bridge's sender can read a row's text."""
        try:
            self.wire.text(row.context, self._question(row))
        except UserError:
            return False
        return True

    def _question(self, row: Example) -> str | None:
        """The question that travels in the latent; None where it does not."""
        return row.question if self.wire.pipeline.layout.question_in == "latent" else None

    def sent(
        self, rows: Sequence[Example], what: str, ratio: float | None = None
    ) -> tuple[list[bytes], list[Latent]]:
        """The packets of rows' texts in the bridge's own codec, and their slots as the receiving
        end has them, one row each, float32.

        Args:
            rows: the rows.
            what: said beside the progress.
            ratio: source tokens a slot; None: as the bridge's config says.
        """
        data: list[bytes] = []
        with progress(self.console, what, len(rows)) as step:
            for begin in range(0, len(rows), 64):
                some = rows[begin : begin + 64]
                asked = [self._question(row) for row in some]
                question = None if None in asked else [one or "" for one in asked]
                data += self.wire.encode([row.context for row in some], question, ratio=ratio)
                step(len(some))
        return data, self.opened(data)

    def packet(self, latent: Latent, name: str) -> bytes:
        """The packet of a latent of one row in a codec of slots.

        Raises:
            UserError: the codec cannot hold it.
        """
        sendable = packet.sendable(latent)
        mark, key = self.wire.trained.mark, self.wire.key
        return packet.to_bytes(sendable, codec_name=name, levels=(), mark=mark, key=key)

    def opened(self, data: Sequence[bytes]) -> list[Latent]:
        """The slots in packets; codes have become slots."""
        bridge, mark, key = self.wire.pipeline.bridge, self.wire.trained.mark, self.wire.key
        rows = [packets.opened(bridge, one, mark, key=key) for one in data]
        if not bridge.levels:
            return rows
        return [jax.device_get(_slots(self.ctx, row)) for row in rows]


@jax.jit
def handed(ctx: EvalContext, sent: Latent) -> Delivery:
    """What a bridge hands its receiver for the latents that were sent."""
    return ctx.deliver(ctx.received(sent))


@jax.jit
def _slots(ctx: EvalContext, sent: Latent) -> Latent:
    return ctx.received(sent)


def open_probed(place: str, out: str | None, receiver: str | None, console: Console) -> Probed:
    """A run's bridge, or an exported one, for a probe.

    Args:
        place: directory of either, or a name on the hub.
        out: directory of the results; None: `probes` in the run's, or in `runs/exported/<name>`.
        receiver: which is probed; may be left out where there is one.
        console: prints for people.

    Raises:
        UserError: as `Bridge.load`; there is no such receiver; or there is a GPU, and jax has none.
    """
    home = bridge_at(Path(place))
    config = config_at(home)
    use_device("auto" if is_exported(home) else config.device, os.environ)
    wire = Bridge.load(home)
    names = list(wire.pipeline.receivers)
    if receiver is None and len(names) > 1:
        raise UserError(f"--receiver: which? there are {', '.join(names)}")
    if receiver is not None and receiver not in names:
        raise UserError(f"--receiver: {receiver!r} is not one of {', '.join(names)}")
    config = located(config, home)
    above = EXPORTED / home.resolve().name if is_exported(home) else home
    where = Path(out) if out is not None else above / FOLDER
    if where.is_file():
        raise UserError(f"--out: {where} is a file; give a directory")
    try:  # before anything is computed
        where.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out: cannot make {where}: {error.strerror}; give another") from None
    return Probed(wire, config, where, receiver or names[0], console)


def codecs_of(wire: Bridge, asked: Sequence[str]) -> list[str]:
    """The codecs that messages are sent in: those asked for, else the bridge's own, int8 and int4.

    Raises:
        UserError: one is unknown, or not one of a bridge that sends codes.
    """
    own = wire.pipeline.bridge.codec
    if own == CODES:
        if set(asked) - {CODES}:
            raise UserError(f"codecs: this bridge sends {CODES} and nothing else")
        return [CODES]
    for name in asked:
        if name not in CODECS:
            raise UserError(f"codecs: unknown codec {name!r}; one of {', '.join(CODECS)}")
    return list(dict.fromkeys(asked or (own, "int8", "int4")))


def ratios_of(wire: Bridge, asked: Sequence[float]) -> list[float | None]:
    """The ratios that messages are made with: those asked for, else those of training.

    Raises:
        UserError: the bridge has one number of slots alone, or was not trained for one of them.
    """
    compressor = wire.pipeline.bridge.config.chosen_compressor
    known = tuple(getattr(compressor, "ratios", ()) if compressor.several_ratios else ())
    if not known and asked:
        raise UserError("ratios: this bridge has one number of slots, whatever the text")
    for one in asked:
        if not min(known) <= one <= max(known):
            raise UserError(f"ratios: {one:g} is not between {min(known):g} and {max(known):g}")
    return list(asked or known) or [None]


def texts_of(path: str) -> list[str]:
    """The texts of a file, a line each; blank lines are left out.

    Raises:
        UserError: it cannot be read, or has fewer than four.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"texts: {path}: {said(error)}") from None
    found = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if len(found) < 4:
        raise UserError(f"texts: {path}: {len(found)} texts; give four or more, a line each")
    return found


def sentences(text: str) -> list[str]:
    """A text cut after full stops, question and exclamation marks."""
    return _BORDER.split(text.strip())


def figure(
    values: ArrayLike, seed: int, count: ArrayLike | None = None, share: bool = True
) -> Figure:
    """The mean of values [n], of which each stands for `count` [n] parts, with its interval.

    Args:
        values: of each row; with `count` the sum over its parts.
        seed: of the bootstrap.
        count: parts of each row; None: one.
        share: whether each part is between 0 and 1.
    """
    total = np.asarray(values, np.float64)
    parts = np.ones_like(total) if count is None else np.asarray(count, np.float64)
    whole = parts.sum()
    if not whole:
        return Figure(float("nan"), (float("nan"), float("nan")), 0)
    low_high = bootstrap.interval(total, parts, seed=seed, bounds=SHARE if share else None)
    return Figure(float(total.sum() / whole), low_high, int((parts > 0).sum()))


def batched(latents: Sequence[Latent], slots: int) -> Latent:
    """Latents of one row each as one batch, filled up to `slots` masked ones at the end."""
    return packets.filled(list(latents), slots)


def most_slots(latents: Sequence[Latent]) -> int:
    """Slots of the longest."""
    return max(one.mask.shape[1] for one in latents)


def real(latent: Latent) -> np.ndarray:
    """The real slots [m, d] of a latent of one row."""
    return np.asarray(latent.slots)[0][np.asarray(latent.mask)[0]]


def in_codec(latent: Latent, name: str) -> Latent:
    """A latent of one row as another codec than the bridge's own leaves it.

    Raises:
        UserError: the codec cannot hold it.
    """
    if name == CODES:
        return latent
    slots = np.asarray(latent.slots, np.float32)[0]
    coding = codec(name)
    coded = coding.unpack(coding.pack(slots), *slots.shape)
    return replace(latent, slots=coded[None])  # type: ignore[arg-type]


@contextmanager
def progress(console: Console, what: str, total: int) -> Iterator[Any]:
    """A bar; gives what moves it on by a number of parts. Without a terminal a line now and then.

    Args:
        console: where.
        what: said beside it.
        total: parts.
    """
    live = console.is_terminal
    bar = Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
        console=console,
        transient=True,
        disable=not live,
    )
    began = said_at = time.monotonic()
    done = 0
    with bar:
        task = bar.add_task(what, total=total, text="")

        def step(parts: int = 1, text: str = "") -> None:
            nonlocal done, said_at
            done += parts
            bar.update(task, completed=done, text=text)
            now = time.monotonic()
            if not live and (done >= total or now - said_at > 10):
                said_at = now
                line = f"{what} {done}/{total}  {now - began:.0f} s  {text}".rstrip()
                console.print(line, markup=False, highlight=False, soft_wrap=True)

        yield step


def show(console: Console, title: str, lines: Lines) -> None:
    """The table of a probe's figures."""
    names = list(dict.fromkeys(name for held in lines.values() for name in held))
    shown = Table(title=title, box=None, padding=(0, 2, 0, 0))
    shown.add_column("", no_wrap=True)
    for name in names:
        shown.add_column(name.replace("_", " "), justify="right", no_wrap=True)
    for line, held in lines.items():
        shown.add_row(line, *(_cell(held.get(name)) for name in names))
    # A figure is never cut off: a narrow terminal wraps the lines.
    wide = Measurement.get(console, console.options.update(width=_WIDEST), shown).maximum
    Console(file=console.file, width=max(wide, console.width)).print(shown)


def _cell(one: Figure | None) -> str:
    if one is None or not np.isfinite(one.value):
        return "–"
    low, high = one.ci
    return f"{one.value:.3f}" + (f" [{low:.3f}, {high:.3f}]" if np.isfinite(low) else "")


def write(
    probed: Probed, kind: str, config: Any, lines: Lines, seconds: float, more: Mapping[str, Any]
) -> Path:
    """Writes a probe's result beside the config of its bridge.

    Args:
        probed: the bridge.
        kind: of the probe.
        config: how much was probed.
        lines: the figures.
        seconds: that it took.
        more: what else is worth keeping.

    Returns:
        The file's path.
    """
    if not (probed.out / CONFIG).exists():
        write_text(probed.out / CONFIG, to_yaml(probed.config))
    path = probed.out / f"probe_{kind}.json"
    content = {
        "probe": kind,
        "receiver": probed.receiver,
        "bridge": repr(probed.wire),
        "digest": probed.wire.trained.digest,
        "asked": asdict(config),
        "figures": {
            line: {name: asdict(one) for name, one in held.items()} for line, held in lines.items()
        },
        **more,
        "seconds": round(seconds, 1),
        "versions": {
            **provenance(),
            "jax": jax.__version__,
            "device": jax.devices()[0].device_kind,
        },
    }
    write_json(path, content)
    return path
