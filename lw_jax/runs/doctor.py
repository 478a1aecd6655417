"""Checks of a config before it costs anything: models, tokenizers, rows, mesh, memory.

`check` runs before every run and raises the first error; `--doctor` shows all findings.
"""

from __future__ import annotations

import os

import jax
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lw_jax.bridge import engines
from lw_jax.config.schema import Config
from lw_jax.errors import UserError
from lw_jax.mesh import make_sender_mesh, mesh_shape
from lw_jax.models.dims import sizes
from lw_jax.models.spec import SENDER
from lw_jax.runs.check_models import check_model, check_needed, check_taps, check_weights
from lw_jax.runs.check_rows import check_layout, check_lengths, check_rows
from lw_jax.runs.check_stages import (
    check_batches,
    check_memory,
    check_schedules,
    check_shapes,
    check_starts,
)
from lw_jax.runs.directory import run_directory
from lw_jax.runs.findings import Examination, Finding
from lw_jax.runs.frozen import sender_arch
from lw_jax.runs.memory import address_space, host_memory, in_words
from lw_jax.runs.opened import Session
from lw_jax.runs.ready import check_free
from lw_jax.train import board
from lw_jax.utils.device import use_device


def check(config: Config, session: Session | None = None) -> list[Finding]:
    """Raises the first error that `examine` finds, without the estimate of memory.

    Args:
        config: config of the run.
        session: session of the run, which keeps the models that are opened here; None: a new one.

    Returns:
        All findings.

    Raises:
        UserError: anything wrong that can be known before the run.
    """
    findings = examine(config, memory=False, session=session)
    for finding in findings:
        if finding.level == "error":
            text = finding.text
            raise UserError(
                text
                if text.startswith((f"{finding.key}:", f"{finding.key}."))
                else f"{finding.key}: {text}"
            )
    return findings


def examine(
    config: Config,
    memory: bool = True,
    session: Session | None = None,
    directory: bool = False,
) -> list[Finding]:
    """All findings.

    Args:
        config: config of the run.
        memory: whether the steps are compiled, to say how much memory they need.
        session: session of the run, which keeps the models that are opened here; None: a new one.
        directory: whether the run directory and the device of a run from here are looked at.
    """
    return examined(config, memory, session, directory).findings


def examined(
    config: Config,
    memory: bool = True,
    session: Session | None = None,
    directory: bool = False,
    files: bool = True,
) -> Examination:
    """The same as `examine`, with all that was found on the way; `files`: see `Examination`."""
    seen = Examination(config, session or Session(), files)
    if directory:
        with seen.trying("run_dir"):
            check_free(config)
            seen.note("ok", "run_dir", str(run_directory(config)))
        with seen.trying("device"):
            use_device(config.device, os.environ)
            seen.note("ok", "device", jax.devices()[0].device_kind)
    with seen.trying("mesh"):
        shape = mesh_shape(config.mesh, jax.device_count())
        of_each = " x ".join(map(str, shape))
        more = ""
        if (sender_mesh := make_sender_mesh(config.mesh)) is not None:
            more = f", and for the sender {' x '.join(map(str, sender_mesh.shape.values()))}"
        seen.note("ok", "mesh", f"{of_each}{more} of {jax.device_count()} devices")
        check_batches(seen, shape[0] * shape[1])
    if limit := address_space():
        text = (
            f"a process may have {in_words(limit)} of addresses here (ulimit -v), and the memory "
            f"is {in_words(host_memory())}: where it needs more it ends without a message "
            "(std::bad_alloc, SIGABRT); raise the limit"
        )
        seen.note("warning", "memory", text)
    if config.sender is not None:
        check_model(seen, SENDER, config.sender)
    for name, model in config.receivers.items():
        check_model(seen, name, model)
    check_schedules(seen)
    for name, stage in config.stages.items():
        if stage.train is not None and stage.train.tensorboard:
            with seen.trying(f"stages.{name}.train.tensorboard"):
                board.check()
    if config.bridge is not None and (config.sender is None or SENDER in seen.specs):
        with seen.trying("bridge"):
            known = {n: sizes(seen.specs[n].arch) for n in config.receivers if n in seen.specs}
            dims = config.bridge.dims(sender_arch(seen.specs), known)
            for name in config.bridge.views:
                one = dims.of_view(name)
                text = f"{one.taps} taps of width {one.source_width}"
                key = f"bridge.sources.{name}" if config.bridge.sources else "bridge.source"
                seen.note("ok", key, text if one.taps else "the text itself, no sender")
                check_taps(seen, key, name)
            seen.note("ok", "bridge.reader", engines.summary(config.bridge, config.layout))
        if SENDER in seen.specs and seen.sound:
            with seen.trying("sender.path"):
                check_needed(seen, seen.specs[SENDER].check_files)
    check_rows(seen)
    if config.bridge is not None and seen.sound:
        check_lengths(seen)
    if config.bridge is not None and seen.sound and seen.groups:
        check_layout(seen)
        if seen.sound:
            check_shapes(seen, steps=not memory)
        if seen.sound:
            check_starts(seen)
        if memory and seen.sound:
            check_memory(seen)
    if memory:
        check_weights(seen)
    return seen


def report(findings: list[Finding], console: Console) -> int:
    """Prints the findings.

    Returns:
        The exit code.
    """
    colours = {"ok": "green", "warning": "yellow", "error": "red"}
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column()
    for found in findings:
        table.add_row(Text(found.level, colours[found.level]), Text(found.key), Text(found.text))
    console.print(table)
    errors = sum(f.level == "error" for f in findings)
    console.print(
        Text(f"{errors} error{'s' * (errors != 1)}" if errors else "ready to run", "bold")
    )
    return 2 if errors else 0
