"""Damage to an exported bridge: one flipped bit, a cut file, a missing key: one line each."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from lw_jax.errors import UserError
from lw_jax.models.dims import ModelDims
from lw_jax.runs import receiver_rms
from lw_jax.runs.exported import ABOUT, RECEIVERS, WEIGHTS, load_bridge, save_bridge
from lw_jax.runs.trained import config_at

ROOT = Path(__file__).parents[2]
PRINTS = {"r": "ab"}
ABOUT_IT = {
    "step": 7,
    "stage": "fit",
    "fingerprints": PRINTS,
    "weights": {"r": "cd"},
    "config": {"name": "x"},
}


def params() -> Any:
    return {
        "compressor": {"enter": {"kernel": jnp.arange(12.0).reshape(3, 4)}},
        "readers": {"r": {"soft_tokens": {"scale": jnp.ones((4,))}}},
    }


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    folder = tmp_path / "bridge"
    folder.mkdir()
    receiver_rms.write(folder, {"r": ModelDims(4, 1, 1, 4, 1.0, (1.0,), (1.0,))}, PRINTS)
    save_bridge(folder, params(), ABOUT_IT)
    return folder


def opened(folder: Path) -> dict[str, Any]:
    """Everything that is read of an exported bridge."""
    _, about = load_bridge(folder, jax.tree.map(jnp.zeros_like, params()))
    receiver_rms.load(folder, PRINTS, {"r": "cd"})
    return about


def test_what_is_sealed_is_read(shipped: Path) -> None:
    about = opened(shipped)
    assert about["format"] == 2
    assert about["files"].keys() == {WEIGHTS, RECEIVERS}


@pytest.mark.parametrize("name", [WEIGHTS, ABOUT, RECEIVERS])
def test_one_flipped_bit_is_refused(name: str, shipped: Path) -> None:
    data = (shipped / name).read_bytes()
    for bit in random.Random(5).sample(range(8 * len(data)), 60):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        (shipped / name).write_bytes(flipped)
        with pytest.raises(UserError, match=name.replace(".", r"\.")) as caught:
            opened(shipped)
        assert str(caught.value).isprintable(), ascii(str(caught.value))


def edit(change: Callable[[dict[str, Any]], Any]) -> Callable[[bytes], bytes]:
    """An edit of a `bridge.json` of format 1, which no digest protects."""

    def edited(data: bytes) -> bytes:
        found = json.loads(data)
        for key in ("format", "weights", "files", "sha256"):
            del found[key]
        change(found)
        return json.dumps(found).encode()

    return edited


DAMAGE: dict[str, Callable[[bytes], bytes | None]] = {
    "missing": lambda _: None,
    "empty": lambda _: b"",
    "cut": lambda data: data[: len(data) // 2],
    "garbled": lambda data: bytes(byte ^ 0x5A for byte in data),
    "a list": lambda _: b"[]",
    "null": lambda _: b"null",
    "no object": lambda _: b"{}",
    "deep": lambda _: b"[" * 100_000,
}
KEYS = {
    "no parameters": edit(lambda a: a.pop("parameters")),
    "no fingerprints": edit(lambda a: a.pop("fingerprints")),
    "no step": edit(lambda a: a.pop("step")),
    "parameters a list": edit(lambda a: a.update(parameters=[])),
    "a count of text": edit(lambda a: a.update(parameters={"bridge/compressor": "x"})),
    "fingerprints null": edit(lambda a: a.update(fingerprints=None)),
    "a fingerprint of 3": edit(lambda a: a.update(fingerprints={"r": 3})),
    "format 3": edit(lambda a: a.update(format=3)),
    "format true": edit(lambda a: a.update(format=True)),
    "an unknown key": edit(lambda a: a.update(gormat=2)),
    "step of text": edit(lambda a: a.update(step="x")),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", [WEIGHTS, ABOUT, RECEIVERS])
def test_damage_is_one_line(name: str, damage: str, shipped: Path) -> None:
    path = shipped / name
    changed = DAMAGE[damage](path.read_bytes())
    path.unlink() if changed is None else path.write_bytes(changed)
    if (name, damage) == (RECEIVERS, "missing"):
        assert receiver_rms.load(shipped, PRINTS, {}) is None
        return
    with pytest.raises(UserError, match=name.replace(".", r"\.")) as caught:
        opened(shipped)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", KEYS)
def test_an_older_file_without_digests_is_checked_key_by_key(damage: str, shipped: Path) -> None:
    path = shipped / ABOUT
    path.write_bytes(KEYS[damage](path.read_bytes()) or b"")
    with pytest.raises(UserError, match=ABOUT) as caught:
        opened(shipped)
    assert "\n" not in str(caught.value)


def test_a_bridge_without_its_config(shipped: Path) -> None:
    path = shipped / ABOUT
    path.write_bytes(edit(lambda a: a.pop("config"))(path.read_bytes()))
    with pytest.raises(UserError, match=r"bridge\.json: config is missing"):
        config_at(shipped)
    save_bridge(shipped, params(), ABOUT_IT | {"config": {"nonsense": 3}})
    with pytest.raises(UserError, match=r"bridge\.json: config: .*nonsense"):
        config_at(shipped)


def test_weights_that_are_not_finite(shipped: Path) -> None:
    bad = params()
    bad["readers"]["r"]["soft_tokens"]["scale"] = jnp.array([1.0, np.nan, 1.0, 1.0])
    save_bridge(shipped, bad, ABOUT_IT)
    with pytest.raises(UserError, match="readers/r/soft_tokens/scale is not finite"):
        opened(shipped)


ENTRIES: dict[str, Any] = {
    "no object": 3,
    "no width": {"width": None},
    "a width of text": {"width": "4"},
    "one layer too many": {"key_rms": [1.0, 2.0]},
    "NaN": {"embed_rms": float("nan")},
    "text among numbers": {"value_rms": ["x"]},
    "an unknown key": {"depth": 3},
}


@pytest.mark.parametrize("entry", ENTRIES)
def test_receivers_that_were_not_measured_so(entry: str, shipped: Path) -> None:
    path, change = shipped / RECEIVERS, ENTRIES[entry]
    plain = json.loads(path.read_text())
    plain["r"] = plain["r"] | change if isinstance(change, dict) else change
    path.write_text(json.dumps(plain))
    with pytest.raises(UserError, match=r"receivers\.json is damaged \('r': "):
        receiver_rms.load(shipped, PRINTS, {})


@pytest.mark.parametrize("name", ["facts", "facts_any_ratio"])
def test_the_bridges_that_ship_hold_what_they_say(name: str) -> None:
    """Their parameters are those of the first export, byte by byte."""
    first = {
        "facts": "81c1a41c6e583cfb543d7fd707220a3cbec03c06272aca15a7c6bfc6e7ffb537",
        "facts_any_ratio": "3b160375dbfe47f3c476ed7bbcc89ddd24859f0ee341a9beee776651fd060ef9",
    }
    folder = ROOT / "zoo/bridges" / name
    about = json.loads((folder / ABOUT).read_text())
    assert about["format"] == 2
    assert about["files"][WEIGHTS] == first[name]
    like = load_file(folder / WEIGHTS)
    assert sum(x.size for x in like.values()) == sum(about["parameters"].values())
    digest = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    assert digest == first[name]
