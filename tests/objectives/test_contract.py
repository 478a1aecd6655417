"""An objective keeps its contract, or one line says what would be right."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lw_jax.errors import UserError
from lw_jax.objectives import config as objectives_config
from lw_jax.objectives.base import Objective, Term, Terms, masked, mean
from lw_jax.objectives.common.context import Context
from lw_jax.train.plan import Plan, all_terms
from lw_jax.types import Array
from lw_jax.utils.registry import check_contract
from lw_jax.utils.schedule import Schedule
from tests.tiny import objectives as world


@dataclass(frozen=True)
class Whole(Objective):
    """Everything that an objective can have."""

    at_rest: ClassVar[float] = 0.5
    scale: float = 2.0

    def init(self, dims: Any, rng: Array) -> Any:
        return {name: {"kernel": jnp.ones((own.width, 1))} for name, own in dims.receivers.items()}

    def terms(self, ctx: Context, receiver: str) -> Terms:
        given = ctx.deliveries[receiver].embeds
        assert given is not None
        value = self.scale * (given @ ctx.heads[receiver]["kernel"])[..., 0]
        term = masked(value, jnp.ones(value.shape, bool))
        return Terms(
            {"": term, "half": Term(term.total / 2, term.count)},
            watched={"seen": term},
            cosine=Term(jnp.float32(0.25), jnp.float32(1.0)),
            shuffled=term,
        )


def test_all_that_an_objective_can_give() -> None:
    gated = Whole(schedule=Schedule(gate=0.5))
    seen = world.context({"reader": world.reader()}, world.data())
    heads = {"whole": Whole().init(world.DIMS, jax.random.key(0))}
    found = []
    for config in (Whole(), gated):
        loss, watched = all_terms(Plan((("whole", config),)), seen, heads)
        assert set(loss) == {("whole", "r/whole"), ("whole", "r/whole_half")}
        found.append([float(mean(term)) for term in loss.values()])
    assert set(watched) == {
        "r/seen",
        "r/reconstruction_cosine",
        "r/whole/shuffled",
        "r/gate/whole",
    }
    expected = 2 * (world.data()["slots"] @ world.reader()).sum(-1).mean()
    np.testing.assert_allclose(found, [[expected, expected / 2], [0, 0]], rtol=1e-5)


def test_every_objective_keeps_the_contract() -> None:
    for field in fields(objectives_config.ObjectivesConfig):
        (kind,) = (k for k in field.type.__args__ if k is not type(None))  # type: ignore[union-attr]
        check_contract(kind, Objective, field.name)


@dataclass(frozen=True)
class NotDerived:
    """Has all the methods."""

    weight: float = 1.0
    schedule: Schedule = Schedule()

    def terms(self, ctx: Context, receiver: str) -> Terms:
        raise AssertionError


class NoDataclass(Objective):
    """Its fields would be missing from the config."""

    scale: float = 1.0

    def terms(self, ctx: Context, receiver: str) -> Terms:
        raise AssertionError


@dataclass(frozen=True)
class NoTerms(Objective):
    """Has nothing to give."""


@dataclass(frozen=True)
class WrongTerms(Objective):
    """Does not say for which receiver."""

    def terms(self, ctx: Context) -> Terms:  # type: ignore[override]
        raise AssertionError


@dataclass(frozen=True)
class WrongInit(Objective):
    """Knows no sizes."""

    def init(self, rng: Array) -> Any:  # type: ignore[override]
        raise AssertionError

    def terms(self, ctx: Context, receiver: str) -> Terms:
        raise AssertionError


@dataclass(frozen=True)
class Returns(Objective):
    """Gives something else than terms."""

    what: str = "dict"

    def terms(self, ctx: Context, receiver: str) -> Any:
        term = masked(ctx.latent.slots, ctx.latent.slots > 0)
        return {
            "dict": {"mine": term},
            "number": Terms(jnp.float32(1.0)),  # type: ignore[arg-type]
            "rows": Terms(Term(jnp.ones(3), jnp.ones(3))),
            "watched": Terms(term, watched={"seen": 0.5}),  # type: ignore[dict-item]
            "several": Terms({"near": term, "far": 0.5}),  # type: ignore[dict-item]
        }[self.what]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (NotDerived, "Config has to derive from lw_jax.objectives.base.Objective"),
        (NoDataclass, "Config has to be a @dataclass(frozen=True)"),
        (NoTerms, "Config lacks terms(self, ctx: 'Context', receiver: 'str') -> 'Terms'"),
        (WrongTerms, "Config.terms(self, ctx: 'Context') -> 'Terms' has other parameters than"),
        (WrongInit, "Config.init(self, rng: 'Array') -> 'Any' has other parameters than lw_jax."),
    ],
)
def test_a_class_that_is_no_objective(kind: type, message: str) -> None:
    with pytest.raises(UserError) as caught:
        check_contract(kind, Objective, "mine.py")
    assert str(caught.value).startswith(f"mine.py: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            Returns(what="dict"),
            "terms returned a dict; expected lw_jax.objectives.base.Terms, as in",
        ),
        (Returns(what="number"), "terms returned an array as loss; expected a Term"),
        (
            Returns(what="rows"),
            "terms returned a Term of shapes (3,) and (3,) as loss; expected two",
        ),
        (Returns(what="watched"), "terms returned a float as watched['seen']; expected a Term"),
        (Returns(what="several"), "terms returned a float as loss['far']; expected a Term"),
    ],
    ids=lambda x: x.what if isinstance(x, Returns) else "",
)
def test_a_mistake_is_one_line(config: Any, message: str) -> None:
    seen = world.context({"reader": world.reader()}, world.data())
    with pytest.raises(UserError) as caught:
        all_terms(Plan((("mine", config),)), seen, {})
    assert str(caught.value).startswith(f"objectives.mine: {message}")
    assert "\n" not in str(caught.value)
