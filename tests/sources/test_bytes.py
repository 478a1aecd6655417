"""Bytes as a source: the text's own, exactly, and no sender anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lw_jax.config.parse import read
from lw_jax.data.example import Example
from lw_jax.errors import UserError
from lw_jax.mesh import make_mesh
from lw_jax.models.dims import BridgeDims
from lw_jax.models.spec import open_model
from lw_jax.runs.abstract import abstract_step
from lw_jax.runs.doctor import examine
from lw_jax.sources import bytes as raw
from lw_jax.text.collate import Collate, measure
from lw_jax.train.optimiser import groups
from lw_jax.types import Taps
from lw_jax.utils.registry import chosen
from tests.sources.parts import source_tokens
from tests.tiny.models import write_model
from tests.tiny.receiver import LAYOUT
from tests.tiny.receiver import text_tokenizer as receiver

SMALL = raw.Config(width=8, heads=2, depth=1)


@given(st.text())
def test_ids_are_the_utf8_bytes(text: str) -> None:
    tokenizer = SMALL.tokenizer(None)
    assert tokenizer.encode(text) == list(text.encode())
    assert tokenizer.backend.decode(tokenizer.encode(text)) == text


def row(context: str) -> tuple[Example, ...]:
    return (Example("1", "c", context, "Who?", ("Ada",)),)


def test_a_batch_carries_them() -> None:
    rows = [row("Ada keeps 7 goats — no, 8 🐐."), row("Eve left.")]
    tokenizer = SMALL.tokenizer(None)
    both = {"reader": receiver()}
    batch = Collate(LAYOUT, tokenizer, both, measure(LAYOUT, tokenizer, both, rows))(rows)
    taps = SMALL.extract(None, source_tokens(batch), None)
    for i, (example,) in enumerate(rows):
        kept = np.asarray(taps.ids)[i][np.asarray(taps.mask)[i]]
        assert bytes(kept.tolist()).decode() == " " + example.context
    assert taps.states.shape[0] == 0
    assert batch["valid"].all()


def test_a_text_of_too_many_bytes_is_left_out() -> None:
    tokenizer = raw.Config(max_bytes=32).tokenizer(None)
    rows = [row("é" * 40), row("Eve left.")]
    batch = Collate(LAYOUT, tokenizer, {}, measure(LAYOUT, tokenizer, {}, rows, max_tokens=9))(rows)
    assert batch["source/ids"].shape == (2, 32)
    assert batch["valid"].tolist() == [False, True]


def test_the_limit_is_exact_where_columns_are_rounded_up() -> None:
    tokenizer = raw.Config(max_bytes=30).tokenizer(None)
    rows = [row("x" * length) for length in range(1, 50)]
    batch = Collate(LAYOUT, tokenizer, {}, measure(LAYOUT, tokenizer, {}, rows))(rows)
    assert batch["source/ids"].shape[1] == 32
    assert batch["source/lengths"].max() == 30


def test_padding_is_not_read_and_order_is() -> None:
    text = np.asarray([list(b"Ada keeps goats")])
    none = np.zeros((0, 1, 15, 0), np.float32)
    module = SMALL.build(BridgeDims(0, 0, 8))
    params = jax.jit(module.init)(jax.random.key(0), Taps(none, np.ones((1, 15), bool), text))
    assert set(groups(params["params"]).values()) == {"adam", "muon"}

    apply = jax.jit(module.apply)

    def features(ids: Any, real: int) -> np.ndarray:
        mask = np.arange(ids.shape[1])[None] < real
        return np.asarray(apply(params, Taps(none, mask, ids)).x)[:, :real]

    alone = features(text, 15)
    other = features(np.where(np.arange(15)[None] < 9, text, ord("z")), 9)
    np.testing.assert_allclose(features(text, 9), other, atol=1e-5)
    assert np.abs(features(text[:, ::-1], 15)[:, ::-1] - alone).max() > 0.1


CONFIG = """
name: tiny
mesh: {{data: 1}}
receivers:
  reader: {{path: {reader}, dtype: float32}}
data:
  facts: {{levels: [1], size: 40, eval_size: 8}}
bridge:
  latent_dim: 8
  source: {{bytes: {{width: 8, heads: 2, depth: 1}}}}
  compressor: {{perceiver: {{slots: 4, width: 8, heads: 2, depth: 1}}}}
  reader: {{soft_tokens: {{}}}}
objectives: {{answer_ce: {{}}}}
stages:
  fit: {{train: {{steps: 2, optimiser: {{schedule: {{ramp: 0}}}}, batch_size: 4, eval_every: 0}}}}
"""


def test_no_sender_is_needed_and_none_is_taken(tmp_path: Path) -> None:
    reader = write_model(tmp_path / "reader", "mistral")
    path = tmp_path / "tiny.yaml"
    path.write_text(CONFIG.format(reader=reader))
    config = read(path)
    found = examine(config, memory=False)
    assert {f.level for f in found} == {"ok"}
    said = {f.key: f.text for f in found}
    assert said["bridge.source"] == "the text itself, no sender"
    with_sender = read(path, [("sender", f"{{path: {reader}}}")])
    assert {f.text for f in examine(with_sender, memory=False) if f.level == "error"} == {
        "sender: bridge.source.bytes reads the text itself; set sender: null"
    }
    (cfg,) = chosen(config.stages["fit"]).values()
    lengths = {"source": 64, "reader/context": 32, "reader/ask": 16, "reader/answer": 8}
    specs = {"reader": open_model("reader", config.receivers["reader"])}
    step = abstract_step(config, cfg, specs, lengths, make_mesh(config.mesh))
    state, metrics = jax.eval_shape(step.step, *step.arguments)
    assert set(state.params["bridge"]["source"]) == {"byte", "encoder", "out_norm"}
    assert metrics["loss"].shape == ()
    with pytest.raises(UserError, match="heads: 3 do not divide the width 8"):
        read(path, [("bridge.source.bytes.heads", "3")])
