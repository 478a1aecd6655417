"""The DiT bridge: what it starts from, what it sees, and what blinds it."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lw_jax.bridge.bridge import Bridge
from lw_jax.bridge.config import BridgeConfig, CompressorConfig, ReaderConfig, SourceConfig
from lw_jax.compressors import dit, dit_blocks, perceiver, rectified_flow
from lw_jax.errors import UserError
from lw_jax.mesh import MeshConfig, make_mesh
from lw_jax.models.dims import BridgeDims, ModelDims
from lw_jax.models.frozen import FrozenModels
from lw_jax.objectives import answer_ce
from lw_jax.objectives import flow as flow_objective
from lw_jax.objectives.base import mean
from lw_jax.objectives.config import ObjectivesConfig
from lw_jax.readers import soft_tokens
from lw_jax.sources import hidden_states
from lw_jax.text.collate import Collate, measure
from lw_jax.train.config import TrainConfig
from lw_jax.train.optimiser import groups as optimiser_groups
from lw_jax.train.optimiser import make_optimiser
from lw_jax.train.optimiser_config import OptimiserConfig
from lw_jax.train.plan import all_terms, context_of, plan_at
from lw_jax.train.state import new_state
from lw_jax.train.step import make_step
from lw_jax.types import Features, Taps
from tests.tiny import by_hand
from tests.tiny.evaluation import draw
from tests.tiny.receiver import LAYOUT, groups, model, models_of, text_tokenizer

WIDTH, SLOTS, TOKENS = 8, 4, 6
STEPS = 300
QUIET = 0.0027
"""RMS of the embeddings of the earlier systems' receiver."""


def dims(rms: float = 0.1, receivers: int = 1) -> BridgeDims:
    return BridgeDims(
        12, 1, WIDTH, {f"r{i}": ModelDims(WIDTH, 1, 1, 8, rms) for i in range(receivers)}
    )


def module(rms: float = 0.1, **options: Any) -> dit.Dit:
    chosen = {"slots": SLOTS, "width": 16, "heads": 2, "depth": 2, "steps": 3, **options}
    return dit.Config(**chosen).build(dims(rms))


def source(rows: int = 3, seed: int = 0) -> dict[str, Features]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, TOKENS, rows)
    mask = np.arange(TOKENS)[None] < lengths[:, None]
    x = rng.standard_normal((rows, TOKENS, 12)).astype(np.float32)
    return {"source": Features(x, mask, np.zeros((rows, TOKENS), np.int32))}  # type: ignore[arg-type]


def target(rows: int = 3, tokens: int = 6, rms: float = 0.1, seed: int = 1) -> Features:
    rng = np.random.default_rng(seed)
    x = rms * rng.standard_normal((rows, tokens, WIDTH)).astype(np.float32)
    mask = np.arange(tokens)[None] < np.array([2, 4, 6] * rows)[:rows, None]
    return Features(x, mask, np.zeros((rows, tokens), np.int32))  # type: ignore[arg-type]


def init_of(**options: Any) -> Any:
    """The function that makes the parameters."""
    rngs = {"params": jax.random.key(0), "noise": jax.random.key(1)}
    return lambda: module(**options).init(rngs, source())["params"]


@cache
def fresh(**options: Any) -> Any:
    return jax.device_get(jax.jit(init_of(**options))())


@cache
def moved(**options: Any) -> Any:
    """Parameters as training leaves them: no gate is shut."""
    return jax.device_get(draw(jax.eval_shape(init_of(**options)), 2, 0.3))


@cache
def compiled(method: str, train: bool, **options: Any) -> Any:
    net = module(**options)
    return jax.jit(
        lambda params, seed, *arguments: net.apply(
            {"params": params},
            *arguments,
            train,
            method=None if method == "sample" else method,
            rngs={"noise": jax.random.key(seed)},
        )
    )


def sample(params: Any, views: Any, seed: int = 0, train: bool = False, **options: Any) -> Any:
    return jax.device_get(compiled("sample", train, **options)(params, seed, views))


def loss(params: Any, views: Any, aim: Features, seed: int = 0, **options: Any) -> dit.FlowLoss:
    found: dit.FlowLoss = jax.device_get(
        compiled("loss", True, **options)(params, seed, views, aim)
    )
    return found


