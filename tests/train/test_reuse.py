"""What frozen models say is kept and found again: the same numbers, within bounds, after damage."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lw_jax.bridge.bridge import Bridge
from lw_jax.errors import UserError
from lw_jax.mesh import MeshConfig, make_mesh, put_batch, replicated
from lw_jax.models.apart import apart
from lw_jax.models.frozen import FrozenModels, Teacher
from lw_jax.objectives.base import mean
from lw_jax.text.collate import Collate, measure
from lw_jax.train.config import Reuse
from lw_jax.train.plan import all_terms, context_of, plan_at
from lw_jax.train.reuse import Reused, expected, says
from lw_jax.types import Delivery
from lw_jax.utils.kept import Kept, Room
from tests.bridge.test_step import DIMS, OBJECTIVES, config, frozen_models, prepared, put
from tests.tiny.receiver import LAYOUT, groups, text_tokenizer

WANTED = frozenset({"source/taps", "r/teacher"})


def room(memory: int = 10**6, disk: int = 10**6) -> Room:
    return Room(memory, disk)


def some(seed: int, size: int = 40) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(2, size)).astype(jnp.bfloat16)


def test_what_is_kept_is_there_in_the_next_process(tmp_path: Path) -> None:
    said: list[str] = []
    first = Kept(tmp_path / "deep" / "a.sqlite", room(), said.append)
    for i in range(5):
        first.put(bytes([i]), some(i))
    first.close()
    for of in (room(), room(memory=0)):
        again = Kept(first.path, of, said.append)
        for i in range(5):
            found = again.get(bytes([i]))
            assert found is not None and found.dtype == jnp.bfloat16
            assert np.array_equal(found, some(i))
        assert again.get(b"other") is None
        again.close()
    assert said == []


def test_no_more_is_kept_than_there_is_room(tmp_path: Path) -> None:
    one = some(0).nbytes
    shared = room(memory=2 * one, disk=3 * one + 1)
    kept = [Kept(tmp_path / name, shared, print) for name in ("a", "b")]
    for i in range(6):
        kept[i % 2].put(bytes([i]), some(i))
    assert [kept[i % 2].get(bytes([i])) is not None for i in range(6)] == [True] * 3 + [False] * 3
    for of in kept:
        of.close()
    assert room(memory=0, disk=0).disk == 0
    again = Kept(tmp_path / "a", last := room(disk=4 * one), print)
    assert last.disk == 2 * one  # what is there takes room
    again.close()
    nothing = Kept(tmp_path / "none", room(memory=0, disk=0), print)
    nothing.put(b"a", some(0))
    assert nothing.get(b"a") is None and not nothing.path.exists()


@pytest.mark.parametrize("how", ["content", "half", "text", "empty"])
def test_a_damaged_file_is_made_again(tmp_path: Path, how: str) -> None:
    path = tmp_path / "a.sqlite"
    kept = Kept(path, room(), print)
    for i in range(9):
        kept.put(bytes([i]), some(i, 5000))
    kept.close()
    whole = path.read_bytes()
    where = whole.index(some(3, 5000).tobytes()[:64])
    damaged = {
        "content": whole[: where + 7] + bytes([whole[where + 7] ^ 1]) + whole[where + 8 :],
        "half": whole[: len(whole) // 2],
        "text": b"no database" * 9000,
        "empty": b"",
    }
    path.write_bytes(damaged[how])
    said: list[str] = []
    again = Kept(path, room(memory=0), said.append)
    for i in range(9):
        found = again.get(bytes([i]))
        assert found is None or np.array_equal(found, some(i, 5000))
        again.put(bytes([i]), some(i, 5000))
    assert again.get(bytes([3])) is not None
    again.close()
    last = Kept(path, room(), print)
    assert all(np.array_equal(last.get(bytes([i])), some(i, 5000)) for i in range(9))  # type: ignore[arg-type]
    last.close()
    assert bool(said) == (how != "empty")
    assert all("damaged" in line and "\n" not in line for line in said)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        Kept(tmp_path / "file" / "a.sqlite", room(), print).put(b"a", some(0))


def collate(longer: int = 0) -> Collate:
    """Of the tiny world's rows, with some more padding."""
    source, reads = text_tokenizer("llama"), {"r": text_tokenizer()}
    lengths = measure(LAYOUT, source, reads, groups(64, 3))
    sizes = {key: size + longer for key, size in lengths.sizes.items()}
    return Collate(LAYOUT, source, reads, dataclasses.replace(lengths, sizes=sizes))


