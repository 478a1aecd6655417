"""What gradients reach, what rows count, and what a mesh or a quiet table changes."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lw_jax.errors import UserError
from lw_jax.mesh import MeshConfig, make_mesh, put_batch, replicated
from lw_jax.models.head import logits
from lw_jax.objectives import (
    answer_ce,
    bag_of_words,
    batch_diversity,
    cosine_reconstruction,
    embedding_anchor,
    entropy,
    first_token_ce,
    gist,
    info_nce,
    k_token_ce,
    kd,
    latent_align,
    reconstruction,
    scale_l2,
    slot_alignment,
    state_kd,
)
from lw_jax.objectives.base import Term, mean
from lw_jax.objectives.common.context import Pass
from lw_jax.objectives.common.measures import distance
from lw_jax.objectives.common.targets import source_states
from lw_jax.receiver.read import Reading
from lw_jax.train.optimiser import groups
from lw_jax.train.optimiser_config import OptimiserConfig
from lw_jax.train.plan import Plan, all_terms
from lw_jax.utils.schedule import Schedule
from tests.tiny import objectives as world
from tests.tiny.receiver import model

PER_TOKEN = reconstruction.Config(mode="per_token", positions=4, width=8, heads=2)
GIST = gist.Config(positions=4, width=8, heads=2)
ALL: list[tuple[str, Any]] = [
    ("answer_ce", answer_ce.Config()),
    ("bag_of_words", bag_of_words.Config()),
    ("batch_diversity", batch_diversity.Config()),
    ("cosine_reconstruction", cosine_reconstruction.Config()),
    ("embedding_anchor", embedding_anchor.Config()),
    ("entropy", entropy.Config()),
    ("first_token_ce", first_token_ce.Config()),
    ("gist", GIST),
    ("info_nce", info_nce.Config()),
    ("k_token_ce", k_token_ce.Config(tokens=2)),
    ("kd", kd.Config(tau=2.0)),
    ("latent_align", latent_align.Config(tokens=2)),
    ("reconstruction", reconstruction.Config()),
    ("scale_l2", scale_l2.Config()),
    ("slot_alignment", slot_alignment.Config()),
    ("slot_alignment", slot_alignment.Config(layer=1)),
    ("state_kd", state_kd.Config(layers=1)),
]
OF_SLOTS = (
    "bag_of_words batch_diversity cosine_reconstruction gist info_nce latent_align reconstruction "
    "scale_l2 slot_alignment"
).split()


@pytest.mark.parametrize(
    ("name", "config"),
    [
        *(pytest.param(*each, id=each[0]) for each in ALL),
        pytest.param("reconstruction", PER_TOKEN, id="per_token", marks=pytest.mark.slow),
    ],
)
def test_gradients_reach_the_bridge_and_rows_that_do_not_count_change_nothing(
    name: str, config: Any
) -> None:
    clean, spoilt = world.data(), world.data()
    for rows in (clean, spoilt):
        rows["batch"]["valid"][4:6] = False  # all of context 2
        rows["batch"]["valid"][1] = False  # one question of context 0
    spoilt["slots"][2] *= -50.0
    spoilt["states"][:, 2] += 9.0
    spoilt["ids"][2] = 7
    spoilt["batch"]["r/answer/ids"][[1, 4, 5]] = 11
    spoilt["batch"]["r/context/ids"][2] = 11
    expected, other = (world.run(name, config, rows) for rows in (clean, spoilt))
    assert np.isfinite(expected[0])
    assert np.abs(expected[2]["reader"]).max() > 1e-6
    chex.assert_trees_all_close(expected, other, rtol=1e-5, atol=1e-6)
    counted = world.run(name, config, world.data())
    assert abs(counted[0] - expected[0]) > 1e-6


def test_no_gradient_reaches_the_states_of_the_source() -> None:
    """Of a sender that is trained by low-rank edits as well: what is compared with stays."""
    rows = world.data()

    def total(states: Any) -> Any:
        seen = world.context({"reader": None}, {**rows, "states": states})
        return jnp.sum(jnp.square(source_states(seen, False)[0]))

    value, by = jax.jit(jax.value_and_grad(total))(rows["states"])
    assert float(value) > 1.0
    assert not np.asarray(by).any()


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("bag_of_words", bag_of_words),
        ("cosine_reconstruction", cosine_reconstruction),
        ("reconstruction", reconstruction),
    ],
)
def test_a_head_before_scaling_leaves_what_is_delivered_alone(name: str, module: Any) -> None:
    options = {"head": "linear"} if name == "cosine_reconstruction" else {}
    _, _, blind = world.run(name, module.Config(head_input="pre_scale", **options))
    assert np.abs(blind["reader"]).max() == 0
    assert np.abs(blind["heads"][name]["r"]["kernel"]).max() > 0


@pytest.mark.parametrize(
    ("name", "config"),
    [pytest.param(*case, id=case[0]) for case in ALL if case[0] in OF_SLOTS],
)
def test_a_context_without_a_slot_is_no_context(name: str, config: Any) -> None:
    """Loss, what is watched and gradients are those of a batch in which it does not count."""
    rows, without = world.data(), world.data()
    rows["used"][2] = without["used"][2] = False
    without["batch"]["valid"][4:6] = False
    found, wanted = world.run(name, config, rows), world.run(name, config, without)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(wanted))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("info_nce", info_nce.Config(positive="source")),
        ("batch_diversity", batch_diversity.Config()),
    ],
)
def test_negatives_are_those_of_the_global_batch(name: str, config: Any) -> None:
    expected, watched, grads = world.run(name, config)
    mesh = make_mesh(MeshConfig(data=8), jax.devices())
    params = {"reader": world.reader(), "heads": world.usual_heads(name, config)}
    rows = world.data()
    states = rows.pop("states")
    placed = put_batch(mesh, rows)
    assert placed["slots"].addressable_shards[0].data.shape[0] == 1
    placed["states"] = jax.device_put(states, replicated(mesh))
    found = world.compiled(name, config)(jax.device_put(params, replicated(mesh)), placed)
    chex.assert_trees_all_close(
        ((expected, watched), grads), jax.device_get(found), rtol=1e-4, atol=1e-5
    )


def test_an_anchor_by_squared_error_gives_no_gradient_at_the_seeds_scale() -> None:
    # Fault 8: embeddings at RMS 0.0027, where the answer loss is steep and the anchor's is flat.
    rms = 0.0027
    tokenizer = model()
    table = tokenizer.params["embed"]
    quiet = table * (rms / jnp.sqrt(jnp.mean(jnp.square(table))))
    tokenizer = dataclasses.replace(tokenizer, params={**tokenizer.params, "embed": quiet})
    rows = world.data()
    slots = np.random.default_rng(4).normal(size=(world.CONTEXTS, 64, world.WIDTH))
    rows["slots"] = slots.astype(np.float32) * rms
    rows["used"] = np.ones((world.CONTEXTS, 64), bool)

    @jax.jit
    def pulls(slots: Any) -> Any:
        def loss(slots: Any, config: Any) -> Any:
            seen = world.context(
                {"reader": jnp.eye(24)}, {**rows, "slots": slots}, {"r": tokenizer}
            )
            return mean(config.terms(seen, "r").loss)

        by: list[Any] = [embedding_anchor.Config(distance=d) for d in ("mse", "cosine")]  # type: ignore[arg-type]
        return [jnp.linalg.norm(jax.grad(loss)(slots, c)) for c in (answer_ce.Config(), *by)]

    answer, mse, cosine = (float(x) for x in pulls(rows["slots"]))
    assert mse < 1e-6 * answer, (answer, mse)
    assert cosine > 1e-3 * answer, (answer, cosine)


def test_text_itself_is_aligned_at_every_layer_and_after_it() -> None:
    rows = world.data()
    ids, lengths = (rows["batch"][f"r/context/{k}"] for k in ("ids", "lengths"))
    rows["slots"] = np.asarray(model().params["embed"])[ids]
    rows["used"] = np.arange(ids.shape[1])[None] < lengths[:, None]

    @jax.jit
    def losses(slots: Any) -> Any:
        seen = world.context({"reader": jnp.eye(24)}, {**rows, "slots": slots})
        configs: list[Any] = [slot_alignment.Config(layer=n) for n in (0, 2)]
        return [mean(c.terms(seen, "r").loss) for c in (*configs, state_kd.Config(layers=2))]

    assert max(float(x) for x in losses(rows["slots"])) < 1e-6
    rows["slots"][:, 0] += 1.0
    assert min(float(x) for x in losses(rows["slots"])) > 1e-3


@pytest.mark.parametrize(("threshold", "share"), [(-1.0, 1.0), (0.99, 0.0)])
def test_a_weight_gated_on_the_reconstruction(threshold: float, share: float) -> None:
    config = batch_diversity.Config(schedule=Schedule(gate=threshold))
    watching = ("cosine_reconstruction", cosine_reconstruction.Config())
    plan = Plan((("batch_diversity", config), watching))

    @jax.jit
    def terms(reader: Any) -> Any:
        seen = world.context({"reader": reader}, world.data())
        loss, watched = all_terms(plan, seen, {"cosine_reconstruction": {}})
        return loss["batch_diversity", "r/batch_diversity"], watched

    term, watched = terms(world.reader())
    plain, _, _ = world.run("batch_diversity", batch_diversity.Config())
    np.testing.assert_allclose(mean(term), share * plain, rtol=1e-5)
    assert float(mean(watched["r/gate/batch_diversity"])) == share


@pytest.mark.parametrize(("below", "share"), [(-1.0, 1.0), (0.99, 0.5)])
def test_a_weight_halved_by_the_reconstruction(below: float, share: float) -> None:
    config = batch_diversity.Config(schedule=Schedule(gate=-1.0, halve=below))
    watching = ("cosine_reconstruction", cosine_reconstruction.Config())
    plan = Plan((("batch_diversity", config), watching))

    @jax.jit
    def factor(reader: Any) -> Any:
        seen = world.context({"reader": reader}, world.data())
        _, watched = all_terms(plan, seen, {"cosine_reconstruction": {}})
        return watched["r/gate/batch_diversity"].total

    assert float(factor(world.reader())) == share
    with pytest.raises(UserError, match=r"schedule\.halve"):
        OptimiserConfig(schedule=Schedule(halve=0.5))


def test_a_gate_needs_something_to_look_at() -> None:
    config = batch_diversity.Config(schedule=Schedule(gate=0.75))
    seen = world.context({"reader": world.reader()}, world.data())
    where = r"objectives\.batch_diversity\.schedule\.gate: nothing measures a reconstruction cosine"
    with pytest.raises(UserError, match=where):
        jax.eval_shape(lambda: world.terms("batch_diversity", config, seen))
    with pytest.raises(UserError, match=r"schedule\.gate"):
        OptimiserConfig(schedule=Schedule(gate=0.5))


def test_states_of_layers_that_the_receiver_does_not_have() -> None:
    seen = world.context({"reader": world.reader()}, world.data())
    with pytest.raises(UserError, match=r"objectives\.state_kd\.layers: 3, and receiver 'r' has 2"):
        world.terms("state_kd", state_kd.Config(layers=3), seen)


def test_widths_that_differ_need_a_head() -> None:
    wide = dataclasses.replace(world.DIMS, source_width=32)
    with pytest.raises(UserError, match=r"objectives\.cosine_\w+\.head: .* set it to linear"):
        world.heads("cosine_reconstruction", cosine_reconstruction.Config(), wide)
    with pytest.raises(UserError, match="set it to linear"):
        world.heads("info_nce", info_nce.Config(positive="source"), wide)
    for name, config in (("info_nce", info_nce.Config(positive="source")),):
        with pytest.raises(UserError, match=r"objectives\.info_nce: .* no states to compare with"):
            world.heads(name, config, dataclasses.replace(world.DIMS, taps=0, source_width=0))
    with pytest.raises(UserError, match="leave it at none"):
        info_nce.Config(head="linear")
    made = world.heads("info_nce", info_nce.Config(positive="source", head="linear"), wide)
    assert made["info_nce"]["r"]["kernel"].shape == (24, 32)


def test_the_optimiser_knows_every_head() -> None:
    heads: list[tuple[str, Any]] = [
        ("bag_of_words", bag_of_words.Config()),
        ("gist", GIST),
        ("reconstruction", PER_TOKEN),
        ("cosine_reconstruction", cosine_reconstruction.Config(head="linear")),
    ]
    made = {name: own for (name, _), own in zip(heads, world.Together(*heads).params, strict=True)}
    found = groups({"heads": made})
    assert found["heads/bag_of_words/r/kernel"] == "muon"
    assert found["heads/bag_of_words/r/bias"] == "adam"
    assert 0.012 < made["gist"]["r"]["queries"].std() < 0.028
    assert found["heads/gist/r/queries"] == found["heads/reconstruction/r/queries"] == "adam"
    assert found["heads/reconstruction/r/cross/query/kernel"] == "muon"


def hand_made(
    config: Any, watched: tuple[str, ...] | None = None
) -> tuple[Any, np.ndarray, np.ndarray]:
    """Term of an objective on states drawn by hand, or what it watches by these names alone;
    log-probabilities [N, A, V], weights' mask."""
    rows, tokenizer = world.data(), model()
    labels, lengths = (rows["batch"][f"r/answer/{k}"] for k in ("ids", "lengths"))
    mask = np.arange(labels.shape[1])[None] < lengths[:, None]
    hidden = np.random.default_rng(5).normal(size=(*labels.shape, 24)).astype(np.float32)

    @jax.jit
    def loss(hidden: Any) -> Any:
        seen = world.context({"reader": world.reader()}, rows)
        # The receiver that reads the text knows nothing: its logits are all alike.
        for asked, states in ((Pass("latent"), hidden), (Pass("text", gradient=False), 0 * hidden)):
            seen.readings["r", asked] = Reading(states, mask, labels, None, None)  # type: ignore[arg-type]
        terms = config.terms(seen, "r")
        assert isinstance(terms.loss, Term)
        found = mean(terms.loss)
        if watched is not None:
            assert {*terms.watched} == {*watched}
            found = {name: mean(term) for name, term in terms.watched.items()}
        return found, logits(tokenizer.arch, tokenizer.params, hidden.reshape(-1, 24))

    found, z = jax.device_get(loss(hidden))
    p = z - np.log(np.exp(z).sum(-1, keepdims=True))
    return found, p.reshape(*labels.shape, -1), mask


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"first": 2},
        {"first_tokens": 2, "first_weight": 100.0},
        {"label_smoothing": 0.2},
    ],
)
def test_weights_of_the_answer_tokens(options: dict[str, Any]) -> None:
    loss, p, mask = hand_made(answer_ce.Config(**options))
    labels = world.data()["batch"]["r/answer/ids"]
    smooth = options.get("label_smoothing", 0.0)
    total, weights = 0.0, 0.0
    for n, a in zip(*np.nonzero(mask), strict=True):
        weight = options.get("first_weight", 1.0) if a < options.get("first_tokens", 0) else 1.0
        if a >= options.get("first", 99):
            continue
        total -= weight * ((1 - smooth) * p[n, a, labels[n, a]] + smooth * p[n, a].mean())
        weights += weight
    np.testing.assert_allclose(loss, total / weights, rtol=1e-5)


