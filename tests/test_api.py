"""The bridge that ships, from Python: a text becomes bytes, and the bytes answer for it."""

import re
from pathlib import Path

import pytest

from lw_jax import Bridge
from lw_jax.data.facts import FactsRows
from lw_jax.errors import UserError

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
TEXT = (
    "Ada Lumen keeps 7 goats in the barn. Ben Korim keeps 31 cats in the attic. "
    "Ada Lumen works as a diver in Zelmora. Ben Korim works as a baker in Ostrin."
)
ASKED = {
    "How many cats does Ben Korim keep?": "31",
    "How many goats does Ada Lumen keep?": "7",
    "What does Ben Korim work as?": "baker",
    "Where does Ada Lumen work?": "Zelmora",
}


def test_an_exported_bridge_answers(monkeypatch):
    monkeypatch.chdir(ROOT)
    wire = Bridge.load("zoo/bridges/facts")
    sent = wire.encode(TEXT)
    assert len(sent) < 17_000
    said = {question: wire.answer(sent, question) for question in ASKED}
    other = wire.encode("Ada Lumen keeps 50 hens in the yard.")
    assert sum(said[q] == answer for q, answer in ASKED.items()) >= 3, said
    assert wire.answer(other, "How many hens does Ada Lumen keep?") == "50"
    assert wire.answer(other, "How many cats does Ben Korim keep?") != "31"


@pytest.mark.slow
def test_the_same_bridge_says_it_in_fewer_bytes(monkeypatch):
    monkeypatch.chdir(ROOT)
    wire = Bridge.load("zoo/bridges/facts_any_ratio")
    rows = FactsRows("eval", 0, 6, 6)
    examples = [rows[i][0] for i in range(6)]
    few = [wire.encode(example.context, ratio=6) for example in examples]
    assert len(few[0]) < len(wire.encode(examples[0].context)) / 3
    said = [wire.answer(sent, e.question) for sent, e in zip(few, examples, strict=True)]
    assert sum(answer in e.answers for answer, e in zip(said, examples, strict=True)) >= 5, said
    with pytest.raises(UserError, match=r"ratio: bridge\.compressor\.perceiver was not trained"):
        Bridge.load("zoo/bridges/facts").encode(TEXT, ratio=6)


def test_loading_writes_nothing(tmp_path, monkeypatch):
    """Not even where the receivers' loudness is missing and has to be measured."""
    monkeypatch.chdir(ROOT)
    for name in ("bridge.json", "bridge.safetensors"):
        (tmp_path / name).symlink_to(ROOT / "zoo/bridges/facts" / name)
    loaded, shipped = Bridge.load(tmp_path), Bridge.load("zoo/bridges/facts")
    assert {path.name for path in tmp_path.iterdir()} == {"bridge.json", "bridge.safetensors"}
    found, held = (wire.pipeline.bridge.dims.receivers["mistral"] for wire in (loaded, shipped))
    assert found.embed_rms == pytest.approx(held.embed_rms, rel=1e-4)
    assert found.key_rms == pytest.approx(held.key_rms, rel=1e-4)


def test_neither_run_nor_bridge(tmp_path):
    with pytest.raises(UserError, match="no run directory"):
        Bridge.load(tmp_path)


@pytest.mark.slow
def test_readmes_own_example_answers_what_it_says(monkeypatch):
    monkeypatch.chdir(ROOT)
    (code,) = re.findall(r"```python\n(from lw_jax import Bridge\n.*?)```", README, re.DOTALL)
    asked = re.findall(r"^(wire\.answer\(.*\))  # (.+)$", code, re.MULTILINE)
    assert len(asked) == code.count("wire.answer(") >= 2
    names: dict[str, object] = {}
    exec(code, names)
    assert {call: eval(call, names) for call, _ in asked} == dict(asked)
