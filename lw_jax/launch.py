"""`python -m lw_jax.launch --config x.yaml`: run a config's stages in order."""

from __future__ import annotations

import copy
import gc
import hashlib
import importlib
import json
import os
import shlex
import sys
import time
from collections.abc import Iterable, MutableMapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console

from lw_jax import __version__
from lw_jax.config import yaml_files
from lw_jax.config.command import Command, overview, read_command
from lw_jax.errors import UserError
from lw_jax.utils import alive, hosts, kinds, output, program_cache, shipped
from lw_jax.utils.guarded import BAD_INPUT, OK, guarded

CONFIG_FILE = yaml_files.RUN_CONFIG
BRIDGE_FILE = "bridge.json"
EXPORTED = Path("runs/exported")
"""Where evaluations of exported bridges go."""
WIDTH = 140
"""Columns of output to a file or a pipe."""
OBJECTS = 50_000
"""New objects after which Python looks for unreachable ones."""


def main(argv: Sequence[str]) -> int:
    """Does what the command line says.

    Returns:
        The exit code of the process.
    """
    return guarded(lambda: _dispatch(argv))


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

        everything = command.target == "all"
        with console.pager() if everything and console.is_terminal else nullcontext():
            print_help("" if everything else command.target, console)
        return OK
    works = command.action in ("run", "evaluate")
    with alive.watched() if works else nullcontext():
        return _worked(command, console, argv)


def _worked(command: Command, console: Console, argv: Sequence[str]) -> int:
    """What a command line with a config or a run directory asks for."""
    if command.action == "evaluate":
        if not any((Path(command.target) / name).is_file() for name in (CONFIG_FILE, BRIDGE_FILE)):
            raise UserError(
                f"{command.target}: no {CONFIG_FILE} there, so it is no run directory, and no "
                f"{BRIDGE_FILE}, so it is no exported bridge"
            )
        return evaluate_again(Path(command.target), command.flags, console, argv)
    for file in (command.target, *command.over):
        yaml_files.load(file)
    line = f"python -m lw_jax.launch {shlex.join(argv)}"
    if command.action == "plan":
        return plan(command, console)
    from lw_jax.config import parse
    from lw_jax.runs.history import Call

    call = Call.of(argv, command.flags)
    runs = command.action in ("run", "dry_run")
    if command.sweep or (runs and parse.files(command.target, command.over)[1]):
        from lw_jax.runs.grid import grid
        from lw_jax.runs.sweep import listed, sweep

        home, points = grid(command.target, command.flags, command.over, command.sweep)
        if command.action == "dry_run":
            listed(home, points, console)
            return OK
        failed = sweep(home, points, console, lambda config: run(config, console, line, call))
        return BAD_INPUT if failed else OK
    if command.action == "dry_run":
        raise UserError(
            "--dry_run: there is no sweep; give --sweep KEY=A,B (or --doctor for a run)"
        )
    config = parse.read(command.target, command.flags, command.over)
    if command.action == "print_config":
        print(parse.to_yaml(config), end="")
        return OK
    if command.action == "doctor":
        from lw_jax.runs.doctor import examine, report

        return report(examine(with_shipped(config), directory=True), console)
    return run(config, console, line, call)


def plan(command: Command, console: Console) -> int:
    """Prints what memory each stage of a config needs.

    With `--devices=N` on N devices that need not be here, of `--device_gb` each: the host stands
    for them. With `--topology=NAME` on the devices of a TPU that need not be here either, whose
    compiler plans.

    Raises:
        UserError: wrong devices, or jax is loaded already with fewer.
    """
    own, flags, topology = {}, [], None
    for key, text in command.flags:
        if key in ("devices", "device_gb"):
            own[key] = _number(f"--{key}", text)
        elif key == "topology":
            topology = text
        else:
            flags.append((key, text))
    devices, gb = own.get("devices"), own.get("device_gb")
    if topology is not None:
        if devices is not None:
            raise UserError("--topology: it says how many devices there are; leave --devices out")
        if "jax" not in sys.modules:
            os.environ["JAX_PLATFORMS"] = "cpu"
    if devices is not None:
        if devices != int(devices):
            raise UserError(f"--devices: expected a whole number; got {devices:g}")
        if gb is None:
            raise UserError("--device_gb: missing; say how many GB (10^9 bytes) each device has")
        if "jax" not in sys.modules:
            more = f"--xla_force_host_platform_device_count={int(devices)}"
            os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {more}".strip()
            os.environ["JAX_PLATFORMS"] = "cpu"
    from lw_jax.config import parse
    from lw_jax.runs.plan import print_plan

    config = with_shipped(parse.read(command.target, flags, command.over))
    count = None if devices is None else int(devices)
    return print_plan(config, console, count, None if gb is None else int(gb * 1e9), topology)