def test_the_condition_is_of_normed_tokens_and_of_real_ones() -> None:
    """However loud the source is, its tokens have an RMS of 1; the summary is their mean."""
    view = source()["source"]
    loud = view.replace(x=np.float32(100.0) * view.x)  # type: ignore[attr-defined]
    net = dit_blocks.Condition(width=16, heads=2, conditioning="mean")
    given, params = jax.device_get(jax.jit(net.init_with_output)(jax.random.key(0), loud))
    np.testing.assert_allclose(np.sqrt(np.mean(given.tokens**2, axis=-1)), 1.0, rtol=1e-4)
    for row, real in enumerate(np.asarray(view.mask)):
        np.testing.assert_allclose(
            given.summary[row], np.asarray(given.tokens)[row][real].mean(0), rtol=1e-4, atol=1e-5
        )
    pool = params["params"]["pool"]
    added = given.summary @ pool["kernel"] + pool["bias"][None]
    np.testing.assert_allclose(given.added, added, rtol=1e-4, atol=1e-5)
    # A token's place is among the real ones, and is seen: all places have one vector here.
    run = jax.jit(net.apply)
    alike = view.replace(x=np.ones_like(view.x))  # type: ignore[attr-defined]
    later = alike.replace(mask=np.roll(view.mask, 1, axis=1))  # type: ignore[attr-defined]
    tokens, moved = (np.asarray(run(params, view).tokens) for view in (alike, later))
    assert float(np.abs(tokens[:, 0] - tokens[:, 1]).max()) > 0.1
    np.testing.assert_allclose(moved[:, 1:3], tokens[:, :2], rtol=1e-4, atol=1e-5)


def test_before_training_the_velocity_is_zero() -> None:
    """adaLN-Zero: the sample is the noise itself, and the loss is that of standing still."""
    latent = sample(fresh(), source(), length="full")
    noise = sample(fresh(), source(seed=5), length="full")
    np.testing.assert_array_equal(latent.slots, noise.slots)  # noise that nothing has moved
    assert float(np.std(latent.slots)) == pytest.approx(0.1, rel=0.3)
    found = loss(fresh(), source(), target())
    np.testing.assert_allclose(found.error, found.still, rtol=1e-5)
    assert float(np.mean(found.still)) == pytest.approx(2.0, rel=0.3)
    blocks = fresh()["velocity"]["blocks"]
    assert float(np.abs(blocks["adapt"]["kernel"]).max()) == 0.0
    assert blocks["cross"]["out"]["kernel"].shape == (2, 2, 8, 16)  # scanned over the depth


@pytest.mark.parametrize(
    "conditioning",
    # Of the others the condition is checked in numpy in `test_dit_blocks.py`.
    ["cross", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("mean", "attention_pool"))],
)
def test_the_condition_is_seen_without_its_padding(conditioning: str) -> None:
    options = {"conditioning": conditioning}
    params, views = moved(**options), source()
    there = sample(params, views, **options)
    view = views["source"]
    chex.assert_shape(there.slots, (3, SLOTS, WIDTH))
    littered = view.replace(x=np.where(view.mask[..., None], view.x, np.float32(1e3)))
    again = sample(params, {"source": littered}, **options)
    np.testing.assert_allclose(again.slots, there.slots, atol=1e-4)
    np.testing.assert_array_equal(again.mask, there.mask)
    other = sample(params, source(seed=5), **options)
    assert float(np.abs(other.slots - there.slots).max()) > 1e-3


def test_a_text_has_one_latent_wherever_it_stands_in_a_batch() -> None:
    params, view = moved(length="full"), source()["source"]
    whole = sample(params, {"source": view}, length="full")
    turned = jax.tree.map(lambda x: np.roll(x, 1, axis=0), view)
    found = sample(params, {"source": turned}, length="full")
    np.testing.assert_allclose(np.roll(whole.slots, 1, axis=0), found.slots, atol=1e-5)
    drawn = sample(params, {"source": view}, seed=1, length="full")
    assert float(np.abs(drawn.slots - whole.slots).max()) > 1e-2
    same = jax.tree.map(lambda x: np.repeat(x[:1], 3, axis=0), view)
    rows = sample(params, {"source": same}, train=True, length="full").slots
    assert float(np.abs(rows[0] - rows[1]).max()) > 1e-2  # training draws noise for each row


def test_targets_are_cut_masked_and_as_long_as_the_head_says() -> None:
    params, views, aim = moved(), source(), target()
    found = loss(params, views, aim)
    np.testing.assert_array_equal(found.cut, [False, False, True])
    np.testing.assert_array_equal(found.mask.sum(axis=1), [2, 4, 4])
    far = np.where(aim.mask[..., None], aim.x, np.float32(1e3))
    far[:, SLOTS:] = 1e3
    littered = aim.replace(x=far)
    again = loss(params, views, littered)
    np.testing.assert_allclose(again.error * found.mask, found.error * found.mask, rtol=1e-4)
    np.testing.assert_allclose(again.length_nll, found.length_nll)
    whole = loss(moved(length="full"), views, aim, length="full")
    assert whole.length_nll is None
    assert bool(whole.mask.all())
    head = params["length"]
    three = {
        **head,
        "bias": np.float32(100.0) * (np.arange(SLOTS + 1) == 3),
    }
    latent = sample({**params, "length": three}, views)
    np.testing.assert_array_equal(latent.mask, [[True, True, True, False]] * 3)
    assert float(np.abs(latent.slots[:, 3]).max()) == 0.0


