"""The words at the end: content carried, not carried, or no more than another text's latent."""

from __future__ import annotations

import numpy as np
import pytest

from lw_jax.evaluate.summary import Settings
from lw_jax.evaluate.verdict import (
    BUDGETS,
    BUDGETS_KV,
    BYTES,
    NEAR,
    RAN_ON,
    SHARE,
    Difference,
    Verdict,
    _budget,
    _content,
    judge,
)

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


def apart(low: float, high: float) -> Difference:
    return Difference("other", (low + high) / 2, low, high)


def test_what_an_interval_says_at_its_ends() -> None:
    """An interval that ends at 0 includes it."""
    for low, high, word in (
        (0.1, 0.2, "beats x"),
        (0.0, 0.2, "cannot be told apart"),
        (-0.2, 0.0, "cannot be told apart"),
        (-0.2, -0.1, "loses to x"),
    ):
        assert word in _budget(apart(low, high), "x", "F1")
    for high, words in ((0.0, "includes 0"), (0.1, "includes 0"), (-0.1, "does harm")):
        assert words in _content(apart(-0.3, high), apart(0, 0), None, "F1")
    for low, high, words in (
        (-0.1, 0.1, "no more than another"),
        (0.0, 0.1, "no more than another"),
        (-0.1, 0.0, "no more than another"),
        (0.1, 0.3, "mostly not"),
        (-0.3, -0.1, "mostly not"),
    ):
        assert words in _content(apart(0.1, 0.2), apart(low, high), 0.5, "F1")
    assert "carries content" in _content(apart(0.1, 0.2), apart(-0.1, 0.1), SHARE, "F1")


def test_every_kind_of_text_is_compared() -> None:
    """Of several budgets the best one; what ran on is said, and only of what is compared."""
    texts = (*BUDGETS[:3], *BUDGETS_KV[:2], BYTES, NEAR)
    names = (*texts, "rival", "latent", "no_message", "deranged")
    rows = {name: np.zeros(N) for name in names}
    rows["latent"][:300] = 1
    rows[BUDGETS[1]][:200] = rows[BUDGETS_KV[1]][:200] = 1
    ran_on = {BYTES: RAN_ON, "text": 0.08, "something": 0.9, "latent": 0.3}
    groups = [str(i) for i in range(N)]
    counted = {NEAR: [0, 397, 398, 399]}
    found = judge(rows, groups, 36.0, SETTINGS, "em", ["rival"], ran_on, counted)
    ways = [line.partition(": ")[0] for line in found.words[1:-1]]
    assert ways == [
        f"The latent beats the best token budget ({BUDGETS[1]}, 36 columns)",
        f"The latent beats as many K/V entries of text ({BUDGETS_KV[1]})",
        f"The latent beats as many bytes of text ({BYTES})",
        "The latent beats rival, another bridge",
        f"The latent and the latent of another text of the same article ({NEAR}, 4 rows) cannot be "
        "told apart",
    ]
    of = "8% of the answers of text, 30% of the answers of latent ran into"
    assert found.words[-1].startswith(f"Not compared by whole answers: {of}")
    assert found.words[-1].endswith("their em may be too low.")
    assert found.differences[NEAR].mean == 0.25
    assert " em, 100% of" in found.words[0]
    two = judge({n: rows[n] for n in names if n != BUDGETS[2] and n != NEAR}, groups, 3.0, SETTINGS)
    assert "the better token budget" in two.words[1] and " F1" in two.words[1]
    assert "Not compared" not in two.words[-1]
