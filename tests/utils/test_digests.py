"""Digests of large files are kept, and never those of another file."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from lw_jax.utils import digests


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that counts as large, and that nobody has touched for an hour by its own times."""
    monkeypatch.setattr(digests, "LARGE", 4)
    monkeypatch.setattr(digests, "SETTLED", 0.0)
    path = tmp_path / "weights"
    path.write_bytes(b"first")
    return path


def of(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def test_a_kept_digest_is_read_and_no_changed_file_is_taken_for_it(
    large: Path, tmp_path: Path
) -> None:
    environ = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    assert digests.sha256(large, environ) == of(b"first")
    (record,) = (tmp_path / "cache" / "lw_jax" / "digests").iterdir()
    record.write_text(record.read_text().replace(of(b"first").hex(), of(b"kept").hex()))
    assert digests.sha256(large, environ) == of(b"kept")  # it was not read again

    before = large.stat()
    large.write_bytes(b"other")
    os.utime(large, ns=(before.st_atime_ns, before.st_mtime_ns))  # same size, same time, same inode
    assert digests.sha256(large, environ) == of(b"other")
    record.write_text("{")
    assert digests.sha256(large, environ) == of(b"other")


def test_what_has_just_changed_is_not_kept(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    monkeypatch.setattr(digests, "SETTLED", 3600.0)
    assert digests.sha256(large, environ) == of(b"first")
    assert list((tmp_path / "cache" / "lw_jax" / "digests").iterdir()) == []
    assert digests.sha256(large, {}) == of(b"first")  # no cache is to be had


def test_a_file_of_the_hub_is_named_by_its_digest(tmp_path: Path) -> None:
    for named in (of(b"what the hub says"), b""):
        blob = tmp_path / "blobs" / (named.hex() or "0" * 40)
        blob.parent.mkdir(exist_ok=True)
        blob.write_bytes(b"bytes")
        link = tmp_path / f"model-{len(named)}.safetensors"
        link.symlink_to(blob)
        assert digests.sha256(link, {}) == (named or of(b"bytes"))
