"""The command line: what to do, with which file, with which flags."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lw_jax.errors import UserError
from lw_jax.utils import shipped

Action = Literal["run", "help", "version", "print_config", "doctor", "plan", "dry_run", "evaluate"]
Flag = tuple[str, str]
"""A dotted key and the text of its value."""

USAGE = """\
usage: python -m lw_jax.launch --config FILE [--KEY=VALUE ...]     run a config, or go on with it
                               --config FILE --config OVER ...     the same; OVER's keys override
                               --config FILE --sweep KEY=A,B ...   a run for each value, one table
                                                                   (or `sweep: {KEY: [A, B]}` in it)
       python -m lw_jax.launch --doctor --config FILE ...          check it before it costs anything
       python -m lw_jax.launch --plan --config FILE ...            bytes on each device; with
                                                                   --devices=N --device_gb=GB of
                                                                   others than those that are here,
                                                                   or --topology=v5e:4x4 of a TPU
       python -m lw_jax.launch --dry_run --config FILE ...         list a sweep's runs, start none
       python -m lw_jax.launch --print_config --config FILE ...    print it with all defaults
       python -m lw_jax.launch --evaluate RUN_DIR [--KEY=VALUE]    evaluate a finished run again,
                                                                   or a bridge that was exported
                                                                   (python -m lw_jax.runs.export)
       python -m lw_jax.launch --help [KEY]                        this, or every key under KEY
       python -m lw_jax.launch --help all                          every key
       python -m lw_jax.launch --version

Compiled programs are kept in $JAX_COMPILATION_CACHE_DIR, or lw_jax/xla in the user's cache
directory, for the next start; JAX_ENABLE_COMPILATION_CACHE=0 keeps none.
"""


def overview() -> str:
    """The usage and the first level of keys, read from the schema's source text: no jax needed."""
    text = Path(__file__).with_name("schema.py").read_text(encoding="utf-8")
    classes = [n for n in ast.parse(text).body if isinstance(n, ast.ClassDef)]
    (about,) = (ast.get_docstring(n) for n in classes if n.name == "Config")
    keys = (about or "").partition("Args:\n")[2]
    return f"{USAGE}\nKeys of a config (--help KEY for those below one):\n\n{keys}\n"


@dataclass(frozen=True)
class Command:
    """A command line.

    Attributes:
        action: what to do.
        target: the config file; or the run directory to evaluate; or the key of a help.
        flags: keys and the text of their values.
        over: config files that override the first, in order.
        sweep: keys, each with several values.
    """

    action: Action
    target: str
    flags: tuple[Flag, ...] = ()
    over: tuple[str, ...] = ()
    sweep: tuple[Flag, ...] = ()


def read_command(argv: Sequence[str]) -> Command:
    """The command in the arguments after the program's name.

    Raises:
        UserError: no config, a flag without a value, or something that is not a flag.
    """
    actions: set[Action] = set()
    given: dict[str, str] = {}
    over: list[str] = []
    flags: list[Flag] = []
    sweep: list[Flag] = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if word in ("-h", "--help"):
            return Command("help", rest[0].lstrip("-") if rest else "")
        if word == "--version":
            return Command("version", "")
        if word == "doctor":
            word = "--doctor"
        if not word.startswith("--"):
            near = f"; did you mean -{word}?" if word.startswith("-") and len(word) > 2 else ""
            raise UserError(f"unexpected {word!r}: flags look like --key=value (see --help){near}")
        key, equals, value = word[2:].partition("=")
        if key in ("doctor", "plan", "print_config", "dry_run") and not equals:
            actions.add(key)  # type: ignore[arg-type]
            continue
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise UserError(f"--{key}: needs a value: --{key}=VALUE")
            value = rest.pop(0)
        if key == "sweep":
            swept, equals, values = value.partition("=")
            if not equals:
                raise UserError(f"--sweep {value}: give values as well: --sweep KEY=A,B")
            sweep.append((swept, values))
            continue
        if key in ("config", "evaluate"):
            if key in given and key == "config":
                over.append(value)
                continue
            if key in given:
                raise UserError(f"--{key}: given twice; one run has one")
            given[key] = value
        else:
            flags.append((key, value))
    if len(given) != 1:
        raise UserError("give either --config FILE or --evaluate RUN_DIR (see --help)")
    if len(actions) > 1 or (actions and "evaluate" in given):
        raise UserError(
            "give one of --doctor, --plan, --print_config, --dry_run and --evaluate at a time"
        )
    action: Action = actions.pop() if actions else "evaluate" if "evaluate" in given else "run"
    if sweep and action not in ("run", "dry_run"):
        raise UserError(f"--sweep: goes with --config alone, not with --{action}")
    target, *more = (shipped.found(path) for path in (next(iter(given.values())), *over))
    return Command(action, target, tuple(flags), tuple(more), tuple(sweep))
