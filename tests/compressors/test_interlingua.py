"""A latent from any model's view of a text, with an anchor; any receiver reads any view's."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lw_jax.api import Bridge as Wire
from lw_jax.bridge.bridge import Bridge
from lw_jax.bridge.config import BridgeConfig, CompressorConfig, ReaderConfig, SourceConfig
from lw_jax.compressors import window
from lw_jax.config import parse
from lw_jax.errors import UserError
from lw_jax.launch import main
from lw_jax.models.dims import ModelDims
from lw_jax.models.encoder_arch import EncoderArch
from lw_jax.objectives import view_alignment
from lw_jax.objectives.base import mean
from lw_jax.objectives.common.context import Context
from lw_jax.readers import soft_tokens
from lw_jax.runs.check_stages import check_batches
from lw_jax.runs.findings import Examination
from lw_jax.runs.opened import Session
from lw_jax.sources import bytes as raw_bytes
from lw_jax.types import Features, Taps
from tests.tiny import by_hand
from tests.tiny.encoder import write_encoder
from tests.tiny.evaluation import fresh
from tests.tiny.models import write_model

CONFIG = """
name: interlingua
mesh: {{data: 1}}
sender: {{path: {home}/encoder, dtype: float32}}
receivers:
  one: {{path: {home}/one, dtype: float32}}
  two: {{path: {home}/two, dtype: float32}}
layout: {{max_tokens: 200}}
data:
  facts: {{levels: [1], size: 40, eval_size: 8}}
bridge:
  latent_dim: 12
  sources:
    anchor: {{sentence_encoder: {{pool: mean}}}}
    one: {{receiver_embeddings: {{receiver: one}}}}
    two: {{receiver_embeddings: {{receiver: two}}}}
  compressor:
    interlingua: {{anchor: anchor, views: [one, two], slots: 4, width: 16, heads: 2, depth: 1}}
  reader: {{soft_tokens: {{}}}}
objectives:
  answer_ce: {{weight: 1.0}}
  view_alignment: {{weight: 0.5}}
  cosine_reconstruction: {{weight: 0.1, head: linear}}
stages:
  fit:
    train: {{steps: 6, batch_size: 4, eval_every: 6, eval_rows: 4, log_every: 1}}
  of_one:
    evaluate: {{view: one, rows: 8, batch_size: 4, methods: [text, latent], bootstrap: 40}}
  of_two:
    evaluate: {{view: two, rows: 8, batch_size: 4, methods: [text, latent], bootstrap: 40}}