def _number(where: str, text: str) -> float:
    """A number of at least 1."""
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 1 <= found < 1e6:
        raise UserError(f"{where}: expected a number from 1 up; got {text[:40]!r}")
    return found


def with_shipped(config: Any) -> Any:
    """The config with what ships where it is, from any directory: models, starting bridges."""
    from lw_jax.runs.places import located

    place = shipped.home()
    return config if place is None else located(config, place)


def run(config: Any, console: Console, command: str, call: Any = None) -> int:
    """Runs the stages of a config in order; finished ones are skipped."""
    from lw_jax.mesh import make_mesh
    from lw_jax.runs.directory import check_directory, open_run
    from lw_jax.runs.doctor import check
    from lw_jax.runs.opened import Session
    from lw_jax.utils.device import be_deterministic, use_device

    if config.deterministic:
        be_deterministic(os.environ)
    hosts.join(config.hosts, os.environ, print)
    hosts.quiet_but_first()
    alive.doing("checking the config, its rows and its models")
    use_device(config.device, os.environ)
    config = with_shipped(config)
    same_config(config)
    check_directory(config)
    session = Session()
    warn(check(config, session))
    with open_run(config, make_mesh(config.mesh), console, command, session, call) as this:
        console.print(f"run directory: {this.run_dir}", highlight=False)
        for name in config.stages:
            if name not in this.finished():
                run_stage(this, name)
            elif lost := lost_of(this, name):
                console.print(f"{name}: {lost}", highlight=False, soft_wrap=True)
                run_stage(this, name)
            else:
                console.print(f"{name}: done already", highlight=False)
    return OK


def same_config(config: Any) -> None:
    """Checks that all processes were given the same config, and are of the same version.

    Raises:
        UserError: they were not.
    """
    from lw_jax.config import parse

    plain = {k: v for k, v in parse.to_dict(config).items() if k != "hosts"}
    own = hashlib.sha256(json.dumps([__version__, plain], sort_keys=True).encode()).hexdigest()
    if hosts.agree("config", own) != own:
        raise UserError(
            "hosts: this process was given another config than process 0, or another version of "
            "lw_jax; start all of them with the same file and flags (but for hosts.index)"
        )


def warn(findings: Iterable[Any]) -> None:
    """Prints the warnings among the findings about a config, a line each."""
    for found in findings if hosts.first() else ():
        if found.level == "warning":
            print(f"warning: {found.key}: {found.text}", file=sys.stderr)


def lost_of(this: Any, name: str) -> str | None:
    """What a finished stage has lost of its results, in words, so that it is run again; None:
    nothing, or nothing that a later stage needs.

    Raises:
        UserError: it cannot be had again.
    """
    from lw_jax.utils.registry import chosen

    ((kind, config),) = chosen(this.config.stages[name]).items()
    look = getattr(stage_module(kind), "lost", None)
    return None if look is None else look(this, name, config)


def run_stage(this: Any, name: str) -> None:
    """Runs one stage: `lw_jax.stages.<kind>.run(run, name, config)`."""
    from lw_jax.utils.registry import chosen

    ((kind, config),) = chosen(this.config.stages[name]).items()
    began = time.monotonic()
    alive.doing(f"stage {name}")
    this.session.begin(this.config, kind)
    stage_module(kind).run(this, name, config)
    seconds = round(time.monotonic() - began, 1)
    this.finish(name, seconds)
    hosts.meet(f"the end of stage {name}")
    if kind != "evaluate":  # which has written its own
        from lw_jax.runs import history
        from lw_jax.runs.directory import DIAGNOSTICS

        said = this.run_dir / DIAGNOSTICS
        history.add(
            this.run_dir, history.of_training(this.run_dir, name, kind, seconds, said), this.call
        )


def stage_module(kind: str) -> Any:
    """The module of a kind of stage."""
    return importlib.import_module(f"lw_jax.stages.{kind}")