@pytest.mark.parametrize("count", [1, 3])
def test_slots_that_are_none_are_not_seen(count: int) -> None:
    """One alone sees itself, whatever it asks for; of three each sees the others."""
    bias = np.where(np.arange(SLOTS + 1) == count, np.float32(100.0), np.float32(0.0))
    params = {**moved(), "length": {**moved()["length"], "bias": bias}}
    net = params["velocity"]
    own = net["blocks"]["self"]
    asking = {**own, "query": jax.tree.map(lambda x: -3.0 * x, own["query"])}
    other = {**params, "velocity": {**net, "blocks": {**net["blocks"], "self": asking}}}
    aim = target().replace(mask=np.broadcast_to(np.arange(6) < count, (3, 6)))
    for found in (
        lambda p: sample(p, source()).slots[:, :count],
        lambda p: loss(p, source(), aim).error[:, :count],
    ):
        apart = float(np.abs(found(params) - found(other)).max())
        assert apart < 1e-5 if count == 1 else apart > 1e-3


def test_samples_are_as_loud_as_the_targets() -> None:
    """The velocity does not know how loud the receiver is: only the unit does."""
    params = moved(length="full")
    quiet, loud = (sample(params, source(), length="full", **x).slots for x in ({"rms": 0.01}, {}))
    np.testing.assert_allclose(quiet * 10, loud, rtol=1e-4)
    raw = sample(params, source(), length="full", unit_targets=False).slots
    np.testing.assert_allclose(raw, loud * 10, rtol=1e-4)


@partial(jax.jit, static_argnums=(0, 1))
def sensitivity(rms: float, unit_targets: bool) -> Any:
    """After training on eight (source, target) pairs: loss and shuffled loss of held-out noise, and
    the share of samples that lie nearer to their own source's target than to any other's."""
    options = {"conditioning": "mean", "length": "full", "unit_targets": unit_targets}
    net = module(rms, width=32, depth=1, steps=10, **options)
    views, aim = jax.tree.map(jnp.asarray, (source(8), target(8, SLOTS, rms)))
    aim = aim.replace(mask=jnp.ones_like(aim.mask))
    rngs = {"params": jax.random.key(0), "noise": jax.random.key(1)}
    params = net.init(rngs, views)["params"]
    optimiser = optax.adam(optax.cosine_decay_schedule(5e-3, STEPS))
    eight = jax.tree.map(lambda x: jnp.repeat(x, 8, axis=0), (views, aim))

    def error(params: Any, rng: Any, shift: int) -> Any:
        given, wanted = eight
        given = jax.tree.map(lambda x: jnp.roll(x, 8 * shift, axis=0), given)
        found = net.apply({"params": params}, given, wanted, method="loss", rngs={"noise": rng})
        return jnp.mean(found.error)

    def step(carry: Any, rng: Any) -> Any:
        params, state = carry
        updates, state = optimiser.update(jax.grad(error)(params, rng, 0), state, params)
        return (optax.apply_updates(params, updates), state), None

    keys = jax.random.split(jax.random.key(2), STEPS)
    (params, _), _ = jax.lax.scan(step, (params, optimiser.init(params)), keys)
    held_out = jax.random.split(jax.random.key(3), 64)
    losses = [jnp.mean(jax.lax.map(lambda k, s=s: error(params, k, s), held_out)) for s in (0, 1)]
    given, _ = eight
    made = net.apply({"params": params}, given, True, rngs={"noise": jax.random.key(4)}).slots
    apart = jnp.sum(jnp.square(made[:, None] - aim.x[None]), axis=(2, 3))
    return [*losses, jnp.mean(jnp.argmin(apart, axis=1) == jnp.repeat(jnp.arange(8), 8))]


@pytest.mark.slow
def test_quiet_targets_blind_the_flow_and_unit_targets_do_not() -> None:
    """The earlier systems' fault: at RMS 0.0027 under unit noise, any condition gives the same
    loss."""
    own, shuffled, hit = map(float, sensitivity(QUIET, False))
    assert own < 0.5  # it has learned to take the noise away, and looks well trained
    assert abs(shuffled - own) < 0.1 * own
    assert hit < 0.3  # one in eight by chance
    own, shuffled, hit = map(float, sensitivity(QUIET, True))
    assert shuffled > 5 * own
    assert hit > 0.95


