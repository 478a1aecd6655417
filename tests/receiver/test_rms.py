"""How loud a receiver's embeddings, keys and values are on real text."""

from __future__ import annotations

import numpy as np
import pytest

from lw_jax.errors import UserError
from lw_jax.receiver import rms
from tests.tiny.evaluation import RECEIVER, make_world

IDS = np.random.default_rng(0).integers(1, 280, (5, 7)).astype(np.int32)
LENGTHS = np.array([7, 3, 0, 1, 5], np.int32)


def test_texts_read_a_few_at_a_time_give_what_all_give(monkeypatch: pytest.MonkeyPatch) -> None:
    """One row at a time, two, and all; a row without a token counts for nothing."""
    model = make_world(3).ctx.frozen.receivers[RECEIVER]
    whole = rms.measure_rms(model, IDS, LENGTHS)
    table = np.asarray(model.params["embed"])
    real = np.concatenate([row[:n] for row, n in zip(IDS, LENGTHS, strict=True)])
    assert whole.embed_rms == pytest.approx(np.sqrt(np.mean(table[real] ** 2)), rel=1e-5)
    a_row = model.arch.layers * IDS.shape[1] * model.arch.width * 4
    for once in (0, a_row, 2 * a_row + 1):
        monkeypatch.setattr(rms, "TAPS", once)
        part = rms.measure_rms(model, IDS, LENGTHS)
        assert part.embed_rms == pytest.approx(whole.embed_rms, rel=1e-5)
        np.testing.assert_allclose(part.key_rms, whole.key_rms, rtol=1e-4)
        np.testing.assert_allclose(part.value_rms, whole.value_rms, rtol=1e-4)
    changed = np.where(np.arange(7)[None] < LENGTHS[:, None], IDS, 5)
    padded = rms.measure_rms(model, changed, LENGTHS)
    np.testing.assert_allclose(padded.key_rms, whole.key_rms, rtol=1e-4)
    with pytest.raises(UserError, match="no token is left"):
        rms.measure_rms(model, IDS, LENGTHS * 0)
