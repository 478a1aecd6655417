"""`python -m lw_jax.launch --config x.yaml`: run a config's stages in order."""

from __future__ import annotations

import copy
import importlib
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from lw_jax import __version__
from lw_jax.config import yaml_files
from lw_jax.config.command import overview, read_command
from lw_jax.errors import UserError

OK, BAD_INPUT, INTERRUPTED = 0, 2, 130
CONFIG_FILE = yaml_files.RUN_CONFIG
WIDTH = 140
"""Columns of output to a file or a pipe."""


def main(argv: Sequence[str]) -> int:
    """Does what the command line says.

    Returns:
        The exit code of the process.
    """
    try:
        return _dispatch(argv)
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print(
            "interrupted; run the same command again to go on from the last checkpoint",
            file=sys.stderr,
        )
        return INTERRUPTED
    except SystemExit as stop:  # a stage was asked to stop, and has saved its state
        return stop.code if isinstance(stop.code, int) else OK


def _dispatch(argv: Sequence[str]) -> int:
    # A wrong command line, a missing or broken file are answered before jax is loaded.
    command = read_command(argv)
    if command.action == "version":
        print(f"lw_jax {__version__}")
        return OK
    if command.action == "help" and not command.target:
        print(overview(), end="")
        return OK
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    if command.action == "help":
        from lw_jax.config.help import print_help

        print_help("" if command.target == "all" else command.target, console)
        return OK
    if command.action == "evaluate":
        if not (Path(command.target) / CONFIG_FILE).is_file():
            raise UserError(f"{command.target}: no {CONFIG_FILE} there, so it is no run directory")
        return evaluate_again(Path(command.target), command.flags, console)
    for file in (command.target, *command.over):
        yaml_files.load(file)
    line = f"python -m lw_jax.launch {shlex.join(argv)}"
    from lw_jax.config import parse

    if command.sweep or (command.action == "run" and parse.files(command.target, command.over)[1]):
        from lw_jax.runs.grid import grid
        from lw_jax.runs.sweep import sweep

        home, points = grid(command.target, command.flags, command.over, command.sweep)
        sweep(home, points, console, lambda config: run(config, console, line))
        return OK
    config = parse.read(command.target, command.flags, command.over)
    if command.action == "print_config":
        print(parse.to_yaml(config), end="")
        return OK
    if command.action == "doctor":
        from lw_jax.runs.doctor import examine, report

        return report(examine(config), console)
    return run(config, console, line)


def run(config: Any, console: Console, command: str) -> int:
    """Runs the stages of a config in order; finished ones are skipped."""
    from lw_jax.mesh import make_mesh
    from lw_jax.runs.directory import check_directory, open_run
    from lw_jax.runs.doctor import check
    from lw_jax.runs.session import Session

    check_directory(config)
    session = Session()
    check(config, session)
    with (
        stoppable(console),
        open_run(config, make_mesh(config.mesh), console, command, session) as this,
    ):
        console.print(f"run directory: {this.run_dir}", highlight=False)
        for name in config.stages:
            if name in this.finished():
                console.print(f"{name}: done already", highlight=False)
            else:
                run_stage(this, name)
    return OK


@contextmanager
def stoppable(console: Console) -> Iterator[None]:
    """While inside, SIGTERM ends the process with code 0; a stage that is training saves first."""

    def stop(number: int, frame: FrameType | None) -> None:
        console.print("stopped: run the same command again to go on", highlight=False)
        raise SystemExit(OK)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run_stage(this: Any, name: str) -> None:
    """Runs one stage: `lw_jax.stages.<kind>.run(run, name, config)`."""
    from lw_jax.utils.registry import chosen

    ((kind, config),) = chosen(this.config.stages[name]).items()
    began = time.monotonic()
    this.session.begin(this.config, kind)
    stage_module(kind).run(this, name, config)
    this.finish(name, round(time.monotonic() - began, 1))


def stage_module(kind: str) -> Any:
    """The module of a kind of stage."""
    return importlib.import_module(f"lw_jax.stages.{kind}")


def evaluate_again(run_dir: Path, flags: Sequence[tuple[str, str]], console: Console) -> int:
    """Evaluates a finished run with other data, methods or decoding, into a new directory.

    A flag names a field of the evaluate stage (`--methods`, `--data...`), else one of the config.

    Args:
        run_dir: directory of the run.
        flags: keys and the text of their values.
        console: prints for people.

    Returns:
        The exit code.
    """
    from lw_jax.config import parse, tree
    from lw_jax.config.schema import Config
    from lw_jax.evaluate.config import EvaluateConfig
    from lw_jax.mesh import make_mesh
    from lw_jax.runs.directory import open_evaluation, read_config
    from lw_jax.runs.doctor import check
    from lw_jax.runs.places import located
    from lw_jax.runs.session import Session

    raw = parse.to_dict(read_config(run_dir))
    kept = [name for name, stage in raw["stages"].items() if "evaluate" in stage]
    name = kept[-1] if kept else "evaluate"
    stage = raw["stages"].setdefault(name, {"evaluate": {}})["evaluate"]
    for key, text in flags:
        first, _, rest = key.partition(".")
        if first == "layout" and stage.get("layout") is None:
            stage["layout"] = copy.deepcopy(raw["layout"])
        if first == "data" and stage.get("data") is None:
            # fields that are not given are those of the run's own rows, if of the same kind
            own, variant = raw["data"], rest.partition(".")[0]
            stage["data"] = copy.deepcopy(own) if variant in own else {}
        if first in tree.fields(EvaluateConfig):
            parse.put(EvaluateConfig, stage, key, text)
        else:
            parse.put(Config, raw, key, text)
    config = located(parse.from_dict(raw), run_dir)
    session = Session()
    check(config, session)
    this = open_evaluation(config, run_dir, make_mesh(config.mesh), console, session)
    console.print(f"evaluating {run_dir} again into {this.out_dir}", highlight=False)
    run_stage(this, name)
    return OK


def cli() -> None:
    """The entry point of the command `lw-jax`."""
    set_environment(os.environ)
    raise SystemExit(main(sys.argv[1:]))


def set_environment(environ: MutableMapping[str, str]) -> None:
    """Sets variables that the libraries read when they are loaded; the user's own values stay."""
    environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # batches may come from forked workers
    environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    flags = environ.get("XLA_FLAGS", "")
    if "xla_gpu_enable_triton_gemm" not in flags:
        # On a GPU, to time Triton's kernels against cuBLAS's for each product of each program takes
        # longer than it gains: docs/results/speed.md.
        environ["XLA_FLAGS"] = f"{flags} --xla_gpu_enable_triton_gemm=false".strip()


if __name__ == "__main__":
    cli()
