"""What a command line asks, done with an exit code and one line for whatever goes wrong."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from lw_jax.errors import UserError
from lw_jax.utils import output
from lw_jax.utils.failures import in_one_line
from lw_jax.utils.signals import Patience, leave, never_lost

OK, BAD_INPUT, INTERRUPTED = 0, 2, 130


def guarded(work: Callable[[], int]) -> int:
    """Does what a command line asks; what is wrong with it is one line.

    Args:
        work: does it, and gives the exit code.

    Returns:
        The exit code of the process.
    """
    try:
        with stoppable():
            code = work()
            output.written()
            return code
    except UserError as error:
        return _wrong(str(error))
    except KeyboardInterrupt:
        print(
            "interrupted; run the same command again to go on from the last checkpoint",
            file=sys.stderr,
        )
        return INTERRUPTED
    except SystemExit as stop:  # a stage was asked to stop, and has saved its state
        if output.nobody_reads(stop):
            return output.NOBODY_READS
        return stop.code if isinstance(stop.code, int) else OK
    except Exception as error:
        if output.nobody_reads(error):
            return output.NOBODY_READS
        said = in_one_line(error)
        if said is None:
            raise
        return _wrong(said)


def _wrong(line: str) -> int:
    print(f"error: {' '.join(line.split())}", file=sys.stderr)
    return BAD_INPUT


@contextmanager
def stoppable() -> Iterator[None]:
    """While inside, SIGTERM ends the process with code 143; a stage that is training saves first,
    and after Ctrl-C as well."""

    patience = Patience()

    def stop(number: int, frame: FrameType | None) -> None:
        if patience.waits(number, frame):
            return
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        print("stopped: run the same command again to go on", flush=True)
        leave(number)

    if threading.current_thread() is not threading.main_thread():  # which alone gets signals
        yield
        return
    # a script that starts it in the background has Ctrl-C ignored
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with never_lost():
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
