"""A fingerprint changes with whatever changes what a frozen model says, and with nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from lw_jax.errors import UserError
from lw_jax.models import fingerprint
from lw_jax.models.config import ModelConfig
from lw_jax.models.spec import FrozenSpec, open_model
from lw_jax.text.tokenizer import Tokenizer

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "zoo/tiny-mistral"


def opened(folder: Path) -> FrozenSpec:
    return open_model("reader", ModelConfig(str(folder)))


def edited(file: str, change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        value = json.loads((folder / file).read_text())
        change(value)
        (folder / file).write_text(json.dumps(value))

    return edit


def swap(state: dict[str, Any]) -> None:
    vocab = state["model"]["vocab"]
    vocab["1"], vocab["4"] = vocab["4"], vocab["1"]


def template(text: str) -> Callable[[Path], None]:
    return edited("tokenizer_config.json", lambda c: c.update(chat_template=text))


CHANGES = {
    "two ids exchanged": edited("tokenizer.json", swap),
    "a merge less": edited("tokenizer.json", lambda t: t["model"]["merges"].pop()),
    "another normalizer": edited(
        "tokenizer.json", lambda t: t.update(normalizer={"type": "Lowercase"})
    ),
    "another decoder": edited("tokenizer.json", lambda t: t.update(decoder={"type": "Fuse"})),
    "another EOS": edited("tokenizer_config.json", lambda c: c.update(eos_token="<unk>")),
    "no tokenizer_config.json": lambda folder: (folder / "tokenizer_config.json").unlink(),
    "a chat template": template("{{ messages[0]['content'] }}"),
    "no BOS is put": edited("tokenizer.json", lambda t: t.update(post_processor=None)),
}


@pytest.fixture(scope="module")
def before() -> FrozenSpec:
    return opened(MODEL)


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_the_meaning_changes_the_fingerprint(
    change: str, before: FrozenSpec, tmp_path: Path
) -> None:
    folder = shutil.copytree(MODEL, tmp_path / "model")
    CHANGES[change](folder)
    after = opened(folder)
    assert after.weights_print() == before.weights_print()  # which is all that format 1 sees
    assert after.fingerprint() != before.fingerprint()


def test_the_token_of_id_0_counts() -> None:
    """Which has a 0 for its id, as options have that are off; all other ids are the same."""

    def print_of(first: str, added: bool = False) -> str:
        backend = Backend(BPE({first: 0, "a": 1, "b": 2}, [], unk_token="a"))
        if added:
            backend.add_special_tokens([first])
        return fingerprint.meaning(Tokenizer("r", backend, None, 2), (2,), {})

    kinds = [("!", False), ("c", False), ("d", False), ("c", True), ("d", True), ("!", True)]
    assert len({print_of(*kind) for kind in kinds}) == len(kinds)
    # As version 0.1 wrote them, which runs and bridges hold.
    assert print_of("!").startswith("396b416ec425") and print_of("c", True).startswith(
        "0bd042e2cc6c"
    )


def test_how_the_files_are_written_does_not_change_it(before: FrozenSpec, tmp_path: Path) -> None:
    folder = shutil.copytree(MODEL, tmp_path / "model")

    def rewritten(state: dict[str, Any]) -> None:
        state["model"]["merges"] = [
            m if isinstance(m, str) else " ".join(m) for m in state["model"]["merges"]
        ]
        state["truncation"] = {
            "direction": "Right",
            "max_length": 4,
            "strategy": "LongestFirst",
            "stride": 0,
        }

    edited("tokenizer.json", rewritten)(folder)
    assert opened(folder).fingerprint() == before.fingerprint()


def test_format_1_is_read_with_one_warning(capsys: pytest.CaptureFixture[str]) -> None:
    now, weights = {"a": "22"}, {"a": "11"}
    where = Path("runs/of format 1")
    assert fingerprint.comparable({"format": 2}, now, weights, where) == now
    assert capsys.readouterr().out == ""
    assert fingerprint.comparable({}, now, weights, where) == weights
    assert fingerprint.comparable({}, now, weights, where) == weights
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"warning: {where}: fingerprints of format 1")
    identity = {"config": {}, "format": 2, "fingerprints": now, "weights": weights}
    old = {"config": {}, "fingerprints": weights}
    assert fingerprint.as_saved(old, identity, where) == old
    assert fingerprint.as_saved(identity, identity, where) == identity
    with pytest.raises(UserError, match="format 3"):
        fingerprint.comparable({"format": 3}, now, weights, where)
