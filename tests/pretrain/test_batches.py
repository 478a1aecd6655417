"""Texts are laid out as a receiver is asked, in batches that depend on the step alone."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lw_jax.models import head
from lw_jax.models.arch import Arch
from lw_jax.models.decoder import embed_tokens, run
from lw_jax.models.params import init
from lw_jax.pretrain import batches as kinds
from lw_jax.pretrain.batches import GROUP, SHORT, Texts, left_out, pad, tokenise
from lw_jax.pretrain.mixture import ANSWER, REPEAT, MixtureRows, Shares, mixture
from lw_jax.pretrain.step import make_step
from lw_jax.pretrain.tokenizer import special_ids, train_bpe
from lw_jax.text.collate import Collate, measure
from lw_jax.text.layout import head_ids
from lw_jax.text.layout_config import LayoutConfig
from lw_jax.text.tokenizer import Tokenizer
from lw_jax.train.state import new_state
from tests.tiny.arch import decoder

LONGEST = 320


@pytest.fixture(scope="module")
def rows() -> MixtureRows:
    return mixture(Shares(0.7, 0.3, 0.0, 0.0), "train", 0, levels=(1, 4), questions=3)


@pytest.fixture(scope="module")
def tokenizer(rows: MixtureRows) -> Tokenizer:
    texts = [task.example.context for i in range(200) for task in rows[i][:1]]
    hf_tokenizer = train_bpe(texts, 300, family="mistral", single_digits=True)
    ids = special_ids(hf_tokenizer, "mistral")
    assert ids["eos_token_id"] is not None
    return Tokenizer("tiny", hf_tokenizer, ids["bos_token_id"], ids["eos_token_id"])


@pytest.mark.parametrize("anchor", [ANSWER, REPEAT])
def test_the_first_task_is_laid_out_as_a_receiver_is_asked(
    anchor: str, rows: MixtureRows, tokenizer: Tokenizer
) -> None:
    """Faults 3, 4 and 22 of docs/faults.md: pretraining and scoring see the same sequence."""
    tasks = next(t for t in (rows[i] for i in range(99)) if t[0].anchor == anchor)
    layout = LayoutConfig(anchor=anchor)
    groups = [(tasks[0].example,)]
    tokenizers = {"r": tokenizer}
    batch = Collate(layout, None, tokenizers, measure(layout, None, tokenizers, groups))(groups)
    asked = head_ids(layout, tokenizer)
    for part in ("context", "ask", "answer"):
        asked += batch[f"r/{part}/ids"][0, : batch[f"r/{part}/lengths"][0]].tolist()
    answer = int(batch["r/answer/lengths"][0])
    text = tokenise(tokenizer, tasks)
    assert text is not None
    assert text.ids[: len(asked)] == asked
    kind = kinds.ANSWER if anchor == ANSWER else kinds.WRITTEN
    expected = [kinds.REST] * (len(asked) - answer) + [kind] * answer
    assert text.kinds[: len(asked)] == expected


def test_every_task_of_a_text_ends_in_eos(rows: MixtureRows, tokenizer: Tokenizer) -> None:
    tasks = next(t for t in (rows[i] for i in range(99)) if len(t) == 3)
    text = tokenise(tokenizer, tasks)
    assert text is not None
    answers, now = [], []
    for token, kind in zip(text.ids, text.kinds, strict=True):
        if kind == kinds.ANSWER:
            now.append(token)
        if token == tokenizer.eos_id:
            answers.append(tokenizer.backend.decode(now[:-1]).strip())
            now = []
    assert answers == [task.example.answers[0] for task in tasks]


def test_a_batch_depends_on_the_step_alone(rows: MixtureRows, tokenizer: Tokenizer) -> None:
    texts = Texts(rows, tokenizer, 4, LONGEST)
    whole = list(texts.batches(0, 2 * GROUP, 0))
    assert len(whole) == 2 * GROUP
    for start, stop in ((0, 1), (3, 5), (GROUP - 1, GROUP + 2)):
        part = list(texts.batches(start, stop, 0))
        assert len(part) == stop - start
        chex.assert_trees_all_equal(part, whole[start:stop])
    seen = {row.tobytes() for batch in whole for row in batch["ids"]}
    assert len(seen) > 0.9 * 2 * GROUP * 4  # groups do not repeat each other


def test_two_lengths_hold_all_batches(rows: MixtureRows, tokenizer: Tokenizer) -> None:
    texts = Texts(rows, tokenizer, 4, LONGEST)
    sizes = set()
    for batch in texts.batches(0, 3 * GROUP, 0):
        size = batch["ids"].shape[1]
        sizes.add(size)
        assert batch["ids"].shape == batch["kinds"].shape == (4, size)
        assert (batch["lengths"] <= size).all()
        assert (np.where(np.arange(size) < batch["lengths"][:, None], 0, batch["ids"]) == 0).all()
    assert sizes == {int(SHORT * LONGEST), LONGEST}


def test_texts_that_are_too_long_are_counted(rows: MixtureRows, tokenizer: Tokenizer) -> None:
    lengths = [
        len(text.ids) for i in range(50) if (text := tokenise(tokenizer, rows[i])) is not None
    ]
    limit = int(np.median(lengths))
    share = left_out(Texts(rows, tokenizer, 4, limit), 50)
    assert share == pytest.approx(np.mean([n > limit for n in lengths]))
    with pytest.raises(ValueError, match="more than half of the texts have more than 8 tokens"):
        Texts(rows, tokenizer, 4, 8).group(0)


ARCH = decoder("mistral", 300, 16, 2, 4, 2, 4, 24, init_std=0.3)
SGD = optax.sgd(1.0)


@pytest.fixture(scope="module")
def params() -> Any:
    return jax.device_get(jax.jit(init, static_argnums=0)(ARCH, jax.random.key(0)))


def batch_of(rows: MixtureRows, tokenizer: Tokenizer, size: int | None = None) -> Any:
    found = [tokenise(tokenizer, rows[i]) for i in range(6)]
    return pad([text for text in found if text is not None], size)


@cache
def compiled(rest: float, written: float) -> Any:
    return make_step(ARCH, SGD, rest, written, jnp.float32)


def after_one_step(params: Any, batch: Any, rest: float, written: float) -> Any:
    step = compiled(rest, written)
    state = new_state(jax.tree.map(jnp.asarray, params), SGD, jax.random.key(0))
    state, metrics = step(state, batch)
    return jax.device_get((state.params, metrics))


@partial(jax.jit, static_argnums=0)
def plain_nll(arch: Arch, params: Any, ids: jax.Array, lengths: jax.Array) -> jax.Array:
    h = embed_tokens(params, ids[:, :-1])
    positions = jnp.broadcast_to(jnp.arange(h.shape[1])[None], h.shape[:2])
    h = run(arch, params, h, positions=positions, lengths=lengths - 1).h
    z = head.logits(arch, params, h.reshape(-1, arch.width)).reshape(*h.shape[:2], -1)
    log_p = jax.nn.log_softmax(z, axis=-1)
    return -jnp.take_along_axis(log_p, ids[:, 1:, None], axis=-1)[..., 0]


@pytest.mark.parametrize(
    ("rest", "written"), [pytest.param(0.0, 0.0, marks=pytest.mark.slow), (0.1, 0.3)]
)
def test_the_loss_weighs_tokens_by_their_kind(
    rest: float, written: float, params: Any, rows: MixtureRows, tokenizer: Tokenizer
) -> None:
    batch = batch_of(rows, tokenizer)
    nll = np.asarray(plain_nll(ARCH, params, batch["ids"], batch["lengths"]), np.float64)
    real = np.arange(1, batch["ids"].shape[1])[None] < batch["lengths"][:, None]
    weight = np.array([rest, 1.0, written])[batch["kinds"][:, 1:]] * real
    _, metrics = after_one_step(params, batch, rest, written)
    assert set(np.unique(batch["kinds"][:, 1:][real])) == {0, 1, 2}
    np.testing.assert_allclose(metrics["loss"], (weight * nll).sum() / weight.sum(), rtol=1e-5)
    mask = (batch["kinds"][:, 1:] == kinds.ANSWER) & real
    np.testing.assert_allclose(metrics["nll/answer"], nll[mask].mean(), rtol=1e-5)


def test_padding_changes_nothing(params: Any, rows: MixtureRows, tokenizer: Tokenizer) -> None:
    tight = batch_of(rows, tokenizer)
    wide = batch_of(rows, tokenizer, tight["ids"].shape[1] + 40)
    beyond = np.arange(wide["ids"].shape[1])[None] >= wide["lengths"][:, None]
    wide["ids"] = np.where(beyond, 7, wide["ids"])
    chex.assert_trees_all_close(
        after_one_step(params, tight, 0.1, 0.3), after_one_step(params, wide, 0.1, 0.3), atol=2e-5
    )
