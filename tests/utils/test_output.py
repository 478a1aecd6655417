"""Standard output that cannot hold a character."""

from __future__ import annotations

import io
import sys

import pytest

from lw_jax.__main__ import cli


def test_a_terminal_of_plain_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    held = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(held, encoding="ascii"))
    monkeypatch.setattr(sys, "argv", ["lw-jax", "configs", "a_run_\udcff", "--help"])
    with pytest.raises(SystemExit) as stop:
        cli()
    assert stop.value.code == 0
    for text in ("a row…", "runs/\udcff", "é"):
        print(text)
    sys.stdout.flush()
    assert rb"a row\u2026" in held.getvalue() and rb"runs/\udcff" in held.getvalue()
