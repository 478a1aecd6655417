"""K on a schedule, and the alignment of the warm-up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lw_jax.errors import UserError
from lw_jax.objectives import k_token_ce, latent_align, warm_up_align
from lw_jax.objectives.base import mean
from lw_jax.utils.schedule import Schedule
from tests.tiny import objectives as world


def test_k_rises_or_falls_to_its_end() -> None:
    config = k_token_ce.Config(tokens=2, tokens_end=8, ramp=6)
    said = [float(config.count(jnp.int32(step))) for step in (0, 1, 3, 6, 60)]
    assert said == [2, 3, 5, 8, 8]
    assert config.most == 8
    assert float(config.count(None)) == 8
    falling = k_token_ce.Config(tokens=8, tokens_end=2, ramp=6)
    assert float(falling.count(jnp.int32(3))) == 5
    assert float(k_token_ce.Config(tokens=3).count(jnp.int32(9))) == 3


def test_only_k_tokens_count() -> None:
    config = k_token_ce.Config(tokens=2, tokens_end=4, ramp=4)

    @jax.jit
    def losses(step: Any) -> Any:
        seen = world.context({"reader": world.reader()}, world.data())
        of = {k: world.terms("k", k_token_ce.Config(tokens=k), seen)[0] for k in (2, 3, 4)}
        return world.terms("k", config, replace(seen, step=step)), of

    for step, count in ((0, 2), (2, 3), (4, 4)):
        (term, watched), of = losses(jnp.int32(step))
        assert float(watched["r/k_tokens"].total) == count
        np.testing.assert_allclose(mean(term), mean(of[count]), rtol=1e-5)
    assert len({round(float(mean(one)), 4) for one in of.values()}) == 3


def test_a_ramp_has_an_end() -> None:
    for given in ({"tokens_end": 4}, {"ramp": 3}):
        with pytest.raises(UserError, match="ramp: give it and tokens_end, or neither"):
            k_token_ce.Config(**given)  # type: ignore[arg-type]


def test_the_warm_up_aligns_four_on_text_batches() -> None:
    config = warm_up_align.Config()
    assert (config.tokens, config.schedule) == (4, Schedule(on="text"))
    assert warm_up_align.Config.terms is latent_align.Config.terms
    assert not config.schedule.active(3, "latent")
