"""Row files with all kinds of damage: every row is read, or named, or blank; nothing is lost.

A twentieth by default, with the same seed; the whole under `slow`.
"""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lw_jax.data import classification, gsm8k, hotpotqa, jsonl, squad
from lw_jax.errors import UserError

FILES, LINES, SEED = 400, 12, 20261129

JSONL: dict[str, Callable[[random.Random, dict[str, Any]], bytes]] = {
    "cut": lambda rng, row: json.dumps(row).encode()[: rng.randrange(1, 30)],
    "flipped byte": lambda rng, row: _flipped(rng, json.dumps(row).encode()),
    "not UTF-8": lambda rng, row: b"\xff\xfe" + json.dumps(row).encode(),
    "latin 1": lambda rng, row: json.dumps(row | {"question": "é"}, ensure_ascii=False).encode(
        "latin-1"
    ),
    "blank": lambda rng, row: rng.choice([b"", b" ", b"\t", b"\r", b"\xef\xbb\xbf"]),
    "two on a line": lambda rng, row: json.dumps(row).encode() * 2,
    "list": lambda rng, row: json.dumps(list(row.values())).encode(),
    "scalar": lambda rng, row: rng.choice(
        [b"1", b"null", b'"text"', b"true", b"NaN", b"-Infinity"]
    ),
    "a key less": lambda rng, row: json.dumps(_without(rng, row)).encode(),
    "wrong type": lambda rng, row: json.dumps(row | {rng.choice(list(row)): _wrong(rng)}).encode(),
    "empty text": lambda rng, row: json.dumps(row | {rng.choice(list(row)): " \n"}).encode(),
    "many digits": lambda rng, row: _with(rng, row, "9" * rng.choice([4301, 20_000])),
    "many decimals": lambda rng, row: _with(rng, row, "0." + "3" * 5000),
    "overflow": lambda rng, row: _with(rng, row, "1e999"),
    "nan": lambda rng, row: _with(rng, row, rng.choice(["NaN", "Infinity", "-Infinity"])),
    "deep": lambda rng, row: _with(rng, row, "[" * 100_000 + "]" * 100_000),
    "deep and open": lambda rng, row: b'{"a":' * 100_000,
    "surrogate": lambda rng, row: _with(rng, row, r'"a \ud800 b"'),
    "surrogate key": lambda rng, row: json.dumps({"\udc00": 1} | row).encode(),
    "nul": lambda rng, row: _with(rng, row, r'"a \u0000 b"'),
    "raw nul": lambda rng, row: json.dumps(row).encode().replace(b" ", b"\0"),
    "twice a key": lambda rng, row: json.dumps(row).encode()[:-1] + b', "id": 1, "id": 2}',
    "long": lambda rng, row: json.dumps(row | {"context": "word " * 250_000}).encode(),
    "control characters": lambda rng, row: json.dumps(row).encode().replace(b": ", b":\x01", 1),
    "marked": lambda rng, row: b"\xef\xbb\xbf" + json.dumps(row).encode(),
}
"""Kinds of damage to a line."""


def _flipped(rng: random.Random, line: bytes) -> bytes:
    place = rng.randrange(len(line))
    other = line[place] ^ (1 << rng.randrange(8))
    return line[:place] + bytes([other if other != 10 else 11]) + line[place + 1 :]


def _without(rng: random.Random, row: dict[str, Any]) -> dict[str, Any]:
    gone = rng.choice(list(row))
    return {key: value for key, value in row.items() if key != gone}


def _wrong(rng: random.Random) -> Any:
    return rng.choice([None, True, 3, -1.5, [], [[]], {}, {"x": {}}, ["a", None], [1, 2]])


def _with(rng: random.Random, row: dict[str, Any], literal: str) -> bytes:
    """A row with a literal in the place of a value."""
    place = rng.choice(list(row))
    return json.dumps(row | {place: "@@"}).replace('"@@"', literal).encode()


def _jsonl(number: int) -> dict[str, Any]:
    return {"id": number, "context": f"Text {number}.", "question": "Which?", "answer": "a"}


def _squad(number: int) -> dict[str, Any]:
    answers = {"text": ["a"], "answer_start": [0]}
    return {"title": "T"} | _jsonl(number) | {"answers": answers}


def _hotpotqa(number: int) -> dict[str, Any]:
    facts = {"supporting_facts": [["T", 0]], "context": [["T", [f"Text {number}."]]]}
    return _jsonl(number) | facts | {"level": "easy"}


def _gsm8k(number: int) -> dict[str, Any]:
    return {"id": number, "question": f"How many are {number}?", "answer": f"It is.\n#### {number}"}


def _labelled(number: int) -> dict[str, Any]:
    return {"id": number, "text": f"Text {number}.", "label": number % 2}


