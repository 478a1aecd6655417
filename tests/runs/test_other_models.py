"""A bridge is refused between other models, also where only a tokenizer is another."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lw_jax.api import Bridge
from lw_jax.errors import UserError
from lw_jax.runs.trained import check_frozen

ROOT = Path(__file__).parents[2]


def test_a_receivers_exchanged_ids_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ids of two number tokens exchanged: "12 goats" would be answered 40."""
    for model in ("tiny-llama", "tiny-mistral"):
        shutil.copytree(ROOT / "zoo" / model, tmp_path / "zoo" / model)
    file = tmp_path / "zoo/tiny-mistral/tokenizer.json"
    state = json.loads(file.read_text())
    vocab = state["model"]["vocab"]
    vocab["1"], vocab["4"] = vocab["4"], vocab["1"]
    file.write_text(json.dumps(state))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="other receivers than mistral with these weights, tok"):
        Bridge.load(ROOT / "zoo/bridges/facts")


SAVED: dict[str, Any] = {
    "format": 2,
    "fingerprints": {"sender": "2a@4", "mistral": "2b"},
    "weights": {"sender": "1a@4", "mistral": "1b"},
}


@pytest.mark.parametrize(
    ("prints", "weights", "says"),
    [
        (
            {"sender": "2x@4"},
            {},
            "sender: .* tokenizer 2a@4, .*only its tokenizer or chat template is",
        ),
        (
            {"sender": "2x@4"},
            {"sender": "1x@4"},
            "sender: .* trained with frozen weights and tokenizer 2a@4, these are 2x@4;",
        ),
        ({"mistral": "2x"}, {}, "mistral: .* 2b, .*only its tokenizer or chat template"),
        ({"another": "2c"}, {"another": "1c"}, "another: .* absent, these are 2c;"),
        ({}, {}, None),
    ],
)
def test_what_is_another_is_named(
    prints: dict[str, str], weights: dict[str, str], says: str | None, tmp_path: Path
) -> None:
    here: Any = SimpleNamespace(
        fingerprints=SAVED["fingerprints"] | prints,
        weights=SAVED["weights"] | weights,
        models=None,
    )
    if says is None:
        check_frozen(SAVED, here, tmp_path, some=False)
        return
    with pytest.raises(UserError, match=says):
        check_frozen(SAVED, here, tmp_path, some=False)


def test_format_1_is_compared_by_weights_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here: Any = SimpleNamespace(fingerprints={"sender": "2x@4"}, weights={"sender": "1a@4"})
    check_frozen({"fingerprints": {"sender": "1a@4"}}, here, tmp_path, some=False)
    assert capsys.readouterr().out.count("format 1") == 1
    with pytest.raises(UserError, match=r"sender: .* frozen weights and tokenizer 1b@4"):
        check_frozen({"fingerprints": {"sender": "1b@4"}}, here, tmp_path, some=False)
