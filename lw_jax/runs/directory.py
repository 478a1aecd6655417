"""A run: its config, its directory, its mesh. A directory belongs to one config."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jax.sharding import Mesh
from rich.console import Console

from lw_jax.config.parse import differences, from_dict, to_yaml
from lw_jax.config.schema import Config
from lw_jax.config.yaml_files import RUN_CONFIG, dumps, load
from lw_jax.errors import UserError
from lw_jax.runs.session import Session
from lw_jax.utils.files import write_text
from lw_jax.utils.resume import free

CONFIG, FINISHED, LOCK = RUN_CONFIG, "finished.json", ".lock"
_SHOWN = 4


@dataclass(frozen=True)
class Run:
    """What a stage is given.

    Attributes:
        config: the resolved config.
        run_dir: the run's directory: checkpoints, diagnostics, statistics.
        mesh: the device mesh.
        console: prints for people.
        out_dir: where an evaluation writes: `run_dir`, or a new directory if a finished run is
            evaluated again.
        command: the command line that started it, as a person would type it.
        session: the frozen models, opened once for all stages.
    """

    config: Config
    run_dir: Path
    mesh: Mesh
    console: Console
    out_dir: Path
    command: str = ""
    session: Session = field(default_factory=Session)

    def finished(self) -> dict[str, float]:
        """Finished stages, with the seconds of the process that ended each."""
        path = self.out_dir / FINISHED
        return json.loads(path.read_text()) if path.is_file() else {}

    def finish(self, stage: str, seconds: float) -> None:
        """Records that a stage has ended."""
        write_text(self.out_dir / FINISHED, json.dumps({**self.finished(), stage: seconds}) + "\n")


def run_directory(config: Config) -> Path:
    """`run_dir`, or `runs/<name>`."""
    return Path(config.run_dir) if config.run_dir else Path("runs") / config.name


def check_directory(config: Config) -> None:
    """Checks that the run directory is free, or holds a run of the same config.

    Raises:
        UserError: it holds something else, or cannot be looked at; says what differs and how to go
            on.
    """
    path = run_directory(config)
    try:
        _check_directory(path, config)
    except OSError as error:
        raise UserError(
            f"run_dir: cannot use {path}: {error.strerror}; give another --run_dir"
        ) from None


def _check_directory(path: Path, config: Config) -> None:
    if (
        path.is_dir()
        and not (path / CONFIG).is_file()
        and any(p.name != LOCK for p in path.iterdir())
    ):
        raise UserError(f"run_dir: {path} exists and is no run directory; give another --run_dir")
    if path.exists() and not path.is_dir():
        raise UserError(f"run_dir: {path} is a file; give another --run_dir")
    if not (path / CONFIG).is_file():
        return
    changed = {k: v for k, v in differences(read_config(path), config).items() if not free(k)}
    if changed:
        one_line = [f"{k} was {_flow(a)}, is {_flow(b)}" for k, (a, b) in changed.items()]
        more = f" and {len(one_line) - _SHOWN} more" if len(one_line) > _SHOWN else ""
        raise UserError(
            f"run_dir: {path} holds a run of another config: {'; '.join(one_line[:_SHOWN])}{more}; "
            "undo that to go on with it, or give another --run_dir (or --name) to start anew"
        )


@contextmanager
def open_run(
    config: Config,
    mesh: Mesh,
    console: Console,
    command: str = "",
    session: Session | None = None,
) -> Iterator[Run]:
    """Makes or re-opens the run directory of a config that passed its checks; locked until the end.

    Args:
        config: config of the run.
        mesh: the device mesh.
        console: prints for people.
        command: the command line that started it.
        session: the session whose models the checks have opened; None: a new one.

    Raises:
        UserError: see `check_directory`; or another process uses the directory.
    """
    check_directory(config)
    path = run_directory(config)
    _make(path)
    with (path / LOCK).open("w") as file:  # a kill also releases the lock
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"run_dir: another process is running in {path}; "
                "wait for it, or give another --run_dir"
            ) from None
        write_text(path / CONFIG, to_yaml(config))
        yield Run(config, path, mesh, console, path, command, session or Session())


def open_evaluation(
    config: Config, run_dir: Path, mesh: Mesh, console: Console, session: Session | None = None
) -> Run:
    """A new directory `<run_dir>/evaluations/<n>` for another evaluation of a run.

    Args:
        config: config of the run, with the changes for this evaluation.
        run_dir: directory of the run.
        mesh: the device mesh.
        console: prints for people.
        session: the session whose models the checks have opened; None: a new one.
    """
    home = run_dir / "evaluations"
    _make(home)
    taken = [int(p.name) for p in home.iterdir() if p.name.isdigit()]
    out = home / str(max(taken, default=0) + 1)
    _make(out)
    write_text(out / CONFIG, to_yaml(config))
    return Run(config, run_dir, mesh, console, out, session=session or Session())


def read_config(run_dir: Path) -> Config:
    """The resolved config in a run directory.

    Raises:
        UserError: there is none, or it was written by another version of the code.
    """
    path = run_dir / CONFIG
    if not path.is_file():
        raise UserError(f"{run_dir}: no {CONFIG} there, so it is no run directory")
    return from_dict(load(path))


def _make(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"run_dir: cannot make {path}: {error.strerror}; give another --run_dir"
        ) from None


def _flow(value: Any) -> str:
    text = dumps(value, flow=True)
    return text if len(text) < 40 else text[:37] + "..."
