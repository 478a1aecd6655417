"""A method is one file: what it says of itself decides where it stands and when it runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import pytest

from lw_jax.errors import UserError
from lw_jax.evaluate import methods as registry
from lw_jax.evaluate.config import DecodeConfig, EvaluateConfig
from lw_jax.evaluate.methods import controls, default_methods, method, methods
from lw_jax.evaluate.methods.base import Family, Method, latent_bytes, reads_latent, reads_text
from lw_jax.evaluate.predict import options_of, predict
from lw_jax.utils.registry import add_file
from tests.tiny.evaluation import World, received

RIGHT = """
from lw_jax.evaluate.methods.base import Method, latent_bytes


def message(ctx, batch, latent):
    return ctx.delivered(batch, latent.replace(slots=-latent.slots))


METHOD = Method(message, latent_bytes, order=25, latent="own", control=True)
"""


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """What a test adds is forgotten."""
    held, made = registry._known()
    before = dict(held), dict(made)
    yield
    for now, then in zip((held, made), before, strict=True):
        now.clear()
        now.update(then)


def test_the_table_is_what_the_methods_say() -> None:
    """As the lists had it that were kept by hand."""
    assert tuple(methods()) == (
        "text",
        "latent",
        "token_budget_first",
        "token_budget_last",
        "token_budget_sentences",
        "token_budget_surprisal",
        "token_budget_bytes",
        "pca",
        "relay",
        "embedding_replay_raw",
        "embedding_replay_anchor",
        "embedding_replay_adapter",
        "no_message",
        "zero",
        "mean",
        "deranged",
        "deranged_near",
    )
    assert controls() == ("no_message", "zero", "mean", "deranged")
    named = {"relay", "token_budget_bytes", "pca", "deranged_near"}
    left_out = named | {"token_budget_sentences", "token_budget_surprisal"}
    left_out |= {"embedding_replay_anchor", "embedding_replay_adapter"}
    assert default_methods() == tuple(n for n in methods() if n not in left_out)
    assert EvaluateConfig().methods == default_methods()


def test_a_file_outside_the_package_is_a_method(tmp_path: Path, world: World) -> None:
    (tmp_path / "negated.py").write_text(RIGHT)
    add_file(tmp_path / "negated.py")
    config = EvaluateConfig(methods=("latent",), wire=("int8",))
    assert config.all_methods[:3] == ("latent", "latent_int8", "negated")
    assert "negated" in EvaluateConfig().methods
    batch, how = world.batch(0, 4), method("negated")
    options = options_of(DecodeConfig(max_new_tokens=2), world.ctx.model.arch, world.tokenizer)

    def nll(how: Method) -> list[float]:
        sent = received(world.ctx, how, batch)
        raw = predict(how.message, world.ctx, batch, sent, jax.random.key(0), options)
        found: list[float] = raw.scored.nll.tolist()
        return found

    assert all(a != b for a, b in zip(nll(how), nll(method("latent")), strict=True))


GOOD = Method(reads_text, latent_bytes, order=1)


@pytest.mark.parametrize(
    ("name", "entry", "message"),
    [
        ("text", GOOD, r"f\.py: there is a method 'text' already; rename the file"),
        ("new", "a text", r"f\.py: expected METHOD = Method\(\.\.\.\) or FAMILY"),
        ("new", None, r"f\.py: expected METHOD .* got a NoneType"),
        ("new", replace(GOOD, message=lambda batch: batch), r"f\.py: message\(batch\) has other "),
        ("new", replace(GOOD, wire_bytes=3), r"wire_bytes has to be a function, wire_bytes\(sent"),
        ("new", replace(GOOD, latent="its"), r"'own', 'other' or 'near'; got 1 and 'its'"),
        ("new", replace(GOOD, cut=lambda: [0]), r"f\.py: cut\(\) has other parameters than cut"),
        ("new", replace(GOOD, prepare=1), r"prepare has to be a function, prepare\(ctx, batch\)"),
        ("new", Family("latent_", method, ""), r"f\.py: there is a family 'latent_' already"),
    ],
)
def test_what_breaks_the_contract_is_said_in_a_line(name: str, entry: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        registry.register(name, entry, "f.py")


def test_a_missing_field_is_said_with_the_file(tmp_path: Path) -> None:
    text = RIGHT.replace(", order=25", "")
    (tmp_path / "unordered.py").write_text(text)
    with pytest.raises(UserError, match=r"unordered\.py: .* argument: 'order'"):
        add_file(tmp_path / "unordered.py")


def test_a_wrong_value_is_said_when_it_comes(world: World) -> None:
    def message(ctx: Any, batch: Any, latent: Any) -> Any:
        return latent

    registry.register("wrong", Method(message, latent_bytes, order=1, latent="own"), "f.py")
    how, batch = method("wrong"), world.batch(0, 4)
    options = options_of(DecodeConfig(max_new_tokens=2), world.ctx.model.arch, world.tokenizer)
    sent = received(world.ctx, how, batch)
    with pytest.raises(UserError, match=r"message gives a Latent; it has to give a .*Message"):
        predict(how.message, world.ctx, batch, sent, jax.random.key(0), options)


def test_names_of_families() -> None:
    assert method("latent_int8").codec == "int8"
    assert method("latent_int8").message is reads_latent  # one program for all codecs
    assert EvaluateConfig(methods=("latent_int8",)).all_methods == ("latent_int8",)
    with pytest.raises(UserError, match="unknown codec 'int5'"):
        EvaluateConfig(methods=("latent_int5",))
    with pytest.raises(UserError, match="methods: unknown 'texts'; one of text, latent"):
        EvaluateConfig(methods=("texts",))