SETS: dict[str, tuple[Callable[[int], dict[str, Any]], Callable[[str], Any]]] = {
    "jsonl": (_jsonl, lambda file: jsonl.Config(train="none.jsonl", eval=file)),
    "squad": (_squad, lambda file: squad.Config(train="none.jsonl", eval=file, unanswerable="-")),
    "hotpotqa": (_hotpotqa, lambda file: hotpotqa.Config(train="none.jsonl", eval=file)),
    "gsm8k": (
        _gsm8k,
        lambda file: gsm8k.Config(train="none.jsonl", eval=file, task="final"),
    ),
    "classification": (
        _labelled,
        lambda file: classification.Config(train="n.jsonl", eval=file, labels=("no", "yes")),
    ),
}


def _check(home: Path, files: int, seed: int) -> Counter[str]:
    """Reads damaged files; rows in are rows read, named or blank, in files of whatever kind."""
    rng, done = random.Random(seed), Counter[str]()
    for number in range(files):
        name = rng.choice(list(SETS))
        row, config = SETS[name]
        lines, damage = [json.dumps(row(0)).encode()], [""]
        for line in range(1, LINES):
            kind = rng.choice(list(JSONL)) if rng.random() < 0.25 else ""
            made = JSONL[kind](rng, row(line)) if kind else json.dumps(row(line)).encode()
            lines.append(made)
            damage.append(kind)
        data = b"\n".join(lines) + b"\n" * rng.randrange(3)
        packed = rng.random() < 0.2
        file = home / f"{number}.jsonl{'.gz' if packed else ''}"
        file.write_bytes(gzip.compress(data, 1) if packed else data)
        rows = config(str(file)).rows("eval")
        read = sum(len(rows[i]) for i in range(len(rows)))
        blank = sum(not made.removeprefix(b"\xef\xbb\xbf").strip() for made in lines)
        assert read + len(rows.malformed) + blank == LINES, (number, name, damage)
        assert rows.account.read == LINES - blank
        named = {int(text.removeprefix(f"{file}:").partition(":")[0]) for text in rows.malformed}
        assert len(named) == len(rows.malformed) and named <= set(range(1, LINES + 1))
        assert all("\n" not in text and len(text) < 600 for text in rows.malformed)
        for group in rows.groups:
            for example in group:
                assert example.answers[0] not in ("nan", "inf", "-inf")
                said = " ".join((example.context, example.question, *example.answers))
                assert "\0" not in said and said.encode()
        done.update(["rows"] * LINES + ["named"] * len(named) + ["blank"] * blank)
        done.update(kind for kind in damage if kind)
        file.unlink()
    return done


MARKS = (b'"', b"\0", b"\n", b"\r", b",", b"\t", b"\xff", b"[")
TABLES = ("csv", "tsv", "json", "parquet", "jsonl")


def _garble(home: Path, files: int, seed: int) -> Counter[str]:
    """Reads files with bytes changed, cut out or put in: rows or one line, never a traceback."""
    rng, done = random.Random(seed), Counter[str]()
    for number in range(files):
        kind = rng.choice(TABLES)
        data = bytearray(_whole(kind, home))
        for _ in range(rng.randrange(1, 4)):
            place = rng.randrange(len(data))
            change = rng.randrange(4)
            if change == 0:
                data[place] ^= 1 << rng.randrange(8)
            elif change == 1:
                del data[place : place + rng.randrange(1, 9)]
            elif change == 2:
                data[place:place] = rng.choice(MARKS)
            else:
                del data[max(1, place) :]
        file = home / f"garbled{number}.{kind}"
        file.write_bytes(bytes(data))
        rows, said = None, ""
        try:
            rows = jsonl.Config(train="none.jsonl", eval=str(file)).rows("eval")
        except UserError as error:
            said = str(error)
        assert "\n" not in said, (kind, number)
        done["refused"] += rows is None
        if rows is not None:
            done["read"] += sum(len(rows[i]) for i in range(len(rows)))
            done["named"] += len(rows.malformed)
        file.unlink()
    return done


def _whole(kind: str, home: Path) -> bytes:
    import pyarrow
    import pyarrow.parquet

    rows = [_jsonl(n) for n in range(LINES)]
    if kind == "parquet":
        path = home / "whole.parquet"
        if not path.exists():
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return path.read_bytes()
    if kind == "json":
        return json.dumps({"data": rows}).encode()
    if kind == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    mark = "," if kind == "csv" else "\t"
    lines = [mark.join(rows[0]), *(mark.join(map(str, row.values())) for row in rows)]
    return "\n".join(lines).encode()


def test_a_twentieth_of_damaged_rows(tmp_path: Path) -> None:
    done = _check(tmp_path, FILES // 20, SEED)
    assert done["named"] > 10


def test_a_twentieth_of_garbled_files(tmp_path: Path) -> None:
    done = _garble(tmp_path, FILES // 20 * 5, SEED)
    assert done["read"] > 100 and done["refused"]


@pytest.mark.slow
def test_damaged_rows(tmp_path: Path) -> None:
    done = _check(tmp_path, FILES, SEED + 1)
    assert set(JSONL) <= set(done)
    print(dict(done))


@pytest.mark.slow
def test_garbled_files(tmp_path: Path) -> None:
    done = _garble(tmp_path, FILES * 10, SEED + 1)
    print(dict(done))
