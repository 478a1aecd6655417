"""Edits of config.json and of the index, one place at a time: one line, never a traceback."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from lw_jax.errors import UserError
from lw_jax.models.checkpoint import INDEX, WEIGHTS, open_checkpoint
from lw_jax.models.config import ModelConfig
from lw_jax.models.load import check_headers
from lw_jax.models.spec import open_model
from tests.models import parity

ZOO = Path(__file__).parents[2] / "zoo/tiny-mistral"
DEEP: Any = []
for _ in range(50):
    DEEP = [DEEP]
VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 7, 2**31, 10**400, 1.5, -1e300, float("nan"), float("inf")),
    *("", "x", "../x", "\ud800", "\x00\n", "9" * 5000, [], [1], ["x"], [None], {}, {"a": 1}),
    *({"rope_type": []}, {"factor": "8"}, {"rope_theta": None, "type": 3}, DEEP),
]
MORE_KEYS = (
    *("rope_scaling", "rope_parameters", "sliding_window", "use_sliding_window", "layer_types"),
    *("max_window_layers", "quantization_config", "auto_map", "is_causal", "head_dim"),
    *("original_max_position_embeddings", "partial_rotary_factor", "unknown", "unknown\n\ud800"),
)
ALL = 1102
"""Edits that were tried by hand once; the whole must be more."""


def edits(family: str) -> Iterator[dict[str, Any] | str]:
    """Configs with one key changed, left out or broken; and texts that are no config."""
    config = json.loads((parity.GOLDEN / family / "hub_config.json").read_text())
    for key in sorted(config.keys() | set(MORE_KEYS)):
        for value in VALUES:
            yield config | {key: value}
        yield {k: v for k, v in config.items() if k != key}
    for key in sorted(config.get("rope_scaling") or {}):
        for value in VALUES:
            yield config | {"rope_scaling": config["rope_scaling"] | {key: value}}
    text = json.dumps(config)
    yield from ("", "[]", "null", "3", '"x"', text[:-1], text[: len(text) // 2], "[" * 10**5)


def index_edits(folder: Path) -> Iterator[dict[str, Any] | str]:
    places = json.loads((folder / INDEX).read_text())["weight_map"]
    first, last = sorted(places)[0], sorted(places)[-1]
    for value in VALUES:
        yield {"weight_map": value}
        yield {"weight_map": places | {first: value}}
        yield {"weight_map": places | {str(value)[:50]: "model-0.safetensors"}}
        yield {"metadata": value}
    for file in ("../model-0.safetensors", "/etc/passwd", "a/b.safetensors", ".", "..", "a" * 300):
        yield {"weight_map": places | {last: file}}
        yield {"weight_map": dict.fromkeys(places, file)}
    yield from ("", "[]", "null", "{", '{"weight_map"', "[" * 10**5)


def sharded(family: str, folder: Path) -> Path:
    shutil.copytree(parity.GOLDEN / family, folder)
    (folder / WEIGHTS).rename(folder / "model-0.safetensors")
    names = load_file(folder / "model-0.safetensors")
    places = dict.fromkeys(names, "model-0.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))
    return folder


def refused(folder: Path, file: str, edit: dict[str, Any] | str) -> bool:
    """Whether a model with an edited file is refused, in one short line that names a file."""
    (folder / file).write_text(edit if isinstance(edit, str) else json.dumps(edit))
    try:
        check_headers(open_checkpoint(folder))
    except UserError as error:
        line = str(error)
        assert line.startswith(str(folder)), line
        assert line.isprintable(), ascii(line)
        assert len(line) < 2000, line
        return True
    return False


def tried(family: str, folder: Path, share: float) -> int:
    """How many edits were tried."""
    shutil.copytree(parity.GOLDEN / family, folder / "whole")
    parts = sharded(family, folder / "parts")
    rng, count = random.Random(17), 0
    for file, at, found in (
        ("config.json", folder / "whole", edits(family)),
        (INDEX, parts, index_edits(parts)),
    ):
        for edit in [edit for edit in found if rng.random() < share]:
            refused(at, file, edit)
            count += 1
    return count


def test_a_twentieth_of_all_edits(tmp_path: Path) -> None:
    assert tried("llama", tmp_path, 0.05) > 40


def tokenizer_edits(file: str) -> Iterator[dict[str, Any] | str]:
    whole = json.loads((ZOO / file).read_text())
    for key in sorted(whole):
        for value in VALUES:
            yield whole | {key: value}
        yield {k: v for k, v in whole.items() if k != key}
    if "model" in whole:
        for key in sorted(whole["model"]):
            yield from (whole | {"model": whole["model"] | {key: value}} for value in VALUES)
    yield from ("", "[]", "null", "{", "[" * 10**5)


def opened_or_refused(folder: Path, share: float) -> int:
    """How many edits of a tokenizer's and of generate's files were tried: opened, or one line."""
    shutil.copytree(ZOO, folder)
    rng, count, lines = random.Random(23), 0, []
    for file in ("tokenizer_config.json", "tokenizer.json", "generation_config.json"):
        kept = (folder / file).read_bytes()
        for edit in [edit for edit in tokenizer_edits(file) if rng.random() < share]:
            (folder / file).write_text(edit if isinstance(edit, str) else json.dumps(edit))
            try:
                open_model("r", ModelConfig(str(folder))).fingerprint()
            except UserError as error:
                lines.append(str(error))
            count += 1
        (folder / file).write_bytes(kept)
    assert all(str(folder) in line and line.isprintable() for line in lines), lines
    return count


def test_some_edits_of_a_tokenizers_files(tmp_path: Path) -> None:
    assert opened_or_refused(tmp_path / "model", 0.03) > 10


@pytest.mark.slow
def test_all_edits_of_a_tokenizers_files(tmp_path: Path) -> None:
    assert opened_or_refused(tmp_path / "model", 1.0) > 500


@pytest.mark.slow
def test_all_edits(tmp_path: Path) -> None:
    counts = [tried(family, tmp_path / family, 1.0) for family in parity.FAMILIES]
    assert min(counts) * 2 > ALL


@pytest.mark.parametrize("value", [None, [], 3, "x", {}, {"a": None}, {"a": ["b"]}])
def test_an_index_that_names_no_files(value: object, tmp_path: Path) -> None:
    folder = sharded("llama", tmp_path / "model")
    (folder / INDEX).write_text(json.dumps({"weight_map": value}))
    with pytest.raises(UserError, match=f"{INDEX}: weight_map"):
        open_checkpoint(folder)


def test_what_is_read_was_not_refused(tmp_path: Path) -> None:
    """The edits reach a model that opens: a sound one is not refused."""
    folder = sharded("llama", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    assert not refused(folder, "config.json", config)
    assert refused(folder, "config.json", config | {"hidden_size": 16})
