"""Every objective against numpy by hand."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lw_jax.models.decoder import run
from lw_jax.models.head import logits
from lw_jax.objectives import (
    answer_ce,
    bag_of_words,
    batch_diversity,
    cosine_reconstruction,
    embedding_anchor,
    gist,
    info_nce,
    kd,
    latent_align,
    reconstruction,
    scale_l2,
    slot_alignment,
    state_kd,
)
from lw_jax.objectives.base import mean
from lw_jax.objectives.common.context import Pass
from lw_jax.objectives.common.targets import given_slots
from lw_jax.text.collate import Collate, measure
from lw_jax.train.plan import Plan, all_terms
from tests.tiny import objectives as world
from tests.tiny.receiver import LAYOUT, groups, model, prompt, text_tokenizer

ROWS = world.data()
GIVEN = ROWS["slots"] @ world.reader()
TABLE = np.asarray(model().params["embed"])


def pool(x: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return np.stack([x[i][mask[i]].mean(0) for i in range(len(x))])


def cos(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x * y).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1)


def embedded(part: str) -> np.ndarray:
    ids, lengths = (ROWS["batch"][f"r/{part}/{k}"] for k in ("ids", "lengths"))
    return np.stack([TABLE[row[:n]].mean(0) for row, n in zip(ids, lengths, strict=True)])


SLOTS = pool(GIVEN, ROWS["used"])
SOURCE = pool(ROWS["states"].mean(0), ROWS["real"])

PER_TOKEN = reconstruction.Config(
    mode="per_token", positions=4, width=8, heads=2, source_norm=False
)
HALVES: tuple[Any, ...] = (
    slot_alignment.Config(distance="cosine"),
    slot_alignment.Config(distance="mse"),
    slot_alignment.Config(distance="cosine", mse_weight=0.1),
)
CASES = world.Together(
    ("cosine_reconstruction", cosine_reconstruction.Config(source_norm=False)),
    ("cosine_reconstruction", cosine_reconstruction.Config(head="linear")),
    *(
        ("info_nce", info_nce.Config(positive=positive, source_norm=False))  # type: ignore[arg-type]
        for positive in ("self", "receiver_text", "source")
    ),
    *(
        ("embedding_anchor", embedding_anchor.Config(to=to, distance=distance))  # type: ignore[arg-type]
        for to in ("answer", "question", "context")
        for distance in ("cosine", "mse")
    ),
    *(
        ("reconstruction", reconstruction.Config(head_input=given, source_norm=False))  # type: ignore[arg-type]
        for given in ("delivered", "pre_scale")
    ),
    ("reconstruction", PER_TOKEN),
    *(("bag_of_words", bag_of_words.Config(positive_weight=weight)) for weight in (1.0, 30.0)),
    ("batch_diversity", batch_diversity.Config()),
    *(("slot_alignment", half) for half in HALVES),
    ("scale_l2", scale_l2.Config()),
    *(("latent_align", latent_align.Config(tokens=n, distance="mse")) for n in (1, 2)),
    *(("gist", gist.Config(positions=n, width=8, heads=2)) for n in (4, 9)),
    ("state_kd", state_kd.Config(layers=1, distance="mse")),
    ("kd", kd.Config(tau=2.0)),
)
"""Every case below: all are one program."""


@pytest.mark.parametrize("train", [True, False])
def test_the_bridge_is_told_whether_this_is_training(train: bool) -> None:
    told = []

    class Told(world.HandMade):
        def apply(self, *given: Any, method: str, train: bool, rng: Any) -> Any:
            told.append((method, train))
            return super().apply(*given, method=method, train=train, rng=rng)

    seen = world.context({"reader": world.reader()}, ROWS)
    bridge = Told(seen.bridge.latent)  # type: ignore[attr-defined]
    seen = dataclasses.replace(seen, train=train, bridge=bridge)  # type: ignore[arg-type]
    assert seen.deliveries["r"].embeds is not None
    assert told == [("encode", train), ("deliver", train)]


def test_cosine_reconstruction() -> None:
    loss, watched = CASES.run(
        "cosine_reconstruction", cosine_reconstruction.Config(source_norm=False)
    )
    alike = cos(SLOTS, SOURCE)
    np.testing.assert_allclose(loss, 1 - alike.mean(), rtol=1e-5)
    np.testing.assert_allclose(watched["r/reconstruction_cosine"], alike.mean(), rtol=1e-4)


def test_a_head_maps_the_slots_to_the_source() -> None:
    config = cosine_reconstruction.Config(head="linear")
    loss, _ = CASES.run("cosine_reconstruction", config)
    head = CASES.heads("cosine_reconstruction", config)["r"]
    normed = ROWS["states"] / np.sqrt((ROWS["states"] ** 2).mean(-1, keepdims=True))
    source = pool(normed.mean(0), ROWS["real"])
    expected = 1 - cos(SLOTS @ head["kernel"] + head["bias"], source).mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-4)


@pytest.mark.parametrize("positive", ["self", "receiver_text", "source"])
def test_info_nce(positive: str) -> None:
    config = info_nce.Config(positive=positive, source_norm=False)  # type: ignore[arg-type]
    loss, watched = CASES.run("info_nce", config)
    other = {"self": SLOTS, "receiver_text": embedded("context"), "source": SOURCE}[positive]
    scores = cos(SLOTS[:, None], other[None]) / 0.07
    own = np.diagonal(scores)
    expected = np.log(np.exp(scores).sum(1)) - own
    np.testing.assert_allclose(loss, expected.mean(), rtol=1e-4)
    nearest = np.where(np.eye(len(own), dtype=bool), -np.inf, scores).max(1)
    assert watched["r/info_nce_right"] == pytest.approx((own > nearest).mean())


def test_rows_of_the_same_text_are_no_negatives() -> None:
    rows = world.data()
    for part in ("ids", "lengths"):
        rows["batch"][f"r/context/{part}"][3] = rows["batch"][f"r/context/{part}"][0]
    loss, _ = CASES.run("info_nce", info_nce.Config(source_norm=False), rows)
    scores = cos(SLOTS[:, None], SLOTS[None]) / 0.07
    allowed = np.ones_like(scores, bool)
    allowed[0, 3] = allowed[3, 0] = False
    expected = np.log((np.exp(scores) * allowed).sum(1)) - np.diagonal(scores)
    np.testing.assert_allclose(loss, expected.mean(), rtol=1e-4)


@pytest.mark.parametrize(
    ("to", "part"), [("answer", "answer"), ("question", "ask"), ("context", "context")]
)
@pytest.mark.parametrize("distance", ["cosine", "mse"])
def test_embedding_anchor(to: str, part: str, distance: str) -> None:
    config = embedding_anchor.Config(to=to, distance=distance)  # type: ignore[arg-type]
    loss, _ = CASES.run("embedding_anchor", config)
    slots, target = np.repeat(SLOTS, world.QUESTIONS, axis=0), embedded(part)
    if part == "context":  # one for all its questions
        target = np.repeat(target, world.QUESTIONS, axis=0)
    far = 1 - cos(slots, target) if distance == "cosine" else ((slots - target) ** 2).mean(-1)
    np.testing.assert_allclose(loss, far.mean(), rtol=1e-5)


@pytest.mark.parametrize("head_input", ["delivered", "pre_scale"])
def test_pooled_reconstruction(head_input: str) -> None:
    config = reconstruction.Config(head_input=head_input, source_norm=False)  # type: ignore[arg-type]
    loss, _ = CASES.run("reconstruction", config)
    head = CASES.heads("reconstruction", config)["r"]
    slots = SLOTS if head_input == "delivered" else pool(ROWS["slots"], ROWS["used"])
    expected = ((slots @ head["kernel"] + head["bias"] - SOURCE) ** 2).mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_heads_read_what_the_receiver_is_given() -> None:
    slots, mask = given_slots(world.context({"reader": world.reader()}, ROWS), "r", "delivered")
    np.testing.assert_allclose(slots, GIVEN, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(mask, ROWS["used"])


def test_reconstruction_of_every_token_begins_at_the_first_real_one() -> None:
    loss, _ = CASES.run("reconstruction", PER_TOKEN)
    params = CASES.heads("reconstruction", PER_TOKEN)["r"]
    head = PER_TOKEN.token_head(world.WIDTH)
    made = np.asarray(jax.jit(head.apply)({"params": params}, GIVEN, ROWS["used"]))
    states = ROWS["states"].mean(0)
    errors = []
    for i, real in enumerate(ROWS["real"]):
        for position, token in enumerate(np.flatnonzero(real)[:4]):
            errors.append(((made[i, position] - states[i, token]) ** 2).mean())
    assert len(errors) == 4 * 3 + 4 * 4
    np.testing.assert_allclose(loss, np.mean(errors), rtol=1e-5)


@pytest.mark.parametrize("weight", [1.0, 30.0])
def test_bag_of_words(weight: float) -> None:
    config = bag_of_words.Config(positive_weight=weight)
    loss, watched = CASES.run("bag_of_words", config)
    head = CASES.heads("bag_of_words", config)["r"]
    errors, found = [], []
    for i in range(world.CONTEXTS):
        z = GIVEN[i][ROWS["used"][i]].max(0) @ head["kernel"] + head["bias"]
        there = set(ROWS["ids"][i][ROWS["real"][i]].tolist())
        each = [
            weight * np.log1p(np.exp(-z[v])) if v in there else np.log1p(np.exp(z[v]))
            for v in range(40)
        ]
        errors.append(np.mean(each))
        found.append(np.mean([z[v] > 0 for v in there]))
    np.testing.assert_allclose(loss, np.mean(errors), rtol=1e-5)
    np.testing.assert_allclose(watched["r/bag_of_words_recall"], np.mean(found), rtol=1e-5)


def test_the_hosts_batch_holds_no_bag_of_words() -> None:
    """Which of a vocabulary's words a text has is made of its ids, on the devices."""
    tokenizer, some = text_tokenizer("llama"), groups(4)
    vocab = tokenizer.backend.get_vocab_size()
    batch = Collate(
        LAYOUT, tokenizer, {"r": tokenizer}, measure(LAYOUT, tokenizer, {"r": tokenizer}, some)
    )(some)
    assert all(max(x.shape) < vocab for x in batch.values()), {k: x.shape for k, x in batch.items()}