def test_every_leaf_has_its_group() -> None:
    for conditioning in ("mean", "cross", "attention_pool"):
        shapes = jax.eval_shape(init_of(conditioning=conditioning))
        for path, group in optimiser_groups({"bridge": {"compressor": shapes}}).items():
            assert group == ("muon" if path.endswith("/kernel") else "adam"), path


def test_what_cannot_be_generated_is_refused() -> None:
    with pytest.raises(UserError, match="heads: 3 does not divide width 16"):
        dit.Config(slots=2, width=16, heads=3)
    with pytest.raises(UserError, match=r"one receiver; got 2 \(r0, r1\)"):
        jax.eval_shape(
            dit.Config(slots=2, width=16).build(dims(receivers=2)).init,
            {"params": jax.random.key(0), "noise": jax.random.key(1)},
            source(),
        )
    wide = target().replace(x=jnp.zeros((3, 6, 2 * WIDTH)))
    with pytest.raises(UserError, match=r"latent_dim: 8, .* width 16; set it to 16"):
        loss(moved(), source(), wide)


# The step: tests/receiver/worlds' models, whose width is 24.

STEP_DIMS = BridgeDims(24, 1, 24, {"r": ModelDims(24, 2, 2, 6, 0.3)})


def wire(compressor: CompressorConfig) -> BridgeConfig:  # type: ignore[valid-type]
    return BridgeConfig(
        latent_dim=24,
        source=SourceConfig(hidden_states=hidden_states.Config(layers=(2,))),
        compressor=compressor,
        reader=ReaderConfig(soft_tokens=soft_tokens.Config()),
    )


SMALL = CompressorConfig(dit=dit.Config(slots=3, width=16, heads=2, depth=1, steps=2))


@cache
def frozen() -> tuple[FrozenModels, Any]:
    rows, tokenizer = groups(4), {"r": text_tokenizer()}
    lengths = measure(LAYOUT, text_tokenizer("llama"), tokenizer, rows)
    batch = Collate(LAYOUT, text_tokenizer("llama"), tokenizer, lengths)(rows)
    return models_of(model("llama")), batch


def init(config: BridgeConfig) -> Any:
    return jax.jit(Bridge(config, STEP_DIMS).init)(jax.random.key(0))


def traced_step(config: BridgeConfig, objectives: Any) -> Any:
    """The shapes of a step's metrics."""
    params = {"bridge": jax.eval_shape(partial(init, config)), "heads": {}}
    optimiser = make_optimiser(OptimiserConfig(name="muon"), params, 5)
    state = jax.eval_shape(lambda p: new_state(p, optimiser, jax.random.key(1), 0.9), params)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    train, plan = TrainConfig(5, ema=0.9), plan_at(objectives, 0)
    step = make_step(train, Bridge(config, STEP_DIMS), optimiser, mesh, plan)
    return jax.eval_shape(step, state, *frozen())[1]


FLOW = ObjectivesConfig(flow=flow_objective.Config())


def test_what_is_logged_before_training() -> None:
    @jax.jit
    def seen(params: Any, frozen_models: FrozenModels, batch: Any) -> Any:
        context = context_of(
            Bridge(wire(SMALL), STEP_DIMS), params, frozen_models, batch, jax.random.key(0), True
        )
        found, watched = all_terms(plan_at(FLOW, 0), context, {})
        return {k[1]: mean(v) for k, v in found.items()}, {k: mean(v) for k, v in watched.items()}

    losses, watched = seen(init(wire(SMALL)), *frozen())
    assert set(losses) == {"r/flow", "r/flow_length"}
    assert set(watched) == {"r/flow/zero", "r/flow/shuffled", "r/flow/cut"}
    for name in ("zero", "shuffled"):  # the velocity is zero, under whatever condition
        assert float(watched[f"r/flow/{name}"]) == pytest.approx(float(losses["r/flow"]), rel=1e-5)
    assert float(losses["r/flow_length"]) == pytest.approx(np.log(4), abs=1.5)
    answers = frozen()[1]["r/answer/lengths"]
    assert float(watched["r/flow/cut"]) == pytest.approx(float(np.mean(answers > 3)))