def reused(folder: Path, **given: Any) -> Reused:
    prints = {"source": {"model": "a"}, "r": {"model": "b"}}
    return Reused(Reuse(**given), Bridge(config(), DIMS), prints, folder, print)


def bfloat16(models: FrozenModels) -> FrozenModels:
    def cast(x: Any) -> Any:
        return x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x

    return jax.tree.map(cast, models)


def test_rows_are_found_in_batches_of_another_order_and_length(tmp_path: Path) -> None:
    frozen, mesh = frozen_models(), make_mesh(MeshConfig(data=1), jax.devices()[:1])
    rows = groups(8, 2)
    kept = reused(tmp_path, memory_gb=0.0)
    batch = collate()(rows)
    first, asked = kept.fill(WANTED, frozen, batch, put_batch(mesh, batch))
    assert asked
    kept.close()

    again, other = reused(tmp_path), collate(longer=8)(rows[::-1])
    second, asked = again.fill(WANTED, frozen, other, put_batch(mesh, other))
    assert not asked
    for name in WANTED:
        short, long = np.asarray(first[name])[::-1], np.asarray(second[name])
        if name == "r/teacher":  # two questions of each context, which stay in their order
            short = short.reshape(8, 2, *short.shape[1:])[:, ::-1].reshape(short.shape)
        size = short.shape[-2]
        assert np.array_equal(short, long[..., :size, :]) and not long[..., size:, :].any()
    changed = {key: x.copy() for key, x in other.items()}
    changed["r/ask/ids"][3, 0] += 1  # another question: the teacher is asked, the sender is not
    before: list[str] = []
    _, asked = again.fill(
        WANTED, frozen, changed, put_batch(mesh, changed), lambda: before.append("asked")
    )
    assert asked and before == ["asked"]
    assert [kept.path.name.split("-")[0] for kept, *_ in again._pending] == ["r"]
    again.close()
    shapes = says.eval_shape(again.bridge, WANTED, False, frozen, other)
    real = expected(shapes, collate(), ListedRows(rows))
    taps = 2 * 24 * 4 * int(batch["source/lengths"].sum())
    assert taps < real < 1.5 * taps


@pytest.mark.parametrize("form", ["stacked", pytest.param("apart", marks=pytest.mark.slow)])
def test_a_text_that_is_read_once_gives_the_states_of_each_question(form: str) -> None:
    frozen, rows = frozen_models(), groups(6, 3)
    if form == "apart":
        receiver = frozen.receivers["r"]
        own = dataclasses.replace(receiver, params=apart(receiver.params))
        frozen = dataclasses.replace(frozen, receivers={"r": own})
    batch = {key: jnp.asarray(x) for key, x in collate()(rows).items()}
    assert len(set(batch["r/context/lengths"].tolist())) > 1
    bridge, wanted = Bridge(config(), DIMS), frozenset({"r/teacher"})
    plain, shared = (
        says.lower(bridge, wanted, share, frozen, batch).compile() for share in (False, True)
    )
    found, other = (made(frozen, batch)["r/teacher"] for made in (plain, shared))
    assert float(jnp.abs(found).max()) > 0.1
    np.testing.assert_allclose(found, other, atol=2e-5)
    assert shared.cost_analysis()["flops"] < 0.8 * plain.cost_analysis()["flops"]


class ListedRows(list[Any]):
    malformed = ()


def loss_and_gradients(frozen: FrozenModels, batch: Any, params: Any) -> tuple[Any, Any]:
    """The divergence from the teacher in nats a token, and the gradient of the whole loss."""
    plan, bridge = plan_at(OBJECTIVES, 0), Bridge(config(), DIMS)

    def loss(params: Any, frozen: FrozenModels, batch: Any) -> Any:
        context = context_of(bridge, params, frozen, batch, jax.random.key(2), False)
        terms, _ = all_terms(plan, context, {})
        total = sum(mean(term) for term in terms.values())
        return total, mean(terms["kd", "r/kd"])

    (_, kl), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, frozen, batch)
    return kl, jnp.concatenate([x.ravel() for x in jax.tree.leaves(gradients)])


