"""Errors of the machine (a full disk, too little memory), told apart from those of the program."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator

from lw_jax.errors import short

_DISK = {
    errno.ENOSPC: "the disk is full: make room",
    errno.EDQUOT: "the quota of the disk is used up: make room",
    errno.EFBIG: "the limit on the size of a file is reached: raise it (ulimit -f)",
    errno.EROFS: "the place is read-only: make it writable, or give another --run_dir",
    errno.EACCES: "permission denied: change it, or give another --run_dir",
    errno.EPERM: "not permitted: change that, or give another --run_dir",
    errno.EMFILE: "too many open files: raise the limit (ulimit -n)",
    errno.ENFILE: "too many open files on this machine: close some",
    errno.EIO: "the disk failed to read or write: check it",
    errno.ESTALE: "the network's disk has lost the file: check it",
    errno.ETIMEDOUT: "the disk did not answer: check it",
    errno.ENOTDIR: "a file stands where a directory is needed: move it, or give another --run_dir",
    errno.EISDIR: "a directory stands where a file is needed: move it, or give another --run_dir",
    errno.ENAMETOOLONG: "the name is too long: give a shorter --run_dir",
    errno.ELOOP: "symbolic links lead in a circle: give another --run_dir",
    errno.ENOMEM: "the machine has too little memory: free some",
}
_NUMBER = re.compile(r"os_error_code='?(\d+)|\[Errno (\d+)\]|OS error (\d+)")
_WORDS = (
    ("no space left on device", errno.ENOSPC),
    ("quota exceeded", errno.EDQUOT),
    ("file too large", errno.EFBIG),
    ("read-only file system", errno.EROFS),
    ("permission denied", errno.EACCES),
    ("too many open files", errno.EMFILE),
    ("input/output error", errno.EIO),
)
_STATUS = re.compile(r"\b(RESOURCE_EXHAUSTED|PERMISSION_DENIED|UNAVAILABLE|DEADLINE_EXCEEDED)\b")
_MEMORY = re.compile(r"out of memory|failed to allocate|allocat\w+ .*bytes|bad_alloc", re.I)
_REFUSED = re.compile(r"\b(INVALID_ARGUMENT|INTERNAL|UNIMPLEMENTED)\b")
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
"""What `deterministic` asks of the compiler: no operations whose order is not fixed, and no kernels
that are chosen by timing."""
GO_ON = "then run the same command again: nothing that was saved is lost"


def in_one_line(error: BaseException) -> str | None:
    """What failed and what to do about it; None: it is no failure of the machine.

    A `ValueError` or `RuntimeError` counts where its text is that of the file system or of the
    device's memory: Orbax, TensorStore and XLA have no classes for them.
    """
    for one in _chain(error):
        if isinstance(one, MemoryError):
            return _memory(one)
        if isinstance(one, OSError) and one.errno in _DISK:
            where = f"{one.filename}: " if one.filename else ""
            return f"{where}{_DISK[one.errno]}, {GO_ON}"
        if isinstance(one, ValueError | RuntimeError | OSError) and (said := _of_text(one)):
            return said
    return None


def of_storage(error: BaseException) -> bool:
    """Whether a file could not be read or written, which says nothing about what is in it."""
    return any(
        isinstance(one, OSError) or _code(str(one)) is not None for one in _chain(error)
    ) or (bool(_STATUS.search(str(error))))


def _of_text(error: BaseException) -> str | None:
    text = " ".join(str(error).split())
    if (code := _code(text)) is not None:
        return f"{_DISK[code]}, {GO_ON} ({short(text, 160)})"
    if _REFUSED.search(text) and _of_compiler(error) and DETERMINISTIC in _flags():
        return (
            "the compiler cannot make a program without sums in no fixed order: set deterministic "
            f"to false, or try another version of jax ({short(text, 160)})"
        )
    status = _STATUS.search(text)
    if status is None:
        return None
    if _MEMORY.search(text):
        return _memory(error)
    if _of_compiler(error) and status[1] != "RESOURCE_EXHAUSTED":
        return None
    if status[1] == "RESOURCE_EXHAUSTED" and isinstance(error, RuntimeError):
        return _memory(error)
    return f"reading or writing failed: put that right, {GO_ON} ({short(text, 160)})"


def _of_compiler(error: BaseException) -> bool:
    return type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError")


def _flags() -> list[str]:
    return os.environ.get("XLA_FLAGS", "").split()


def _memory(error: BaseException) -> str:
    text = short(" ".join(str(error).split()), 160)
    return (
        "too little memory: lower batch_size, accumulate more, set quant, spread it over devices "
        f"(mesh.fsdp, mesh.tensor), or use a larger one (--plan says what takes how much), {GO_ON}"
        + (f" ({text})" if text else "")
    )


def _code(text: str) -> int | None:
    """The number of an operating system's error in a text."""
    if found := _NUMBER.search(text):
        code = int(next(group for group in found.groups() if group))
        return code if code in _DISK else None
    return next((code for words, code in _WORDS if words in text.lower()), None)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error, and those that caused it."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__
