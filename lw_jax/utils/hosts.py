"""Several processes, on one host or many, that run one config together.

Each holds its own devices, reads its own rows, and takes part in every program. Process 0 alone
writes files and says things; what goes wrong, every process says for itself. They meet before one
reads what another has written (`meet`), and agree on the step after which they stop (`Agreed`).
"""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Le, MaxLen, MinLen

from lw_jax.errors import UserError, said
from lw_jax.utils.bounds import Checked

COORDINATOR, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
"""Environment variables with the same meaning as the config's keys."""
SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID")
"""Variables that a process has that `srun` started."""
TPU = ("accel0", "vfio/0")
"""Devices of a TPU host, in /dev."""
AHEAD = 4
"""Steps that processes may be apart, and some more: after so many all have seen what one asks."""

LATER = 30
"""Seconds by which jax gives up later than this does."""


@dataclass(frozen=True)
class HostsConfig(Checked):
    """Several processes that run one config together. SLURM's variables (one process a task of
    `srun`) and a TPU pod are seen by themselves; elsewhere each process is told.

    Args:
        coordinator: `HOST:PORT` of process 0, as all processes reach it (also
            JAX_COORDINATOR_ADDRESS).
        count: processes altogether (also JAX_NUM_PROCESSES); 1 is one process whatever SLURM says.
        index: of this process, from 0 (also JAX_PROCESS_ID).
        timeout: seconds within which all must have come, at the start and wherever they meet.
    """

    coordinator: Annotated[str, MinLen(3), MaxLen(300)] | None = None
    count: Annotated[int, Ge(1), Le(2**16)] | None = None
    index: Annotated[int, Ge(0), Le(2**16)] | None = None
    timeout: Annotated[float, Ge(1), Le(86_400)] = 300.0


@dataclass(frozen=True)
class Place:
    """Of one process among several.

    Attributes:
        coordinator: `HOST:PORT` of process 0; None: jax finds it (a TPU pod).
        count: processes altogether.
        index: of this one.
        devices: which of the host's devices are its own; None: all.
        how: what says so, for people.
    """

    coordinator: str | None
    count: int
    index: int
    devices: tuple[int, ...] | None = None
    how: str = ""


@dataclass
class _Here:
    """What this process knows of the others."""

    count: int = 1
    index: int = 0
    timeout: float = 300.0
    meetings: int = 0


_here = _Here()


def first() -> bool:
    """Whether this is the process that writes and speaks."""
    return _here.index == 0


def count() -> int:
    """How many processes there are."""
    return _here.count


def place(config: HostsConfig, environ: Mapping[str, str]) -> Place | None:
    """Where this process is among several; None: it is alone, or on a TPU, which jax asks.

    Args:
        config: what the config says; it is taken before what the environment says.
        environ: environment variables.

    Raises:
        UserError: a part is missing, or is no number, or contradicts another.
    """
    if config.count == 1:
        return None
    given: dict[str, Any] = {
        "coordinator": config.coordinator or environ.get(COORDINATOR) or None,
        "count": config.count if config.count is not None else _whole(environ, COUNT),
        "index": config.index if config.index is not None else _whole(environ, INDEX),
    }
    if given["count"] == 1 and given["coordinator"] is None:
        return None
    if all(value is None for value in given.values()):
        return _slurm(environ)
    names = {"coordinator": COORDINATOR, "count": COUNT, "index": INDEX}
    if missing := [name for name, value in given.items() if value is None]:
        both = " and ".join(f"hosts.{name} ({names[name]})" for name in missing)
        raise UserError(f"hosts: {both} missing; a run of several processes needs all three")
    if not re.fullmatch(r"[^\s:]+:[0-9]{1,5}|\[[0-9a-fA-F:]+\]:[0-9]{1,5}", given["coordinator"]):
        raise UserError(
            f"hosts.coordinator: expected HOST:PORT of process 0; got {given['coordinator']!r}"
        )
    if given["index"] >= given["count"]:
        raise UserError(
            f"hosts.index: {given['index']} of {given['count']} processes; they count from 0"
        )
    return Place(**given, how="hosts")


def _whole(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name, "").strip()
    if not text:
        return None
    if not text.isdecimal():
        raise UserError(f"{name}: expected a whole number; got {text[:40]!r}")
    return int(text)


def _slurm(environ: Mapping[str, str]) -> Place | None:
    """The place of a task of `srun`; None: it is none, or the only one."""
    if any(name not in environ for name in SLURM):
        return None
    many = _whole(environ, "SLURM_STEP_NUM_TASKS") or _whole(environ, "SLURM_NTASKS") or 1
    if many == 1:
        return None
    job, index = _whole(environ, SLURM[0]) or 0, _whole(environ, SLURM[2]) or 0
    port = 61440 + job % 4096  # each job has another
    host = first_host(environ[SLURM[1]])
    per_node = _whole(environ, "SLURM_STEP_NUM_NODES") or many
    own = None
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if many > per_node and (visible is None or "," in visible):  # several tasks see all GPUs
        local = _whole(environ, "SLURM_LOCALID")
        own = None if local is None else (local,)
    return Place(f"{host}:{port}", many, index, own, f"SLURM job {job}")


def first_host(nodes: str) -> str:
    """The first of SLURM's list of nodes, `gpu[003-007,012],login1`: gpu003."""
    name, bracket, rest = nodes.partition("[")
    if not bracket or "," in name:
        return nodes.partition(",")[0]
    return name + re.split(r"[,\]-]", rest, maxsplit=1)[0]


def _tpu(root: Path = Path("/dev")) -> bool:
    return find_spec("libtpu") is not None and any((root / name).exists() for name in TPU)