def tuned(frozen: FrozenModels, seed: int) -> FrozenModels:
    """The same models, whose receiver learns from one with soft tokens of its own."""
    width = frozen.receivers["r"].arch.width
    tokens = jax.random.normal(jax.random.key(seed), (1, 3, width))
    prompt = dataclasses.replace(frozen.prompt("r"), with_text=True)
    teacher = Teacher(Delivery(tokens, jnp.ones((1, 3), bool)), prompt, f"seed {seed}")
    return dataclasses.replace(frozen, teachers={"r": teacher})


def test_what_a_tuned_teacher_says_is_kept_apart_from_what_others_say(tmp_path: Path) -> None:
    mesh, plain = make_mesh(MeshConfig(data=1), jax.devices()[:1]), frozen_models()
    one, other = tuned(plain, 1), tuned(plain, 2)
    batch = collate()(groups(6, 2))
    params = jax.device_get(jax.jit(Bridge(config(), DIMS).init)(jax.random.key(0)))
    kept, placed = reused(tmp_path, sender=False), put_batch(mesh, batch)
    plan, given = plan_at(OBJECTIVES, 0), {"bridge": params, "heads": {}}
    asked_of = {"plain": plain, "one": one, "other": other}
    want = {who: kept.wanted(plan, given, of, placed) for who, of in asked_of.items()}
    assert want == {"plain": {"r/teacher"}, "one": {"r/tuned"}, "other": {"r/tuned"}}

    losses = {}
    for who, of in asked_of.items():
        for again in (False, True):
            filled, asked = kept.fill(want[who], of, batch, placed)
            assert asked is not again, who
            losses[who, again] = float(loss_and_gradients(of, filled, params)[0])
        assert losses[who, True] == pytest.approx(losses[who, False], abs=1e-6)
        live = float(loss_and_gradients(of, placed, params)[0])
        assert losses[who, True] == pytest.approx(live, abs=1e-5)
    assert len({round(found, 3) for found in losses.values()}) == 3
    kept.close()


@pytest.mark.slow
def test_in_bfloat16_the_loss_and_its_gradient_stay(tmp_path: Path) -> None:
    frozen, mesh = bfloat16(frozen_models()), make_mesh(MeshConfig(data=1), jax.devices()[:1])
    rows, kept = groups(64, 3), reused(tmp_path)
    params = jax.jit(Bridge(config(), DIMS).init)(jax.random.key(0))
    # kept from a batch of as many rows, in another order and of another length
    one = collate(longer=16)([rows[i] for i in np.random.default_rng(0).permutation(64)])
    kept.fill(WANTED, frozen, one, put_batch(mesh, one))
    whole = collate()(rows)
    filled, asked = kept.fill(WANTED, frozen, whole, put_batch(mesh, whole))
    assert not asked
    kl, gradient = loss_and_gradients(frozen, put_batch(mesh, whole), params)
    again, other = loss_and_gradients(frozen, filled, params)
    assert abs(float(kl - again)) < 1e-3
    cosine = jnp.vdot(gradient, other) / jnp.linalg.norm(gradient) / jnp.linalg.norm(other)
    assert float(cosine) > 0.9999
    kept.close()


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_losses_of_twenty_steps_stay_and_less_is_computed(tmp_path: Path, accumulate: int) -> None:
    frozen, rows = frozen_models(), groups(24, 3)
    rng, losses, kept = np.random.default_rng(0), {}, reused(tmp_path)
    order = [rng.permutation(24)[:8] for _ in range(20)]
    for cached in (False, True):
        mesh, step, fresh = prepared(config(), 1, "adamw", accumulate)
        models = jax.device_put(frozen, replicated(mesh))
        state = put(fresh, mesh)
        losses[cached] = []
        for picked in order:
            host = collate()([rows[i] for i in picked])
            batch = put_batch(mesh, host)
            if cached:
                batch, _ = kept.fill(WANTED, models, host, batch)
            state, metrics = step(state, models, batch)
            losses[cached].append(float(metrics["loss"]))
        if cached:
            batch, asked = kept.fill(WANTED, models, host, put_batch(mesh, host))
            assert not asked
            plain = step.lower(state, models, put_batch(mesh, host)).compile().cost_analysis()
            less = step.lower(state, models, batch).compile().cost_analysis()
            assert less["flops"] < 0.8 * plain["flops"]
    assert np.abs(np.subtract(losses[False], losses[True])).max() < 1e-5
    kept.close()


@pytest.mark.parametrize(
    "given", [{"sender": False, "teacher": False}, {"memory_gb": 0.0, "disk_gb": 0.0}]
)
def test_keeping_nothing_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="leave reuse out"):
        Reuse(**given)
