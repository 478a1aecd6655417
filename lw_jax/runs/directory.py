"""A run: its config, its directory, its mesh.

A directory belongs to one config, as far as its stages have begun: what only concerns stages that
have left nothing may change, and so may everything in a directory where none has. So a start that
fails does not stand in the way of the corrected command.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from jax.sharding import Mesh
from rich.console import Console

from lw_jax.config.parse import differences, from_dict, to_yaml
from lw_jax.config.schema import Config
from lw_jax.config.yaml_files import RUN_CONFIG, dumps, load
from lw_jax.errors import UserError
from lw_jax.runs import receiver_rms
from lw_jax.runs.history import Call
from lw_jax.runs.opened import Session
from lw_jax.runs.places import found
from lw_jax.train.loop import end_of
from lw_jax.utils import hosts
from lw_jax.utils.files import damaged, number_of, read_json, write_text
from lw_jax.utils.resume import free, raised

CONFIG, FINISHED, LOCK = RUN_CONFIG, "finished.json", ".lock"
DIAGNOSTICS = "diagnostics.jsonl"
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
        call: the same in its words.
        session: the frozen models, opened once for all stages.
    """

    config: Config
    run_dir: Path
    mesh: Mesh
    console: Console
    out_dir: Path
    command: str = ""
    call: Call = Call()
    session: Session = field(default_factory=Session)

    def finished(self) -> dict[str, float]:
        """Finished stages, with the seconds of the process that ended each."""
        return read_finished(self.out_dir)

    def finish(self, stage: str, seconds: float) -> None:
        """Records that a stage has ended."""
        write_text(self.out_dir / FINISHED, json.dumps({**self.finished(), stage: seconds}) + "\n")


def read_finished(directory: Path) -> dict[str, float]:
    """Finished stages of a run, with the seconds of the process that ended each.

    Raises:
        UserError: the file is damaged.
    """
    path = directory / FINISHED
    if not path.is_file():
        return {}
    advice = "delete it and run the command that made the run: what was trained is not repeated"
    found = read_json(path, dict, advice)
    if not all(isinstance(seconds, int | float) for seconds in found.values()):
        raise damaged(path, "seconds are no numbers", advice)
    return found


def run_directory(config: Config) -> Path:
    """`run_dir`, or `runs/<name>`."""
    return Path(config.run_dir).expanduser() if config.run_dir else Path("runs") / config.name


def check_directory(config: Config) -> None:
    """Checks that the run directory is free, or holds a run that the config goes on with.

    Raises:
        UserError: it holds something else, or cannot be looked at; says what differs and how to go
            on.
    """
    _old_config(config)


def _old_config(config: Config) -> Config | None:
    """The config that the run directory has, if this one may go on there; None: it has none.

    Raises:
        UserError: see `check_directory`.
    """
    path = run_directory(config)
    try:
        return _held(path, config)
    except OSError as error:
        raise UserError(
            f"run_dir: cannot use {path}: {error.strerror}; give another --run_dir"
        ) from None