def join(config: HostsConfig, environ: Mapping[str, str], say: Callable[[str], None]) -> None:
    """Joins the other processes, if there are any; once, before jax uses a device.

    Args:
        config: how.
        environ: environment variables.
        say: is told in one line.

    Raises:
        UserError: what was given is not right, or the others did not come in time.
    """
    _here.timeout = config.timeout
    if _here.count > 1:
        return
    found = place(config, environ)
    tpu = found is None and config.count != 1 and _tpu() and "cpu" not in _platforms(environ)
    if found is None and not tpu:
        return
    import jax  # here: a command line is read before it is loaded

    jax.config.update("jax_enable_preemption_service", False)  # SIGTERM is seen to by `Agreed`
    for name in ("jax._src.distributed", "jax._src.clusters"):
        logging.getLogger(name).setLevel(logging.ERROR)
    given: dict[str, Any] = {"initialization_timeout": int(config.timeout) + LATER}
    if found is not None:
        given |= {
            "coordinator_address": found.coordinator,
            "num_processes": found.count,
            "process_id": found.index,
            "local_device_ids": found.devices,
            "cluster_detection_method": "deactivate",
        }
        if found.index:
            _wait_for(found, config.timeout)
    late = threading.Timer(config.timeout, _give_up, (found, config.timeout))
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(**given)
        _here.count, _here.index = jax.process_count(), jax.process_index()
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(_not_there(found, config.timeout, error)) from error
    finally:
        late.cancel()
    if found is not None and _here.count != found.count:
        raise UserError(f"hosts: {found.count} processes asked for; jax has {_here.count}")
    if _here.count > 1 and first():
        say(f"process 0 of {_here.count} ({'TPU' if found is None else found.how})")


def _platforms(environ: Mapping[str, str]) -> str:
    import jax

    return str(getattr(jax.config, "jax_platforms", None) or environ.get("JAX_PLATFORMS", ""))


def _wait_for(found: Place, seconds: float) -> None:
    """Waits until process 0 listens: jax would end the process without a word that helps."""
    assert found.coordinator is not None
    host, _, port = found.coordinator.rpartition(":")
    end = time.monotonic() + seconds
    while True:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=5):
                return
        except OSError as error:
            if time.monotonic() > end:
                raise UserError(_not_there(found, seconds, error)) from error
        time.sleep(0.2)


def _give_up(found: Place | None, seconds: float) -> None:
    """Ends a process whose others did not come, before jax does so with a trace of its own."""
    said_so = _not_there(found, seconds, TimeoutError("they did not come"))
    print(f"error: {said_so}", file=sys.stderr, flush=True)
    os._exit(2)


def _not_there(found: Place | None, seconds: float, error: Exception) -> str:
    if found is None:
        return f"hosts: this TPU's other hosts cannot be reached ({said(error, 200)})"
    who = "the other processes" if found.index == 0 else f"process 0 at {found.coordinator}"
    return (
        f"hosts: process {found.index} of {found.count} waited {seconds:g} s for {who} "
        f"({said(error, 160)}): start all {found.count} with the same hosts.coordinator and "
        "hosts.count, open the port between them, or raise hosts.timeout"
    )


def _client() -> Any:
    from jax._src import distributed  # jax offers its processes no other way to talk

    return distributed.global_state.client


def meet(where: str) -> None:
    """Waits until all processes are here; nothing where there is one.

    Args:
        where: for people.

    Raises:
        UserError: they did not come in time.
    """
    if _here.count == 1:
        return
    _here.meetings += 1
    try:
        _client().wait_at_barrier(f"lw_jax/{_here.meetings}", int(_here.timeout * 1000))
    except RuntimeError as error:
        raise UserError(
            f"hosts: not all of {_here.count} processes came to {where} within "
            f"{_here.timeout:g} s ({said(error, 160)}): see what the others say, start all of "
            "them again, or raise hosts.timeout"
        ) from error


def agree(name: str, value: str) -> str:
    """What process 0 says of something, for all of them to go by; `value` where there is one.

    Args:
        name: of what; each name once.
        value: what this process would say.

    Raises:
        UserError: process 0 did not say it in time.
    """
    if _here.count == 1:
        return value
    key = f"lw_jax/said/{name}"
    try:
        if first():
            _client().key_value_set(key, value)
        found: str = _client().blocking_key_value_get(key, int(_here.timeout * 1000))
    except RuntimeError as error:
        raise UserError(f"hosts: process 0 did not say {name} ({said(error, 160)})") from error
    return found


class Agreed:
    """A step after which all processes stop, once one of them is asked to.

    Args:
        name: of the stage; each is trained once in a process.
    """

    def __init__(self, name: str) -> None:
        self.key = f"lw_jax/stop/{name}/{_here.meetings}"
        self.at: int | None = None

    def __call__(self, asked: bool, step: int) -> bool:
        """Whether to stop after a step.

        Args:
            asked: whether this process was asked to stop.
            step: that it has taken. The processes take the same steps, and wait in each for the
                metrics of the one before, so that none is two ahead of another.
        """
        if _here.count == 1:
            return asked
        if self.at is None and asked:
            with_all = str(step + AHEAD)
            with suppress(RuntimeError):  # another was asked as well, and said so first
                _client().key_value_set(self.key, with_all)
        if self.at is None:
            try:
                self.at = int(_client().key_value_try_get(self.key))
            except RuntimeError:  # nobody was asked
                return False
        return step >= self.at


def quiet_but_first() -> None:
    """From here on, what processes other than the first print is not shown; errors are."""
    if not first():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  (until the end)