def test_weighted_first_tokens_are_watched_beside_all_alike() -> None:
    """As the earlier system logged them: weighted (the loss), all alike, and the first alone."""
    config = answer_ce.Config(first_tokens=2, first_weight=100.0, label_smoothing=0.2)
    found, p, mask = hand_made(config, ("accuracy", "nll_plain", "nll_first"))
    labels = world.data()["batch"]["r/answer/ids"]
    places = list(zip(*np.nonzero(mask), strict=True))
    nats = {(n, a): -p[n, a, labels[n, a]] for n, a in places}
    np.testing.assert_allclose(found["nll_plain"], np.mean(list(nats.values())), rtol=1e-5)
    first = [nll for (_, a), nll in nats.items() if a < 2]
    assert 0 < len(first) < len(nats)
    np.testing.assert_allclose(found["nll_first"], np.mean(first), rtol=1e-5)
    hand_made(answer_ce.Config(first_tokens=2), ("accuracy",))


def at_start(x: np.ndarray) -> np.ndarray:
    """Of x [N, A, ...] the answers' first tokens that are no space."""
    start = world.data()["batch"]["r/answer/start"]
    assert {0, 1} == set(start.tolist())
    return x[np.arange(len(start)), start]


def test_the_first_tokens_beside_the_answer() -> None:
    loss, p, mask = hand_made(k_token_ce.Config(tokens=2))
    labels = world.data()["batch"]["r/answer/ids"]
    nats = [-p[n, a, labels[n, a]] for n, a in zip(*np.nonzero(mask), strict=True) if a < 2]
    np.testing.assert_allclose(loss, np.mean(nats), rtol=1e-5)


