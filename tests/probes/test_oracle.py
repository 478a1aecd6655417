"""The oracle of the slots: soft tokens of its own for each passage, beside text and bridge."""

from __future__ import annotations

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from lw_jax.__main__ import main
from lw_jax.data.example import Example
from lw_jax.probes import asking, oracle
from lw_jax.probes.config import OracleConfig
from lw_jax.probes.descent import Passage, batches, descend, passage
from lw_jax.text.layout import Asked, Prompt
from lw_jax.text.layout_config import LayoutConfig
from lw_jax.types import Delivery
from tests.tiny import receiver
from tests.tiny.shipped import FACTS

TEXT = "Ada Lumen keeps 50 hens in the yard. Ben Moss sells 7 lamps in Rome."


def test_means_of_neighbours() -> None:
    x = np.arange(6.0)[:, None]
    assert oracle._pooled(x, 6)[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert oracle._pooled(x, 3)[:, 0].tolist() == [0.5, 2.5, 4.5]
    assert oracle._pooled(x, 1)[:, 0].tolist() == [2.5]
    assert oracle._pooled(x[:2], 4)[:, 0].tolist() == [0, 0, 1, 1]


def test_tokens_match_in_their_order() -> None:
    assert asking._matched([1, 2, 3, 4], [1, 2, 3, 4]) == 4
    assert asking._matched([1, 2, 3, 4], [1, 9, 2, 3, 4]) == 4  # one too many
    assert asking._matched([1, 2, 3, 4], [3, 4, 1]) == 2
    assert asking._matched([1, 2], []) == 0


def test_a_passage_asks_for_itself_and_for_words_of_its_own() -> None:
    tokenizer = receiver.text_tokenizer()
    row = Example("a", "a", TEXT, "How many hens?", ("50",))
    one = passage(LayoutConfig(), tokenizer, (row,), "\nRepeat:", 3, 1)
    assert one is not None and len(one.gaps) == 3
    assert tokenizer.backend.decode(one.whole.answer[:-1]).strip() == TEXT
    assert tokenizer.backend.decode(one.whole.ask).strip() == "Repeat:"
    for gap in one.gaps:
        assert "____" in tokenizer.backend.decode(gap.ask)
        assert tokenizer.backend.decode(gap.answer[:-1]).strip() in TEXT
    none = passage(LayoutConfig(), tokenizer, (row,), "\nRepeat:", 0, 1)
    assert none is not None and not none.gaps and none.whole == one.whole


def passages(gaps: int) -> list[Passage]:
    """Three passages of a tiny receiver's tokens."""
    rng = np.random.default_rng(0)

    def asked(size: int) -> Asked:
        return Asked([5, 6], [*rng.integers(7, 60, size).tolist(), 2])

    return [
        Passage((), [], asked(size), tuple(asked(2) for _ in range(gaps))) for size in (6, 9, 4)
    ]


@pytest.mark.parametrize("gaps", [0, 2])
def test_soft_tokens_learn_to_bring_their_passage_about(gaps: int) -> None:
    some, model, rng = passages(gaps), receiver.model(), np.random.default_rng(1)
    unit = 0.1
    width = model.params["embed"].shape[1]
    start = [unit * rng.standard_normal((m, width)).astype(np.float32) for m in (3, 2, 4)]
    held = batches(some, start, 2, gaps)
    assert [(one.at, one.real) for one in held] == [([2, 0], 2), ([1, 1], 1)]
    told: list[int] = []
    found, curve = descend(
        model, Prompt((1,)), Delivery(), held, 20, 0.3, unit, lambda n, *_: told.append(n)
    )
    assert {i: x.shape[0] for i, x in found.items()} == {0: 3, 1: 2, 2: 4}
    assert sum(told) == 2 * 20 and len(curve) == 11
    assert curve[-1] < 0.8 * curve[0]
    assert all(np.isfinite(x).all() for x in found.values())
    assert not jnp.any(held[0].x[1, 3:])  # where there is no slot


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--ratios=[]", "ratios: "),
        ("--ratios=[0.5]", "ratios.0: "),
        ("--starts=[zero]", "starts"),
        ("--passages=1", "passages: "),
        ("--gaps=-1", "gaps: "),
        ("--text=runs/nowhere", "runs/nowhere"),
    ],
)
def test_wrong_words(
    words: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["probe", "oracle", str(FACTS), *words.split(), f"--out={tmp_path}"]) == 2
    err = capsys.readouterr().err
    assert said in err and len(err.splitlines()) == 1


@pytest.mark.slow
def test_the_oracle_stands_beside_text_and_bridge(tmp_path: Path) -> None:
    words = ("--passages=3", "--ratios=[4,24]", "--starts=[bridge]", "--steps=20", "--gaps=1")
    place = FACTS.parent / "facts_any_ratio"
    assert main(["probe", "oracle", str(place), f"--out={tmp_path}", *words]) == 0
    found = json.loads((tmp_path / "probe_oracle.json").read_text())
    lines = found["figures"]
    assert set(lines) == {
        "nothing", "text", "bridge_4", "oracle_4_bridge", "oracle_24_bridge",
        "text_minus_oracle_4", "oracle_minus_bridge_4", "text_minus_oracle_24",
    }  # fmt: skip
    nats = {name: one["nats_a_token"]["value"] for name, one in lines.items()}
    assert nats["text"] < nats["bridge_4"] < nats["nothing"]
    apart = nats["oracle_4_bridge"] - nats["bridge_4"]
    assert nats["oracle_minus_bridge_4"] == pytest.approx(apart, abs=1e-6)
    assert lines["bridge_4"]["tokens_a_column"] == lines["oracle_4_bridge"]["tokens_a_column"]
    assert lines["bridge_4"]["f1"]["n"] == found["passages"] == 3
    assert found["best_start"] == {"4": "oracle_4_bridge", "24": "oracle_24_bridge"}
    curve = found["curves"]["oracle_4_bridge"]
    assert len(curve) == 11 and nats["oracle_4_bridge"] < curve[1]


def test_configs_are_checked() -> None:
    assert OracleConfig().ratios == (2.0, 4.0, 8.0, 16.0)