@pytest.mark.parametrize(
    ("change", "rows"),
    [(partial(jnp.roll, shift=1), [1, 0]), (partial(jnp.repeat, repeats=2), [0, 0, 1, 1])],
)
def test_conditions_are_those_of_whole_contexts(change: Any, rows: list[int]) -> None:
    rng = np.random.default_rng(0)
    states, mask = rng.normal(size=(3, 2, 4, 5)), np.array([[1, 1, 0, 0], [1, 1, 1, 0]], bool)
    ids = rng.integers(0, 9, (2, 4))
    views = {"one": Taps(*map(jnp.asarray, (states, mask, ids)))}
    found = flow_objective._contexts(views, change)["one"]
    chex.assert_trees_all_close(
        (found.states, found.mask, found.ids),
        (states[:, rows].astype(np.float32), mask[rows], ids[rows]),
    )


def test_a_step_of_flow_alone_makes_no_latent(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_sampling(*_: Any) -> Any:
        raise AssertionError("sampled")

    made = jax.eval_shape(partial(init, wire(SMALL)))
    monkeypatch.setitem(globals(), "init", lambda _: made)
    monkeypatch.setattr(dit, "SAMPLERS", {**rectified_flow.SAMPLERS, "euler": no_sampling})
    traced_step(wire(SMALL), FLOW)
    both = ObjectivesConfig(flow=flow_objective.Config(), answer_ce=answer_ce.Config())
    with pytest.raises(AssertionError, match="sampled"):
        traced_step(wire(SMALL), both)


@pytest.mark.parametrize("part", ["question", "context"])
def test_other_targets(part: Any) -> None:
    plan = plan_at(ObjectivesConfig(flow=flow_objective.Config(target=part)), 0)
    bridge, key = Bridge(wire(SMALL), STEP_DIMS), jax.random.key(0)

    def found(params: Any, frozen_models: FrozenModels, batch: Any) -> Any:
        return all_terms(plan, context_of(bridge, params, frozen_models, batch, key, True), {})

    losses, watched = jax.eval_shape(found, jax.eval_shape(bridge.init, key), *frozen())
    assert {name for _, name in losses} == {"r/flow", "r/flow_length"}
    assert "r/flow/shuffled" in watched


def test_a_compressor_that_is_no_flow_is_named() -> None:
    config = wire(CompressorConfig(perceiver=perceiver.Config(slots=3, width=16, heads=2)))
    with pytest.raises(UserError, match=r"objectives.flow: bridge.compressor.perceiver is no flow"):
        traced_step(config, FLOW)


@pytest.mark.parametrize("cross", [True, False])
def test_the_velocity_by_hand(cross: bool) -> None:
    """adaLN blocks: shifts, scales and gates of a condition of time and source, in their order."""
    net = dit_blocks.Velocity(8, 2, 2, 3, cross, 5)
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=(2, 3, 5)).astype(np.float32), np.asarray([0.25, 0.9], np.float32)
    mask, seen = np.asarray([[1, 1, 1], [1, 1, 0]], bool), np.asarray([[1, 1], [1, 0]], bool)
    tokens = rng.normal(size=(2, 2, 8)).astype(np.float32)
    added = None if cross else rng.normal(size=(2, 8)).astype(np.float32)
    given = dit_blocks.Given(tokens, seen, added, tokens[:, 0])
    p = by_hand.drawn(net, x, t, mask, given)
    found = jax.jit(net.apply)({"params": p}, x, t, mask, given)

    def shifted(h: np.ndarray, shift: np.ndarray, scale: np.ndarray) -> np.ndarray:
        return by_hand.layer_norm({}, h) * (1 + scale) + shift

    condition = by_hand.dense(p["time_up"], by_hand.sinusoid(1000 * t, 8, 10000.0))
    condition = by_hand.dense(p["time_out"], by_hand.silu(condition))
    condition = by_hand.silu(condition if added is None else condition + added)
    h = by_hand.dense(p["enter"], x) + by_hand.sinusoid(np.arange(3), 8)
    for i in range(2):
        w = jax.tree.map(lambda leaf, i=i: leaf[i], p["blocks"])
        made = by_hand.dense(w["adapt"], condition)[:, None]
        parts = np.split(made, 9 if cross else 6, axis=-1)
        y = shifted(h, *parts[:2])
        h = h + parts[2] * by_hand.attention(w["self"], y, y, mask)
        if cross:
            y = shifted(h, *parts[6:8])
            h = h + parts[8] * by_hand.attention(w["cross"], y, tokens, seen)
        h = h + parts[5] * by_hand.mlp(w["mlp"], shifted(h, *parts[3:5]))
    h = shifted(h, *np.split(by_hand.dense(p["adapt"], condition)[:, None], 2, axis=-1))
    np.testing.assert_allclose(found, by_hand.dense(p["leave"], h), atol=2e-3)