def test_entropy_of_the_first_token() -> None:
    loss, p, _ = hand_made(entropy.Config())
    first = at_start(p)
    np.testing.assert_allclose(loss, (np.exp(first) * first).sum(-1).mean(), rtol=1e-5)


@pytest.mark.parametrize("most", [1.0, 1.05, 4.0])
def test_the_first_token_is_louder_while_it_lags_behind_the_text(most: float) -> None:
    loss, p, _ = hand_made(first_token_ce.Config(auto_scale=most))
    labels = at_start(world.data()["batch"]["r/answer/ids"])
    plain = -np.take_along_axis(at_start(p), labels[:, None], axis=1).mean()
    lag = plain / np.log(p.shape[-1])
    assert 1.05 < lag < 4
    np.testing.assert_allclose(loss, plain * min(lag, most), rtol=1e-5)


def test_no_gradient_goes_through_how_far_the_first_token_lags(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Twice what it costs after the text: twice as loud, and so is its gradient, not four times."""

    def loss_of(cost: Any) -> Any:
        def first(ctx: Any, receiver: str, asked: Pass) -> Term:
            del ctx, receiver
            return Term(cost if asked.message == "latent" else jnp.float32(1.5), jnp.float32(1))

        monkeypatch.setattr(first_token_ce, "_first", first)
        found = first_token_ce.Config(auto_scale=4.0).terms(None, "r")  # type: ignore[arg-type]
        assert isinstance(found.loss, Term)
        return mean(found.loss)

    assert float(loss_of(jnp.float32(3.0))) == 6.0
    assert float(jax.grad(loss_of)(jnp.float32(3.0))) == 2.0


def test_a_slot_left_out_by_latent_dropout_has_no_direction() -> None:
    target = np.ones((2, 8), np.float32)
    slots = np.stack([np.zeros(8), np.arange(8.0)]).astype(np.float32)
    pull = jax.jit(jax.grad(lambda x: jnp.sum(distance("cosine", x, target))))(slots)
    assert not np.any(pull[0])
    assert 0.01 < np.linalg.norm(pull[1]) < 1


@pytest.mark.parametrize(
    ("latent", "text", "scale"),
    [(3.0, 1.5, 2.0), (1.0, 2.0, 1.0), (9.0, 1.5, 4.0), (0.0025, 0.0001, 2.5), (0.004, 0.002, 2.0)],
)
def test_how_many_times_the_first_token_counts(
    latent: float, text: float, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never less than once, at most four times; after a text that costs nothing, by 0.001 nats."""

    def first(ctx: Any, receiver: str, asked: Pass) -> Term:
        del ctx, receiver
        return Term(
            jnp.float32(3 * (latent if asked.message == "latent" else text)), jnp.float32(3)
        )

    monkeypatch.setattr(first_token_ce, "_first", first)
    found = first_token_ce.Config(auto_scale=4.0).terms(None, "r")  # type: ignore[arg-type]
    assert isinstance(found.loss, Term)
    assert float(mean(found.loss)) == pytest.approx(scale * latent, rel=1e-5)
    assert float(found.watched["first_token_scale"].total) == pytest.approx(scale, rel=1e-5)
    assert float(found.watched["first_token_scale"].count) == 1
    once = first_token_ce.Config(auto_scale=1.0).terms(None, "r")  # type: ignore[arg-type]
    assert isinstance(once.loss, Term) and not once.watched
    assert float(mean(once.loss)) == pytest.approx(latent)


def test_answers_that_are_right_as_a_whole() -> None:
    """Every real token is the argmax; what is padding has no say."""
    rows, tokenizer = world.data(), model()
    lengths = rows["batch"]["r/answer/lengths"]
    mask = np.arange(5)[None] < lengths[:, None]
    hidden = np.random.default_rng(5).normal(size=(16, 5, 24)).astype(np.float32)
    z = jax.jit(partial(logits, tokenizer.arch))(tokenizer.params, hidden.reshape(-1, 24))
    labels = np.asarray(z).argmax(-1).reshape(16, 5)
    labels[~mask] += 1
    wrong = [0, 3, 4]
    labels[wrong, 0] += 1

    @jax.jit
    def accuracy(*read: Any) -> Any:
        seen = world.context({"reader": world.reader()}, rows)
        seen.readings["r", Pass("latent")] = Reading(*read, None, None)  # type: ignore[arg-type]
        return mean(answer_ce.Config().terms(seen, "r").watched["accuracy"])

    assert float(accuracy(hidden, mask, labels)) == pytest.approx(13 / 16)
