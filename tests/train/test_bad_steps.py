"""Steps that are not finite: they change nothing, are counted, and after some in a row end it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lw_jax.errors import UserError
from lw_jax.stages.train import by_cudnn, look_at_models
from lw_jax.train.checkpoint import Checkpoints, read_meta, steps
from lw_jax.train.diagnostics import DivergedError, read
from lw_jax.train.loop import checkpoint_root, fit
from lw_jax.train.state import TrainState, apply_gradients, keep_finite, new_state
from tests.tiny.training import batch, fresh, job, make_step

Batches = Callable[[int, int], Iterator[np.ndarray]]


@pytest.fixture(scope="module")
def compiled() -> Any:
    return make_step(fresh()[1])


def spoilt(*bad: int) -> Batches:
    """The batches, of which those of some steps (1-based) hold a NaN."""

    def batches(start: int, stop: int) -> Iterator[np.ndarray]:
        for step in range(start, stop):
            made = batch(step)
            if step + 1 in bad:
                made[3, 1] = np.nan
            yield made

    return batches


def finite(tree: Any) -> bool:
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return all(bool(jnp.isfinite(x).all()) for x in leaves)


def without_rng(state: TrainState) -> TrainState:
    return state.replace(rng=0)  # type: ignore[attr-defined]


def test_a_bad_step_changes_nothing_but_its_number(compiled: Any) -> None:
    state, _ = fresh()
    before = jax.device_get(without_rng(state))
    after, metrics = compiled(state, next(spoilt(1)(0, 1)))
    assert not metrics["sound"]
    assert int(after.step) == 1
    chex.assert_trees_all_equal(without_rng(after).replace(step=before.step), before)  # type: ignore[attr-defined]


kept_of = jax.jit(keep_finite)


@cache
def moved() -> tuple[TrainState, TrainState]:
    """A state, and the one after a step."""
    state, optimiser = fresh()
    step = jax.jit(lambda state: apply_gradients(state, state.params, optimiser, 0.9))
    return jax.device_get((state, step(state)))


@pytest.mark.parametrize("where", ["loss", "grad_norm", "params", "opt_state", "ema"])
def test_whatever_is_not_finite_makes_it_bad(where: str) -> None:
    state, new = moved()
    metrics = {name: np.float32(1) for name in ("loss", "grad_norm")} | {"other": np.float32(7)}
    kept, said = kept_of(state, new, metrics)
    assert bool(said["sound"]) and float(said["other"]) == 7
    chex.assert_trees_all_equal(without_rng(kept), without_rng(new))
    if where in metrics:
        metrics[where] = np.float32(np.inf)
    else:
        wrong = jax.tree.map(
            lambda x: np.full_like(x, np.nan) if x.dtype.kind == "f" else x, getattr(new, where)
        )
        new = new.replace(**{where: wrong})  # type: ignore[attr-defined]
    kept, said = kept_of(state, new, metrics)
    assert not said["sound"]
    for name in ("params", "opt_state", "ema"):
        chex.assert_trees_all_equal(getattr(kept, name), getattr(state, name))


def test_bad_steps_are_counted_and_the_others_go_on(compiled: Any, tmp_path: Path) -> None:
    own = {"evaluate": None, "step_for": lambda _: compiled, "steps": 8, "log_every": 2}
    last = fit(job(tmp_path, batches=spoilt(2, 5, 6), **own))
    assert finite((last.params, last.opt_state, last.ema))
    lines = [line for line in read(tmp_path / "diagnostics.jsonl") if line["kind"] == "train"]
    assert [line["bad_steps"] for line in lines] == [1, 1, 3, 3]
    assert [line["loss"] is None for line in lines] == [False, False, True, False]
    kept = read_meta(checkpoint_root(tmp_path, "first") / "8")["progress"]
    assert (kept["bad_steps"], kept["bad_in_a_row"]) == (3, 0)
    state = fresh()[0]
    for number in range(8):
        if number + 1 in (2, 5, 6):  # it has used up its batch and its random key
            state = state.replace(step=state.step + 1)  # type: ignore[attr-defined]
        else:
            state, _ = compiled(state, batch(number))
    chex.assert_trees_all_equal(without_rng(last), without_rng(state))


def test_a_resumed_run_counts_alike(compiled: Any, tmp_path: Path) -> None:
    """Stopped after step 4, amid a row of bad steps: 3 to 5 of the most that may be 3."""
    bad = spoilt(3, 4, 5)
    own: dict[str, Any] = {"evaluate": None, "step_for": lambda _: compiled, "steps": 9}

    def stopped(start: int, stop: int) -> Iterator[np.ndarray]:
        yield from bad(start, 5)
        raise KeyboardInterrupt

    for directory in (tmp_path / "one", tmp_path / "two"):
        if directory.name == "two":
            with pytest.raises(KeyboardInterrupt):
                fit(job(directory, batches=stopped, max_bad_steps=4, **own))
            assert steps(checkpoint_root(directory, "first")) == [4]
        with pytest.raises(DivergedError, match=r"3 steps in a row were.* step 5") as end:
            fit(job(directory, batches=bad, max_bad_steps=3, **own))
        assert end.value.step == 5
        assert "the last finite checkpoint is of step 4" in str(end.value)
    states = [
        fit(job(directory, batches=bad, **own))
        for directory in (tmp_path / "one", tmp_path / "two")
    ]
    chex.assert_trees_all_equal(*map(without_rng, states))
    ends = [checkpoint_root(tmp_path / name, "first") / "9" for name in ("one", "two")]
    assert read_meta(ends[0])["progress"] == read_meta(ends[1])["progress"]


def blown_up(rate: float) -> dict[str, Any]:
    """A stage whose optimiser's rate is beyond reason."""
    state, _ = fresh()
    made = optax.adam(lambda _: jnp.float32(rate))
    return {"state": new_state(state.params, made, state.rng, 0.9), "step_for": step_of(made)}