def test_batch_diversity() -> None:
    loss, _ = CASES.run("batch_diversity", batch_diversity.Config())
    flat = (GIVEN * ROWS["used"][..., None]).reshape(world.CONTEXTS, -1)
    alike = cos(flat[:, None], flat[None])
    off = ~np.eye(world.CONTEXTS, dtype=bool)
    np.testing.assert_allclose(loss, alike[off].mean(), rtol=1e-4)


def test_slot_alignment_takes_the_mean_of_each_slots_stretch() -> None:
    rows = world.data()
    lengths = rows["batch"]["r/context/lengths"]
    lengths[:] = 6  # three slots: two tokens each; two slots: three each
    loss, _ = CASES.run("slot_alignment", slot_alignment.Config(distance="mse"), rows)
    ids = rows["batch"]["r/context/ids"]
    errors = []
    for i in range(world.CONTEXTS):
        used = rows["used"][i].sum()
        for m in range(used):
            stretch = ids[i, m * 6 // used : (m + 1) * 6 // used]
            errors.append(((GIVEN[i, m] - TABLE[stretch].mean(0)) ** 2).mean())
    np.testing.assert_allclose(loss, np.mean(errors), rtol=1e-5)


def test_slot_alignment_adds_a_share_of_the_squared_error() -> None:
    cosine, mse, both = (CASES.run("slot_alignment", config)[0] for config in HALVES)
    np.testing.assert_allclose(both, cosine + 0.1 * mse, rtol=1e-5)


def test_loudness_is_held_against_the_receivers() -> None:
    loss, _ = CASES.run("scale_l2", scale_l2.Config())
    rms = np.sqrt((GIVEN**2).mean(-1))[ROWS["used"]]
    np.testing.assert_allclose(loss, ((rms / 0.3 - 1) ** 2).mean(), rtol=1e-5)


@pytest.mark.parametrize("tokens", [1, 2])
def test_latent_align_takes_the_answers_first_words(tokens: int) -> None:
    config = latent_align.Config(tokens=tokens, distance="mse")
    loss, _ = CASES.run("latent_align", config)
    ids, lengths, start = (ROWS["batch"][f"r/answer/{k}"] for k in ("ids", "lengths", "start"))
    errors = []
    for n, row in enumerate(ids):
        words = row[start[n] : lengths[n] - 1][:tokens]  # no EOS
        used = GIVEN[n // world.QUESTIONS][ROWS["used"][n // world.QUESTIONS]]
        pairs = zip(used, TABLE[words], strict=False)
        errors += [((slot - gold) ** 2).mean() for slot, gold in pairs]
    assert len(errors) > world.CONTEXTS * tokens
    np.testing.assert_allclose(loss, np.mean(errors), rtol=1e-5)


@pytest.mark.parametrize("positions", [4, 9])
def test_gist_of_the_texts_first_tokens(positions: int) -> None:
    """Also of texts that all have fewer tokens than it has positions."""
    config = gist.Config(positions=positions, width=8, heads=2)
    loss, _ = CASES.run("gist", config)
    head = {"params": CASES.heads("gist", config)["r"]}
    made = np.asarray(jax.jit(config.head(world.WIDTH).apply)(head, GIVEN, ROWS["used"]))
    ids, lengths = (ROWS["batch"][f"r/context/{k}"] for k in ("ids", "lengths"))
    errors = [
        ((made[i, t] - TABLE[ids[i, t]] / 0.3) ** 2).mean()
        for i in range(world.CONTEXTS)
        for t in range(min(positions, lengths[i]))
    ]
    np.testing.assert_allclose(loss, np.mean(errors), rtol=1e-5)


def test_gist_leaves_tokens_out_at_random() -> None:
    config = gist.Config(positions=4, width=8, heads=2, mask_probability=0.5)
    heads, counts = world.heads("gist", config), []
    for train in (True, False):

        @jax.jit
        def count(reader: jax.Array, train: bool = train) -> jax.Array:
            seen = dataclasses.replace(world.context({"reader": reader}, ROWS), train=train)
            return world.terms("gist", config, seen, heads)[0].count

        counts.append(float(count(world.reader())))
    whole = np.minimum(4, ROWS["batch"]["r/context/lengths"]).sum()
    assert counts[1] == whole
    assert 0.2 * whole < counts[0] < 0.8 * whole


def test_state_kd_compares_what_follows_the_message() -> None:
    loss, _ = CASES.run("state_kd", state_kd.Config(layers=1, distance="mse"))
    receiver, longest = model(), 24
    batch, asked = ROWS["batch"], range(world.CONTEXTS * world.QUESTIONS)

    @jax.jit
    def stream(h: Any, lengths: Any) -> Any:
        where = jnp.broadcast_to(jnp.arange(longest)[None], h.shape[:2])
        return run(receiver.arch, receiver.params, h, positions=where, lengths=lengths, stop=1).h

    def part(name: str, i: int) -> np.ndarray:
        return TABLE[batch[f"r/{name}/ids"][i][: batch[f"r/{name}/lengths"][i]]]

    def states(messages: list[np.ndarray]) -> list[np.ndarray]:
        """The stream after one layer behind the message, row by row, laid out by hand."""
        after = [np.concatenate([part("ask", n), part("answer", n)]) for n in asked]
        before = [np.concatenate([TABLE[list(prompt().head)], messages[n // 2]]) for n in asked]
        lengths = [len(a) + len(b) for a, b in zip(before, after, strict=True)]
        h = np.zeros((len(asked), longest, world.WIDTH), np.float32)
        for n in asked:
            h[n, : lengths[n]] = np.concatenate([before[n], after[n]])
        found = np.asarray(stream(h, np.asarray(lengths)))
        return [found[n, len(before[n]) : lengths[n] - 1] for n in asked]

    latent = states([GIVEN[i][ROWS["used"][i]] for i in range(world.CONTEXTS)])
    text = states([part("context", i) for i in range(world.CONTEXTS)])
    errors = [((a - b) ** 2).mean(-1) for a, b in zip(latent, text, strict=True)]
    np.testing.assert_allclose(loss, np.concatenate(errors).mean(), rtol=1e-4)


@pytest.mark.slow
def test_kd_beside_answer_ce_is_what_it_is_alone() -> None:
    """In bfloat16 one pass of the head makes both; losses are those of each alone, and the gradient
    is their sum."""
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), model().params)
    receivers = {"r": dataclasses.replace(model(), params=narrow)}
    both = (("answer_ce", answer_ce.Config()), ("kd", kd.Config(tau=2.0)))

    @partial(jax.jit, static_argnums=1)
    @partial(jax.grad, has_aux=True)
    def moved(reader: Any, objectives: Any) -> Any:
        seen = world.context({"reader": reader, "heads": {}}, ROWS, receivers)
        terms, _ = all_terms(Plan(objectives), seen, {})
        means = {name: mean(term) for (name, _), term in terms.items()}
        kl = seen.computed.get("answers/r", (None, None))[1]
        assert (kl is not None) == (len(objectives) == 2)
        return sum(means.values()), means

    grads, means = jax.device_get(moved(world.reader(), both))
    alone = [jax.device_get(moved(world.reader(), (one,))) for one in both]
    for _, own in alone:
        for name, loss in own.items():
            np.testing.assert_allclose(means[name], loss, rtol=1e-5)
    want = alone[0][0] + alone[1][0]
    assert (grads * want).sum() > 0.999 * np.linalg.norm(grads) * np.linalg.norm(want)
    np.testing.assert_allclose(np.linalg.norm(grads), np.linalg.norm(want), rtol=0.02)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_pass_of_the_head_makes_both_in_a_narrow_receiver_alone(dtype: str) -> None:
    """In float32 the order in which gradients are added stays that of two passes."""
    cast = jax.tree.map(lambda x: x.astype(dtype), model().params)
    receivers = {"r": dataclasses.replace(model(), params=cast)}
    both = Plan((("answer_ce", answer_ce.Config()), ("kd", kd.Config())))
    made = []

    def losses(reader: Any) -> Any:
        seen = world.context({"reader": reader}, ROWS, receivers)
        terms, _ = all_terms(both, seen, {})
        made.append(seen.computed["answers/r"][1] is not None)
        return [mean(term) for term in terms.values()]

    jax.eval_shape(losses, world.reader())
    assert made == [dtype == "bfloat16"]


def test_kd_is_the_divergence_of_the_latent_from_the_text_at_a_temperature() -> None:
    """tau^2 KL(teacher || student), by numpy."""
    tau, receiver = 2.0, model()
    loss, _ = CASES.run("kd", kd.Config(tau=tau))

    @jax.jit
    def scores(rows: world.Tree) -> Any:
        seen = world.context({"reader": world.reader()}, rows)
        read = [seen.reading("r", Pass(message)) for message in ("latent", "text")]
        width = read[0].hidden.shape[-1]
        return [
            logits(receiver.arch, receiver.params, one.hidden.reshape(-1, width)) for one in read
        ], read[0].mask

    (student, teacher), mask = jax.device_get(scores(ROWS))

    def log_probabilities(x: np.ndarray) -> np.ndarray:
        x = x[mask.reshape(-1)] / tau
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    student, teacher = log_probabilities(student), log_probabilities(teacher)

    def divergence(of: np.ndarray, to: np.ndarray) -> float:
        return float((np.exp(of) * (of - to)).sum(-1).mean())

    right, swapped = divergence(teacher, student), divergence(student, teacher)
    assert abs(right / swapped - 1) > 0.01  # the case tells the two directions apart
    np.testing.assert_allclose(loss, tau**2 * right, rtol=1e-4)


def test_a_question_of_no_token_has_no_mean_to_lie_by() -> None:
    rows = world.data()
    rows["batch"]["r/ask/lengths"][3] = 0
    config = embedding_anchor.Config(to="question", distance="mse")
    loss, _ = CASES.run("embedding_anchor", config, rows)
    far = ((np.repeat(SLOTS, world.QUESTIONS, axis=0) - embedded("ask")) ** 2).mean(-1)
    np.testing.assert_allclose(loss, np.delete(far, 3).mean(), rtol=1e-5)


def test_soft_tokens_of_nothing_have_a_loudness() -> None:
    """A millionth: its square is added, so that zeros have a slope."""
    seen = world.context({"reader": jnp.zeros((5, world.WIDTH))}, ROWS)
    quiet = dataclasses.replace(world.DIMS.receivers["r"], embed_rms=1e-6)
    dims = dataclasses.replace(world.DIMS, receivers={"r": quiet})
    bridge = dataclasses.replace(seen.bridge, dims=dims)
    seen = dataclasses.replace(seen, bridge=bridge)
    loss = jax.jit(lambda: mean(scale_l2.Config().terms(seen, "r").loss))()  # type: ignore[arg-type]
    assert float(loss) == pytest.approx(0, abs=1e-6)


def test_a_word_that_is_as_likely_as_not_is_not_found() -> None:
    heads = {"kernel": np.zeros((24, 40), np.float32), "bias": np.zeros(40, np.float32)}

    @jax.jit
    def figures(head: Any) -> Any:
        seen = world.context({"reader": jnp.zeros((5, world.WIDTH))}, ROWS)
        found = bag_of_words.Config().terms(dataclasses.replace(seen, heads={"r": head}), "r")
        return found.watched["bag_of_words_recall"].total, mean(found.loss)  # type: ignore[arg-type]

    found, loss = figures(heads)
    assert float(found) == 0
    assert float(loss) == pytest.approx(np.log(2))
