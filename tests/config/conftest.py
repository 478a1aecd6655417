"""A config that is right in every part, over two tiny models, to put one thing wrong in."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lw_jax.config.yaml_files import dumps
from tests.tiny.models import write_model

Write = Callable[..., Path]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Directories of a sender and of a receiver."""
    home = tmp_path_factory.mktemp("models")
    return {
        "sender": str(write_model(home / "sender", "llama")),
        "receiver": str(write_model(home / "receiver", "mistral", vocab=290)),
    }


@pytest.fixture
def raw(models: dict[str, str]) -> dict[str, Any]:
    """The config as plain values."""
    return {
        "name": "small",
        "sender": {"path": models["sender"], "dtype": "float32"},
        "receivers": {"reader": {"path": models["receiver"], "dtype": "float32"}},
        "data": {"facts": {"levels": [1]}},
        "mesh": {"data": 1},
        "bridge": {
            "latent_dim": 8,
            "source": {"hidden_states": {"layers": [0, 2]}},
            "compressor": {"perceiver": {"slots": 4, "width": 8, "heads": 2, "depth": 1}},
            "reader": {"soft_tokens": {}},
        },
        "objectives": {"answer_ce": {}},
        "stages": {
            "fit": {
                "train": {
                    "steps": 4,
                    "batch_size": 8,
                    "eval_rows": 4,
                    "optimiser": {"schedule": {"ramp": 2}},
                }
            },
            "report": {"evaluate": {"rows": 8, "batch_size": 8}},
        },
    }


@pytest.fixture
def write(raw: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """`write(**{"a.b": value})` writes the config with some keys changed; None removes the key.

    The test then stands in an empty directory beside the file, so that any run directory shows.
    """
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def write(**changes: Any) -> Path:
        values = copy.deepcopy(raw)
        for key, value in changes.items():
            *above, last = key.split(".")
            place = values
            for name in above:
                place = place.setdefault(name, {})
            if value is None:
                del place[last]
            else:
                place[last] = value
        path = tmp_path / "config.yaml"
        path.write_text(dumps(values))
        return path

    return write