def _held(path: Path, config: Config) -> Config | None:
    """The same for the directory at `path`; OSError where it cannot be looked at."""
    if path.exists() and not path.is_dir():
        raise UserError(f"run_dir: {path} is a file; give another --run_dir")
    if not (path / CONFIG).is_file():
        # a run whose config.yaml was damaged and deleted has the others; its checkpoints and
        # statistics say what they belong to
        if path.is_dir() and any(path.iterdir()) and not (path / LOCK).is_file():
            raise UserError(
                f"run_dir: {path} exists and is no run directory; give another --run_dir"
            )
        return None
    old = read_config(path)
    begun = stages_begun(path, old)
    differ = differences(old, config).items()
    changed = {k: v for k, v in differ if _matters(k, old, begun) and not _one_place(*v, path)}
    longer = {k.split(".")[1] for k, (a, b) in changed.items() if raised(k, a, b)}
    changed = {k: v for k, v in changed.items() if not raised(k, *v)}
    names, now = list(old.stages), list(config.stages)
    count = max((names.index(name) + 1 for name in begun), default=0)
    if not changed and names[:count] != now[:count]:  # their order decides random keys
        changed = {"stages": (names, now)}
    if changed:
        one_line = [f"{k} was {_flow(a)}, is {_flow(b)}" for k, (a, b) in changed.items()]
        more = f" and {len(one_line) - _SHOWN} more" if len(one_line) > _SHOWN else ""
        steps = any(raised(k, b, a) for k, (a, b) in changed.items())
        raise UserError(
            f"run_dir: {path} holds a run of another config: {'; '.join(one_line[:_SHOWN])}{more}; "
            + ("steps may be raised, not lowered; " if steps else "")
            + "undo that to go on with it, or give another --run_dir (or --name) to start anew "
            f"(if it was changed in {path / CONFIG}, delete that file)"
        )
    for name in longer & begun:
        after = list(old.stages)[list(old.stages).index(name) + 1 :]
        trained = [n for n in after if n in begun and old.stages[n].evaluate is None]
        if trained:
            raise UserError(
                f"stages.{name}: its steps cannot be raised, for stages.{trained[0]} went on from "
                "its end; give another --run_dir"
            )
        asked = old.stages[name].train
        if asked is not None and (end := end_of(path, name, asked.steps)) < asked.steps:
            raise UserError(
                f"stages.{name}: stop_when ended it after step {end} of {asked.steps}, and more "
                "steps would not begin it again; give another --run_dir, with init_from to go on "
                "from its end"
            )
    return old


def _matters(key: str, old: Config, begun: set[str]) -> bool:
    """Whether a difference in a key concerns a stage that has begun."""
    if free(key) or not begun:
        return False
    first, _, rest = key.partition(".")
    if first != "stages":
        return True
    names = list(old.stages)
    last = max(names.index(name) for name in begun)
    own = rest.partition(".")[0]
    return own in names and names.index(own) <= last


def stages_begun(run_dir: Path, config: Config) -> set[str]:
    """The stages of a run that have left a result or a checkpoint.

    Args:
        run_dir: directory of the run.
        config: its config.

    Raises:
        UserError: finished.json is damaged.
    """
    begun = set(read_finished(run_dir))
    root = run_dir / "checkpoints"
    for path in root.iterdir() if root.is_dir() else ():
        if path.is_dir() and any(number_of(p.name) is not None for p in path.iterdir()):
            begun.add(path.name)
    return begun & set(config.stages)


@contextmanager
def open_run(
    config: Config,
    mesh: Mesh,
    console: Console,
    command: str = "",
    session: Session | None = None,
    call: Call | None = None,
) -> Iterator[Run]:
    """Makes or re-opens the run directory of a config that passed its checks; locked until the end.

    Args:
        config: config of the run.
        mesh: the device mesh.
        console: prints for people.
        command: the command line that started it.
        session: the session whose models the checks have opened; None: a new one.
        call: the command line in its words; None: not known.

    Raises:
        UserError: see `check_directory`; or another process uses the directory.
    """
    check_directory(config)
    path = run_directory(config)
    if not hosts.first():
        hosts.meet("the run's directory")
        if not (path / CONFIG).is_file():
            raise UserError(
                f"run_dir: process 0 has made {path.absolute()}, which is not there for this "
                "process: all hosts need it on one file system; give another --run_dir"
            )
        yield Run(config, path, mesh, console, path, command, call or Call(), session or Session())
        return
    _make(path)
    with _opened(path / LOCK) as file:  # a kill also releases the lock
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"run_dir: another process is running in {path}; "
                "wait for it, or give another --run_dir"
            ) from None
        old = _old_config(config)
        if old is not None:
            _take_over(path, old, config, console)
        write_text(path / CONFIG, to_yaml(config))
        hosts.meet("the run's directory")
        yield Run(config, path, mesh, console, path, command, call or Call(), session or Session())


def _one_place(a: Any, b: Any, home: Path) -> bool:
    """Whether two values name one file or directory, such as a model that ships: the command was
    given from another directory than before."""
    if not (isinstance(a, str) and isinstance(b, str)):
        return False
    one, other = (Path(found(text, home)).expanduser() for text in (a, b))
    return one.exists() and other.exists() and one.samefile(other)


