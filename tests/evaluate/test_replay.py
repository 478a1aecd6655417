"""Changes of real embeddings do what their names say, and leave alone what they should."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lw_jax.errors import UserError
from lw_jax.evaluate.config import EvaluateConfig
from lw_jax.evaluate.methods import method, methods
from lw_jax.evaluate.methods.embedding_replay_raw import METHOD as RAW
from lw_jax.receiver import transform
from lw_jax.receiver.transform import change, transformed
from lw_jax.text.layout import Prompt
from lw_jax.text.layout_config import LayoutConfig
from lw_jax.types import Delivery

ROWS, TOKENS, WIDTH, VOCAB, RMS = 3, 6, 8, 40, 0.25
DRAW = np.random.default_rng(0)
TABLE = (DRAW.normal(size=(VOCAB, WIDTH)) * DRAW.uniform(0.1, 0.5, (VOCAB, 1))).astype(np.float32)
IDS = DRAW.integers(0, VOCAB, (ROWS, TOKENS))
MASK = np.arange(TOKENS)[None] < np.array([[6], [4], [2]])
X = TABLE[IDS]


@partial(jax.jit, static_argnums=0)
def change_of(name: str, x: Any, mask: Any, table: Any, rms: Any) -> jax.Array:
    return change(name)(x, mask, table, rms)


def changed(name: str, x: np.ndarray = X) -> np.ndarray:
    return np.asarray(change_of(name, x, MASK, TABLE, RMS))


@pytest.mark.parametrize("name", ["scale_1", "offset_1", "nearest_1", "codebook_0.0001"])
def test_some_leave_rows_of_the_table_as_they_are(name: str) -> None:
    np.testing.assert_allclose(changed(name), X, atol=1e-5)


def test_loudness_alone() -> None:
    loud = changed("rms")
    np.testing.assert_allclose(np.sqrt(np.mean(loud**2, -1)), RMS, rtol=1e-5)
    np.testing.assert_allclose(changed("rms_1.5"), 1.5 * loud, rtol=1e-5)
    cosine = np.sum(loud * X, -1) / np.linalg.norm(loud, axis=-1) / np.linalg.norm(X, axis=-1)
    np.testing.assert_allclose(cosine, 1, rtol=1e-5)
    np.testing.assert_allclose(changed("scale_0.5"), X / 2, rtol=1e-6)


def test_the_batch_gets_the_tables_moments_and_padding_has_no_say() -> None:
    found = changed("batch")[MASK]
    np.testing.assert_allclose(found.mean(0), TABLE.mean(0), atol=1e-5)
    np.testing.assert_allclose(found.std(0), TABLE.std(0), atol=1e-5)
    loud_padding = np.where(MASK[..., None], X, 1e3).astype(np.float32)
    np.testing.assert_allclose(changed("batch", loud_padding)[MASK], found, atol=1e-4)
    offset = changed("offset_0.5")[MASK]
    np.testing.assert_allclose(changed("offset_0.5", loud_padding)[MASK], offset, rtol=1e-5)


def test_the_texts_mean_is_the_anchor() -> None:
    mean = np.stack([X[i][MASK[i]].mean(0) for i in range(ROWS)])[:, None]
    np.testing.assert_allclose(changed("offset_0.25"), mean + (X - mean) / 4, atol=1e-6)


def test_neighbours_are_by_cosine() -> None:
    unit = TABLE / np.linalg.norm(TABLE, axis=-1, keepdims=True)
    order = np.argsort(-(X[0, 0] @ unit.T))[:3]
    np.testing.assert_allclose(changed("nearest_3")[0, 0], TABLE[order].mean(0), atol=1e-6)
    share = np.exp(unit @ X[0, 0] / np.linalg.norm(X[0, 0]) / 0.2)
    np.testing.assert_allclose(
        changed("codebook_0.2")[0, 0], share / share.sum() @ TABLE, atol=1e-5
    )


def test_they_are_methods_after_the_others() -> None:
    config = EvaluateConfig(methods=("text", "latent"), wire=("int8",), replay=("rms", "nearest_4"))
    names = config.all_methods
    assert names[:3] == ("text", "latent", "latent_int8")
    assert names[-2:] == ("embedding_replay_rms", "embedding_replay_nearest_4")
    assert method(names[-1]) is method(names[-1])  # one program for all batches
    assert method("embedding_replay_raw") is RAW
    assert not any(name.startswith("embedding_replay_rms") for name in methods())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("louder", "unknown 'louder'; one of rms, batch, rms_<number>"),
        ("batch_2", "unknown 'batch_2'"),
        ("scale", "'scale' needs a number, as in scale_1"),
        ("nearest_1.5", "needs a whole number above 0"),
        ("codebook_0", "needs a number above 0"),
    ],
)
def test_names_that_are_none(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        EvaluateConfig(replay=(name,))


@pytest.mark.parametrize("name", ["rms", "batch", "offset_0.5", "nearest_2", "codebook_0.5"])
def test_a_layouts_change_is_of_what_a_reader_delivers(name: str) -> None:
    """The same as of replayed embeddings; a gradient comes through it, also where rows are picked;
    padding stays as it is."""
    prompt = Prompt(transform=name)

    def of(x: Any, mask: Any, table: Any, prompt: Prompt = prompt) -> Any:
        model: Any = SimpleNamespace(params={"embed": table})
        return transformed(model, prompt, Delivery(x, mask), RMS).embeds

    @jax.jit
    def both(x: Any, mask: Any, table: Any) -> Any:
        gradient = jax.grad(lambda x: jnp.sum(of(x, mask, table)[..., 0] * x[..., 1]))
        return of(x, mask, table), gradient(x)

    x = X + np.float32(0.3)
    found, gradient = (np.asarray(y) for y in both(x, MASK, TABLE))
    np.testing.assert_allclose(found[MASK], changed(name, x)[MASK], atol=1e-6)
    np.testing.assert_array_equal(found[~MASK], x[~MASK])
    assert np.abs(gradient[MASK][:, 0]).min() > 0
    assert of(x, MASK, TABLE, Prompt()) is x
    no_mask = lambda x, table: of(x, None, table)  # noqa: E731
    all_real = lambda x, table: of(x, jnp.ones(MASK.shape, bool), table)  # noqa: E731
    whole, everywhere = jax.jit(no_mask)(x, TABLE), jax.jit(all_real)(x, TABLE)
    np.testing.assert_array_equal(whole, everywhere)


def test_a_layout_names_a_change_that_there_is() -> None:
    assert LayoutConfig(transform="scale_0.5").transform == "scale_0.5"
    with pytest.raises(UserError, match="transform: unknown 'louder'; one of rms, batch, rms_"):
        LayoutConfig(transform="louder")


@pytest.mark.parametrize("name", ["rms", "batch", "offset_0.5", "nearest_2", "codebook_0.5"])
def test_vectors_of_nothing_stay_finite(name: str) -> None:
    """Zeros, rows without a real vector, a channel that all share."""
    table = TABLE.copy()
    table[3], table[:, 2] = 0, 1
    nothing = np.zeros_like(MASK)
    for mask in (MASK, nothing):
        found = change_of(name, np.zeros_like(X), mask, table, RMS)
        assert np.isfinite(found).all()
    if name == "offset_0.5":  # of no vectors the mean is 0
        far = change_of(name, X, nothing, TABLE, RMS)
        np.testing.assert_allclose(far, X / 2, rtol=1e-6)


def test_vectors_one_at_a_time_are_changed_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = changed("nearest_2")
    for held in (1, 3 * VOCAB):
        monkeypatch.setattr(transform, "LOGITS_AT_ONCE", held)
        found = jax.jit(change("nearest_2"))(X, MASK, TABLE, RMS)
        np.testing.assert_allclose(found, whole, rtol=1e-6)


def test_quiet_vectors_are_made_louder_up_to_a_million_times() -> None:
    """Of half a millionth: as if they were at a millionth."""
    x = np.full((1, 1, 4), 5e-7, np.float32)
    found = change_of("rms", x, np.ones((1, 1), bool), TABLE[:, :4], 0.25)
    np.testing.assert_allclose(found, 0.125, rtol=1e-4)