def evaluate_again(
    run_dir: Path,
    flags: Sequence[tuple[str, str]],
    console: Console,
    argv: Sequence[str] = (),
) -> int:
    """Evaluates a finished run with other data, methods or decoding, into a new directory.

    A flag names a field of the evaluate stage (`--methods`, `--data...`), else one of the config.
    An exported bridge is evaluated as in its own config, into `runs/exported/<its name>`.

    Args:
        run_dir: directory of the run, or of an exported bridge.
        flags: keys and the text of their values.
        console: prints for people.
        argv: words of the command line.

    Returns:
        The exit code.
    """
    from lw_jax.config import parse
    from lw_jax.config.schema import Config
    from lw_jax.evaluate.config import EvaluateConfig
    from lw_jax.mesh import make_mesh
    from lw_jax.runs import receiver_rms
    from lw_jax.runs.directory import open_evaluation, run_directory
    from lw_jax.runs.doctor import check
    from lw_jax.runs.exported import is_exported
    from lw_jax.runs.history import Call
    from lw_jax.runs.opened import Session
    from lw_jax.runs.places import located
    from lw_jax.runs.trained import config_at
    from lw_jax.utils.device import be_deterministic, use_device

    raw, exported = parse.to_dict(config_at(run_dir)), is_exported(run_dir)
    if exported:
        own = {n: stage for n, stage in raw["stages"].items() if "evaluate" in stage}
        raw["stages"] = dict(list(own.items())[-1:])
        raw["run_dir"] = str(EXPORTED / run_dir.resolve().name)
    kept = [name for name, stage in raw["stages"].items() if "evaluate" in stage]
    name = kept[-1] if kept else "evaluate"
    stage = raw["stages"].setdefault(name, {"evaluate": {}})["evaluate"]
    for key, text in flags:
        first, _, rest = key.partition(".")
        other = first == "stages" and rest.partition(".")[0] in raw["stages"].keys() - {name}
        if other or first == "objectives" or (key == "run_dir" and not exported):
            why = "goes into its run's directory" if key == "run_dir" else "trains nothing"
            raise UserError(f"--{key}: an evaluation {why}; leave it out")
        if first == "layout" and stage.get("layout") is None:
            stage["layout"] = copy.deepcopy(raw["layout"])
        if first == "data" and stage.get("data") is None:
            # fields that are not given are those of the run's own rows, if of the same kind
            own, variant = raw["data"], rest.partition(".")[0]
            stage["data"] = copy.deepcopy(own) if variant in own else {}
        if first in kinds.fields(EvaluateConfig):
            parse.put(EvaluateConfig, stage, key, text)
        else:
            parse.put(Config, raw, key, text)
    if exported:
        stage["init_from"] = str(run_dir)
    config = located(parse.from_dict(raw), run_dir)
    if config.deterministic:
        be_deterministic(os.environ)
    hosts.join(config.hosts, os.environ, print)
    if hosts.count() > 1:
        raise UserError("hosts: a run is evaluated again by one process; leave hosts out")
    use_device(config.device, os.environ)
    session, call = Session(), Call.of(argv, flags)
    warn(check(config, session))
    if exported:
        receiver_rms.copy(run_dir, home := run_directory(config))
        run_dir = home
    with open_evaluation(config, run_dir, make_mesh(config.mesh), console, session, call) as this:
        console.print(f"evaluating {run_dir} again into {this.out_dir}", highlight=False)
        run_stage(this, name)
    return OK


def cli() -> None:
    """The entry point of `python -m lw_jax.launch`."""
    set_up()
    raise SystemExit(main(sys.argv[1:]))


def set_up() -> None:
    """Sets this process up for a command line: what it prints, its environment, and that it looks
    less often for unreachable objects, of which rows and the tracing of programs make few."""
    output.never_fails_to_encode()
    set_environment(os.environ)
    gc.set_threshold(OBJECTS)


def set_environment(environ: MutableMapping[str, str]) -> None:
    """Sets variables that the libraries read when they are loaded; the user's own values stay."""
    environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    environ.update(program_cache.settings(environ))
    program_cache.quiet()
    flags = environ.get("XLA_FLAGS", "")
    if "xla_gpu_enable_triton_gemm" not in flags:
        # On a GPU, to time Triton's kernels against cuBLAS's for each product of each program takes
        # longer than it gains: docs/results/speed.md.
        environ["XLA_FLAGS"] = f"{flags} --xla_gpu_enable_triton_gemm=false".strip()


if __name__ == "__main__":
    cli()