"""
ROWS = 4
ROLES: tuple[Literal["sender"], Literal["receiver"]] = ("sender", "receiver")
WIDTHS = {"anchor": 16, "one": 16, "two": 24}
COUNTS = {"anchor": 11, "one": 8, "two": 6}
"""Tokens of a text, which fill their row but for two columns."""


@cache
def bridge() -> Bridge:
    text = CONFIG.format(home="x").replace("pool: mean", "pool: none")  # an anchor of many vectors
    config = parse.from_dict(parse.yaml_files.loads(text, "config"))
    receivers = {"one": ModelDims(16, 2, 2, 4, 0.3), "two": ModelDims(24, 2, 2, 4, 0.3)}
    assert config.bridge is not None
    encoder = EncoderArch(
        family="bert",
        vocab_size=50,
        width=16,
        layers=1,
        heads=2,
        mlp_width=16,
        norm_eps=1e-5,
        activation="gelu",
        max_positions=64,
        types=2,
    )
    return Bridge(config.bridge, config.bridge.dims(encoder, receivers))


@cache
def params() -> Any:
    return fresh(bridge(), 2)


def taps(seed: int = 0) -> dict[str, Taps]:
    """Four rows, in every second of which the tokens stand two columns later; the last two rows
    are of one text, with something else in the columns without a token."""
    draw = np.random.default_rng(seed)
    found = {}
    for name, width in WIDTHS.items():
        count = COUNTS[name]
        states = draw.normal(size=(1, ROWS, count + 2, width))
        mask = np.zeros((ROWS, count + 2), bool)
        for row in range(ROWS):
            mask[row, 2 * (row % 2) :][:count] = True
        states[:, 3, 2:] = states[:, 2, :-2]
        found[name] = Taps(
            jnp.asarray(states, jnp.float32), jnp.asarray(mask), jnp.zeros(mask.shape, jnp.int32)
        )
    return found


def of_view(view: str, p: Any, seen: Any) -> Any:
    """The latent from one view."""
    return bridge().at_view(view).encode(p, seen)


def test_rows_take_the_views_in_turn_in_training_and_all_views_are_there() -> None:
    @jax.jit
    def run(p: Any, seen: Any) -> Any:
        rng = jax.random.key(1)
        each = [of_view(view, p, seen) for view in ("one", "two")]
        return each, bridge().apply(p, seen, method="encode", train=True, rng=rng)

    (one, two), (latent, sown) = run(params(), taps())
    assert one.slots.shape == two.slots.shape == (ROWS, 4, 12)
    assert all(np.asarray(x.mask).all() for x in (one, two, latent))
    assert one.span.tolist() == [8.0] * ROWS  # in tokens of its own view
    assert latent.span.tolist() == [8.0, 6.0] * 2  # and of the view of its turn
    for own in (one, two):  # columns without a token change nothing
        np.testing.assert_allclose(own.slots[2], own.slots[3], rtol=1e-5, atol=1e-6)
    assert np.abs(np.asarray(one.slots) - np.asarray(two.slots)).max() > 0.01
    each = sown["compressor"]["views"]
    assert each.shape == (ROWS, 2, 4, 12)
    for row in range(ROWS):
        np.testing.assert_allclose(latent.slots[row], each[row, row % 2], rtol=1e-6)
        for i, own in enumerate((one, two)):
            np.testing.assert_allclose(each[row, i], own.slots[row], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("view", ["one", "two"])
def test_slots_of_a_view_by_hand(view: str) -> None:
    """Its tokens, wherever in their row, read the anchor; queries read them."""
    built = bridge().at_view(view).config.compressor.interlingua.build(bridge().dims)  # type: ignore[union-attr]
    views = {
        name: Features(own.states[0], own.mask, jnp.zeros(own.mask.shape, jnp.int32))
        for name, own in taps().items()
    }
    p = by_hand.drawn(built, views)
    found = jax.jit(built.apply)({"params": p}, views)
    own, anchor = views[view], views["anchor"]
    y = by_hand.rms_norm(p["anchor_norm"], by_hand.dense(p["enter_anchor"], np.asarray(anchor.x)))
    mask = np.asarray(own.mask)
    x = by_hand.dense(p[f"enter_{view}"], np.asarray(own.x))
    x = x + by_hand.sinusoid(mask.cumsum(1) - 1, 16)
    x = by_hand.stack(p["align"], x, mask, None, y, anchor.mask)
    z = np.broadcast_to(p["queries"], (ROWS, 4, 16))
    x = by_hand.rms_norm(p["source_norm"], x)
    z = z + by_hand.attention(p["cross"], by_hand.rms_norm(p["query_norm"], z), x, mask)
    z = z + by_hand.mlp(p["mlp"], by_hand.rms_norm(p["mlp_norm"], z))
    wanted = by_hand.dense(p["leave"], by_hand.rms_norm(p["out_norm"], z))
    np.testing.assert_allclose(found.slots, wanted, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("view", "other"), [("one", "two"), ("two", "one")])
def test_a_latent_is_of_one_view_and_the_anchor(view: str, other: str) -> None:
    def total(states: Any, p: Any, seen: Any) -> Any:
        given = {n: t.replace(states=states[n]) for n, t in seen.items()}
        return jnp.sum(jnp.square(of_view(view, p, given).slots))

    states = {n: t.states for n, t in taps().items()}
    by = jax.jit(jax.grad(total))(states, params(), taps())
    moved = {n: float(jnp.abs(x).max()) for n, x in by.items()}
    assert moved[view] > 0 and moved["anchor"] > 0
    assert moved[other] == 0


def test_the_alignment_is_between_views_of_one_text() -> None:
    draw = np.random.default_rng(3)
    made = draw.normal(size=(ROWS, 2, 4, 12)).astype(np.float32)
    made[1] = made[1, :1]  # both views alike
    valid = np.array([True, True, False, True])

    class Given:
        def apply(self, *_: Any, **__: Any) -> Any:
            return None, {"compressor": {"views": jnp.asarray(made)}}

    def terms(config: Any) -> Any:
        ctx = Context(Given(), {}, None, {"valid": jnp.asarray(valid)}, taps(), jax.random.key(0))  # type: ignore[arg-type]
        found = config.terms(ctx, "one")
        return mean(found.loss), {name: mean(term) for name, term in found.watched.items()}

    loss, watched = jax.jit(terms, static_argnums=0)(view_alignment.Config())
    a, b = made[valid, 0], made[valid, 1]
    length = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    cosines = np.sum(a * b, axis=-1) / length
    assert float(loss) == pytest.approx(float((1 - cosines).mean()), rel=1e-5)
    assert float(watched["view_cosine"]) == pytest.approx(float(cosines.mean()), 1e-4)
    other = np.sum(made[1, 0] * made[0, 1], axis=-1)
    other /= np.linalg.norm(made[1, 0], axis=-1) * np.linalg.norm(made[0, 1], axis=-1)
    whole = np.stack([other, _cosine(made[0, 0], made[3, 1])])
    assert float(watched["view_cosine_deranged"]) == pytest.approx(float(whole.mean()), rel=1e-4)
    made = made[:, :1]
    with pytest.raises(UserError, match=r"use bridge\.compressor.interlingua with two or more"):
        terms(view_alignment.Config())


def _cosine(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sum(x * y, -1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("bridge.sources.one.receiver_embeddings.receiver=x", "bridge.sources.one: 'x' is no rec"),
        ("bridge.compressor.interlingua.view=anchor", "view: 'anchor' is none of its views one"),
        ("bridge.compressor.interlingua.anchor=one", "anchor: 'one' is one of views as well"),
        ("stages.of_one.evaluate.view=x", "stages.of_one.evaluate.view: bridge.compressor.interl"),
    ],
)
def test_what_does_not_fit_is_said(change: str, message: str) -> None:
    key, _, value = change.partition("=")
    raw = parse.yaml_files.loads(CONFIG.format(home="x"), "config")
    with pytest.raises(UserError, match=message):
        parse.with_flags(raw, [(key, value)])


@pytest.mark.parametrize(("accumulate", "wrong"), [("2", False), ("4", True)])
def test_every_view_has_a_row_of_what_is_trained_on_at_once(accumulate: str, wrong: bool) -> None:
    """Of microbatches of one row each, all rows would be of the first view's turn."""
    raw = parse.yaml_files.loads(CONFIG.format(home="x"), "config")
    flag = "stages.fit.train.accumulate", accumulate
    seen = Examination(parse.with_flags(raw, [flag]), Session())
    check_batches(seen, 1)
    assert [f.key for f in seen.findings] == ["stages.fit.train.batch_size"] * wrong
    assert all("1 rows at once, and the 2 views of" in f.text for f in seen.findings)