def _take_over(path: Path, old: Config, config: Config, console: Console) -> None:
    """Removes what the directory holds of stages that begin anew, or go on, with this config."""
    differ = differences(old, config).items()
    changed = {k: v for k, v in differ if not free(k) and not _one_place(*v, path)}
    if not changed:
        return
    begun, names = stages_begun(path, old), list(old.stages)
    for name in names:
        if name not in begun:
            _remove_beginnings(path, name)
    if not begun:  # measured and logged with another config
        (path / receiver_rms.FILE).unlink(missing_ok=True)
        (path / DIAGNOSTICS).unlink(missing_ok=True)
        return
    longer = [k.split(".")[1] for k, (a, b) in changed.items() if raised(k, a, b)]
    again = [name for name in names if name in begun and name in longer]
    if not again:
        return
    for key, (a, b) in changed.items():
        if raised(key, a, b):
            console.print(
                f"{key}: raised from {a} to {b}: the stage goes on from its last checkpoint with "
                f"its optimiser; schedules and curricula are those of a stage of {b} steps from "
                "there on",
                highlight=False,
                soft_wrap=True,
            )
    kept = names[: names.index(again[0])]
    done = {name: seconds for name, seconds in read_finished(path).items() if name in kept}
    write_text(path / FINISHED, json.dumps(done) + "\n")


def _remove_beginnings(path: Path, name: str) -> None:
    """Removes what a stage left that did not come to a checkpoint or a result."""
    (path / "calibration" / f"{name}.part.npz").unlink(missing_ok=True)
    (path / f"{name}.tokenizer.json").unlink(missing_ok=True)


@contextmanager
def open_evaluation(
    config: Config,
    run_dir: Path,
    mesh: Mesh,
    console: Console,
    session: Session | None = None,
    call: Call | None = None,
) -> Iterator[Run]:
    """A new directory `<run_dir>/evaluations/<n>` for another evaluation of a run.

    It is removed if the evaluation fails.

    Args:
        config: config of the run, with the changes for this evaluation.
        run_dir: directory of the run.
        mesh: the device mesh.
        console: prints for people.
        session: the session whose models the checks have opened; None: a new one.
        call: the command line in its words; None: not known.
    """
    out = _next_number(run_dir / "evaluations")
    try:
        write_text(out / CONFIG, to_yaml(config))
        yield Run(
            config,
            run_dir,
            mesh,
            console,
            out,
            call=call or Call(),
            session=session or Session(),
        )
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        with suppress(OSError):  # there are others
            out.parent.rmdir()
        raise


def _next_number(home: Path) -> Path:
    """A new directory, named by a number that no other process has taken."""
    _make(home)
    while True:
        taken = [n for n in (number_of(p.name) for p in home.iterdir()) if n is not None]
        out = home / str(max(taken, default=0) + 1)
        try:
            out.mkdir()
        except FileExistsError:
            continue  # another process was quicker
        return out


def read_config(run_dir: Path) -> Config:
    """The resolved config in a run directory.

    Raises:
        UserError: there is none, it is damaged, or it was written by another version of the code.
    """
    path = run_dir / CONFIG
    if not path.is_file():
        again = (
            "; the command that made the run writes it anew" if (run_dir / LOCK).exists() else ""
        )
        raise UserError(f"{run_dir}: no {CONFIG} there, so it is no run directory{again}")
    try:
        return from_dict(load(path))
    except OSError:
        raise
    except Exception as error:  # whatever is in it, the run has not written it so
        said = str(error).removeprefix(f"{path}: ")
        raise damaged(
            path, said, "delete it: the command that made the run writes it anew"
        ) from None


def _opened(path: Path) -> IO[str]:
    try:
        return path.open("a")
    except FileNotFoundError as error:  # a link that leads nowhere
        raise UserError(f"run_dir: cannot open {path}: {error.strerror}; remove it") from None


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