def step_of(made: optax.GradientTransformation) -> Any:
    step = make_step(made)
    return lambda _: step


@pytest.mark.parametrize(("rate", "count"), [(np.inf, 1), (np.inf, 6), (1e30, 1), (1e30, 9)])
def test_a_rate_beyond_reason_is_named_and_never_ends_well(
    rate: float, count: int, tmp_path: Path
) -> None:
    """1e39 is infinite in float32."""
    own = {"evaluate": None, "save_every": 1, "keep": 9, "steps": count}
    with pytest.raises(DivergedError) as end:
        fit(job(tmp_path, **blown_up(rate), **own))
    said = str(end.value)
    assert "stages.first: " in said and "lower optimiser.lr" in said and "\n" not in said
    root, like = checkpoint_root(tmp_path, "first"), blown_up(rate)["state"]
    for step in steps(root):
        kept = Checkpoints(root, 9, job(tmp_path).identity).restore(like)
        assert kept is not None and kept.step == steps(root)[0]
        assert finite((kept.state.params, kept.state.opt_state, kept.state.ema)), step
    assert "its update is not finite" in said
    assert ("there is no checkpoint" in said) == (count == 1)


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (None, "its rows are to blame, all rows of its batch"),
        (
            "sender's weights x are not",
            "the frozen models give no finite numbers: sender's weights",
        ),
    ],
)
def test_rows_and_models_are_told_apart(
    found: str | None, says: str, compiled: Any, tmp_path: Path
) -> None:
    asked: list[np.ndarray] = []

    def look(given: np.ndarray) -> str | None:
        asked.append(given)
        return found

    own = {"evaluate": None, "step_for": lambda _: compiled, "look_at_models": look}
    with pytest.raises(DivergedError, match=says) as end:
        fit(job(tmp_path, batches=spoilt(*range(2, 31)), max_bad_steps=2, **own))
    assert end.value.step == 3
    assert len(asked) == 1 and np.isnan(asked[0]).any()
    assert "optimiser.lr" not in str(end.value)


@pytest.mark.parametrize("receivers", [(), ("qwen",), ("one", "two")])
def test_gradients_alone_that_are_not_finite_are_told_from_rows(
    receivers: tuple[str, ...], tmp_path: Path
) -> None:
    """A fused attention may be wrong in its backward pass alone: its output, and so the loss, is
    right."""
    _, optimiser = fresh()

    def step(state: TrainState, x: jax.Array) -> Any:
        def loss_fn(params: Any) -> jax.Array:  # the root's slope at 0 is infinite
            return jnp.mean(jnp.sqrt(0 * jnp.square(x @ params["mix"]["kernel"]))) + 1

        loss, grads = jax.value_and_grad(loss_fn)(state.params)
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads)}
        return keep_finite(state, apply_gradients(state, grads, optimiser, 0.9), metrics)

    compiled = jax.jit(step)
    own = {"evaluate": None, "step_for": lambda _: compiled, "look_at_models": lambda _: None}
    with pytest.raises(DivergedError) as end:
        fit(job(tmp_path, max_bad_steps=2, by_cudnn=receivers, **own))
    said = str(end.value)
    assert "step 2 (grad_norm is nan); its loss, models and parameters are finite (none" in said
    assert "so it is the backward pass" in said and "rows are to blame" not in said
    for name in receivers:
        assert f"--receivers.{name}.attention=xla" in said
    assert ("cudnn" in said) == bool(receivers)


def test_a_last_step_that_is_bad_for_its_rows_is_left_out(compiled: Any, tmp_path: Path) -> None:
    own = {"evaluate": None, "step_for": lambda _: compiled, "steps": 4}
    last = fit(job(tmp_path, batches=spoilt(4), **own))
    assert finite(last.params)
    with pytest.raises(UserError, match="not finite at step 1"):  # but all of them are too many
        fit(job(tmp_path / "all", batches=spoilt(1), **(own | {"steps": 1})))


def test_receivers_whose_attention_is_cudnns_are_named() -> None:
    ways = {"a": "cudnn", "b": "xla", "c": "cudnn"}
    receivers = {name: SimpleNamespace(attention=way) for name, way in ways.items()}
    given: Any = SimpleNamespace(frozen=SimpleNamespace(receivers=receivers))
    assert by_cudnn(given) == ("a", "c")


def test_weights_and_sizes_that_are_not_finite_are_named() -> None:
    weights = {"layers": {"up": jnp.ones((2, 2)).at[0, 1].set(jnp.nan)}}
    dims = SimpleNamespace(embed_rms=1.0, key_rms=(1.0, float("nan")), value_rms=(1.0,))

    def pipeline(sender: Any, receivers: dict[str, Any]) -> Any:
        return SimpleNamespace(
            sender=sender,
            frozen=SimpleNamespace(receivers=receivers),
            bridge=SimpleNamespace(dims=SimpleNamespace(receivers=dict.fromkeys(receivers, dims))),
        )

    whole = jax.tree.map(jnp.ones_like, weights)
    assert look_at_models(pipeline(weights, {}), {}) == "sender's weights layers/up are not"
    said = look_at_models(pipeline(whole, {"reader": weights}), {})
    assert said == "reader's weights layers/up are not"
    said = look_at_models(pipeline(whole, {"reader": whole}), {})
    assert said == "the RMS of reader, in receivers.json, is not"
