"""What a command cannot read or write is said before anything is done."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from lw_jax.__main__ import main


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("encode zoo/bridges/facts HERE/text -o HERE/no/where.lwj", "there is no directory"),
        ("encode zoo/bridges/facts HERE/text -o HERE", "is a directory; give a file"),
        ("encode zoo/bridges/facts HERE/none", "encode: HERE/none: no such file or directory"),
        ("decode --ask Who?", "decode: BRIDGE: missing"),
        (
            "decode zoo/bridges/facts -m HERE/text --questions HERE/latin",
            "decode: HERE/latin: byte 3 is no UTF-8",
        ),
        ("encode zoo/bridges/facts HERE/latin -o HERE/x", "encode: HERE/latin: byte 3 is no UTF-8"),
        ("decode zoo/bridges/facts --questions -", "cannot both come from standard input"),
        ("export zoo/bridges/facts HERE/text", "export: HERE/text is a file; give a directory"),
        ("export zoo/bridges/facts HERE", "HERE holds other files; give a directory that is not"),
        ("export zoo/bridges/facts HERE/text/x", "export: HERE/text/x: HERE/text is a file"),
        ("export zoo/bridges/facts HERE/x --push=me", "'me' is no name of a repository"),
        ("export zoo/bridges/facts HERE/x --public", "export: --public goes with --push"),
        ("export zoo/bridges/facts HERE/x --hf --licence=", "--licence: expected a name"),
        ("init zoo/tiny-llama zoo/tiny-qwen facts -o HERE --force", "is a directory; give a file"),
        ("init zoo/tiny-llama zoo/tiny-qwen facts -o /proc/x.yaml", "init: /proc/x.yaml: no such"),
        ("init zoo/tiny-llama zoo/tiny-qwen facts --out=", "the file to write is empty"),
        ("probe skill HERE --out=", "--out: the name of the directory to write is empty"),
        ("encode zoo/bridges/facts HERE/text --out=", "the name of the file to write is empty"),
        ("compare HERE HERE --out=", "compare: the name of the file to write is empty"),
        ("export zoo/bridges/facts HERE/no/x --as=vllm_chat --text=A.", "there is no directory"),
        ("compare HERE HERE --out=HERE/no/x.html", "there is no directory"),
        ("sweep configs/quickstart.yaml", "sweep: nothing varies; give KEY=A,B"),
        ("sweep configs/quickstart.yaml --seed=3", "sweep: nothing varies"),
        ("train configs/quickstart.yaml seed=3", "seed=3: no such file; a key is set by --seed=3"),
        ("serve HERE --role=sender --receiver=there", "expected http://HOST:PORT"),
        ("serve HERE --role=sender --receiver=http://a:b", "expected http://HOST:PORT"),
        ("serve HERE --role=sender --receiver=ftp://a:1", "expected http://HOST:PORT"),
        ("serve HERE --receiver=http://there:1", "give --role sender"),
        ("serve HERE --role=receiver --receiver=http://there:1", "give --role sender"),
        ("serve HERE --host=300.1.1.1", "300.1.1.1:8000: "),
        ("serve HERE --port=99999", "use another --port"),
    ],
)
def test_one_line_before_anything_is_loaded(
    words: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text").write_text("A text.")
    (tmp_path / "latin").write_bytes(b"Caf\xe9?")
    assert main(words.replace("HERE", str(tmp_path)).split()) == 2
    err = capsys.readouterr().err
    assert said.replace("HERE", str(tmp_path)) in err and len(err.splitlines()) == 1
    assert "Errno" not in err and err.count(f"{words.split()[0]}: ") <= 1
    assert sorted(one.name for one in tmp_path.iterdir()) == ["latin", "text"]


class Typed(io.TextIOWrapper):
    """A terminal."""

    def isatty(self) -> bool:
        return True


def test_bytes_are_not_written_to_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", Typed(io.BytesIO()))
    assert main(["encode", "zoo/bridges/facts", "README.md"]) == 2
    assert "give -o FILE, or a pipe" in capsys.readouterr().err


def test_what_waits_for_the_keyboard_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", Typed(io.BytesIO(b"junk")))
    assert main(["decode", "--about"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "decode: reading what you type; Ctrl-D ends it"
    assert "no lw_jax latent" in said[1]


def test_what_ships_is_found_from_any_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["convert", "zoo/tiny-llama", "out"]) == 2
    assert "safetensors are read as they are" in capsys.readouterr().err
    assert main(["init", "zoo/tiny-llama", "zoo/tiny-qwen", "facts"]) == 0
    assert "  path: zoo/tiny-llama\n" in Path("bridge.yaml").read_text()
    assert "written to bridge.yaml" in capsys.readouterr().out


@pytest.mark.slow  # tests/runs/test_plan.py plans a smaller one
def test_what_it_needs_is_planned_at_once_from_any_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", "zoo/tiny-llama", "zoo/tiny-qwen", "facts", "--plan"]) == 0
    assert "1% of a device" in capsys.readouterr().out


def test_own_configs_are_listed_beside_those_that_ship(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "configs").mkdir()
    for name in ("mine", "quickstart"):
        (tmp_path / "configs" / f"{name}.yaml").write_text(f"# My own {name}.\nname: x\n")
    monkeypatch.chdir(tmp_path)
    assert main(["configs"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["configs/mine.yaml"] == "My own mine"
    assert lines["configs/quickstart.yaml"] == "My own quickstart"  # as a command takes it
    assert "configs/facts.yaml" in lines and "zoo/bridges/facts" in lines