def test_another_compressor_has_no_view() -> None:
    other = BridgeConfig(
        latent_dim=8,
        source=SourceConfig(bytes=raw_bytes.Config()),
        compressor=CompressorConfig(window=window.Config(size=4)),
        reader=ReaderConfig(soft_tokens=soft_tokens.Config()),
    )
    with pytest.raises(UserError, match=r"view: bridge\.compressor\.window: it makes one latent"):
        other.at_view("one")


@pytest.mark.slow
def test_all_four_pairs_are_trained_and_reported(tmp_path: Path) -> None:
    write_encoder(tmp_path / "encoder", positions=256)
    write_model(tmp_path / "one", "mistral")
    write_model(tmp_path / "two", "llama", vocab=290, width=24)
    path = tmp_path / "interlingua.yaml"
    path.write_text(CONFIG.format(home=tmp_path))
    run = tmp_path / "run"
    assert main(["--config", str(path), f"--run_dir={run}"]) == 0
    lines = [json.loads(line) for line in (run / "diagnostics.jsonl").read_text().splitlines()]
    last = [line for line in lines if "loss" in line][-1]
    for receiver in ("one", "two"):
        assert last[f"loss/{receiver}/view_alignment"] > 0
        assert -1 <= last[f"{receiver}/view_cosine_deranged"] <= 1
    assert last["share/cosine_reconstruction"] > 0
    figures = [json.loads((run / at).read_text()) for at in ("of_one/metrics.json", "metrics.json")]
    nll = {
        (i, r): m["receivers"][r]["latent"]["nll"]
        for i, m in enumerate(figures)
        for r in m["receivers"]
    }
    assert len(nll) == len(set(nll.values())) == 4  # four pairs, each of its own
    text = "Ada keeps 7 goats in the barn."
    sender, receiver = (Wire.load(run, role=role) for role in ROLES)
    whole = Wire.load(run)
    sent = {view: sender.encode(text, view=view) for view in ("one", "two")}
    assert sent["one"] != sent["two"]
    for view, packet in sent.items():
        assert packet == whole.encode(text, view=view)
        for name in ("one", "two"):
            said = receiver.answer(packet, "How many goats?", receiver=name)
            assert said == whole.answer(packet, "How many goats?", receiver=name)
    with pytest.raises(UserError, match=r"bridge\.compressor\.interlingua: view: 'three'"):
        sender.encode(text, view="three")
