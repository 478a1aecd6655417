"""The words at the end: content carried, not carried, or no more than another text's latent."""

from __future__ import annotations

import numpy as np
import pytest

from lw_jax.evaluate.summary import Settings
from lw_jax.evaluate.verdict import Verdict, judge

N = 400
SETTINGS = Settings(seed=0, resamples=500)


def _judge(seed: int = 0, **rates: float) -> Verdict:
    rng = np.random.default_rng(seed)
    rows = {name: (rng.random(N) < rate).astype(float) for name, rate in rates.items()}
    return judge(rows, [str(i) for i in range(N)], 36.0, SETTINGS)


def test_content_is_carried() -> None:
    found = _judge(
        latent=0.6, no_message=0.02, deranged=0.02, token_budget_first=0.3, token_budget_last=0.2
    )
    assert found.carries
    assert found.share == pytest.approx(1.0, abs=0.1)
    assert found.words[0].startswith("The wire carries content: latent - deranged is +0.")
    assert " F1, 99% of latent" in found.words[0]
    assert found.words[1].startswith("The latent beats the better token budget (token_budget_first")
    best = found.differences["token_budget_first"]
    assert 0.1 < best.low < best.mean < best.high < 0.5


def test_nothing_is_carried() -> None:
    found = _judge(latent=0.1, no_message=0.1, deranged=0.1, token_budget_first=0.1)
    assert not found.carries
    assert found.share is None
    assert "carries nothing that shows" in found.words[0]
    assert "includes 0" in found.words[0]
    assert "cannot be told apart" in found.words[1]


def test_a_latent_can_do_harm() -> None:
    found = _judge(latent=0.1, no_message=0.5, deranged=0.1, token_budget_last=0.5)
    assert not found.carries
    assert "does harm" in found.words[0]
    assert "loses to the better token budget (token_budget_last" in found.words[1]


def test_a_latent_that_saves_columns_may_save_no_bytes() -> None:
    rates = {"no_message": 0.02, "deranged": 0.02, "token_budget_first": 0.3}
    found = _judge(latent=0.6, token_budget_bytes=0.99, **rates)
    assert found.words[1].startswith("The latent beats the better token budget")
    assert found.words[2].startswith("The latent loses to as many bytes of text (token_budget_byte")


def test_no_more_than_another_texts_latent() -> None:
    """Fault 15: the latent helps, but any latent does."""
    found = _judge(latent=0.5, no_message=0.1, deranged=0.5)
    assert not found.carries
    assert found.share is not None
    assert abs(found.share) < 0.25
    assert "no more than another text's latent" in found.words[0]


def test_the_bar_is_80_percent() -> None:
    rows = {name: np.zeros(N) for name in ("latent", "no_message", "deranged")}
    rows["latent"][:200] = 1  # matched - none is 0.5
    for other, carries in ((40, True), (41, False)):  # 160 and 159 of 200
        rows["deranged"] = np.zeros(N)
        rows["deranged"][:other] = 1
        found = judge(rows, [str(i) for i in range(N)], 36.0, SETTINGS)
        assert found.carries is carries
    assert "mostly not by its content" in found.words[0]


def test_rows_of_one_context_are_one_observation() -> None:
    """Ten lucky contexts asked forty questions each are no proof."""
    rows = {name: np.zeros(N) for name in ("latent", "no_message", "deranged")}
    rows["latent"][:40] = 1
    apart = judge(rows, [str(i) for i in range(N)], 36.0, SETTINGS)
    together = judge(rows, [str(i // 40) for i in range(N)], 36.0, SETTINGS)
    assert apart.carries
    assert not together.carries


def test_json_holds_the_numbers_and_the_words() -> None:
    found = _judge(latent=0.6, no_message=0.0, deranged=0.0).to_json()
    assert found["metric"] == "f1"
    assert set(found) == {"metric", "carries", "share", "differences", "words"}
    assert set(found["differences"]["no_message"]) == {"other", "mean", "low", "high"}
