"""Rivals that read the text: what is delivered, then the text, the same in every place."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lw_jax.bridge.config import CompressorConfig
from lw_jax.compressors import constant
from lw_jax.evaluate.methods import method
from lw_jax.evaluate.methods.base import EvalContext
from lw_jax.evaluate.predict import Raw, columns, place, predict, rate
from lw_jax.models.generate import DecodeOptions
from lw_jax.models.head import chunked_cross_entropy
from lw_jax.readers import lora, soft_tokens
from lw_jax.receiver import answer
from lw_jax.text.layout_config import LayoutConfig
from tests.tiny.evaluation import RECEIVER, World, make_world, received

ROWS, SLOTS = 8, 3
PLAIN = LayoutConfig()
BESIDE = LayoutConfig(with_text=True)
OPTIONS = DecodeOptions(max_new=6, eos_ids=(0,))


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(ROWS)


def rival(world: World, slots: int, layout: LayoutConfig, **readers: Any) -> World:
    """Constant slots and these readers."""
    given = world.with_reader(**readers).with_layout(layout)
    return given.with_parts(3, compressor=CompressorConfig(constant=constant.Config(slots)))


def asked(world: World, name: str, batch: Any = None) -> Raw:
    batch = world.batch(0, ROWS) if batch is None else batch
    how = method(name)
    sent = received(world.ctx, how, batch)
    out = predict(how.message, world.ctx, batch, sent, jax.random.key(0), OPTIONS)
    return jax.device_get(out)


def nll(world: World, name: str, batch: Any = None) -> np.ndarray:
    """Nats of the gold answers; nothing is written."""
    batch = world.batch(0, ROWS) if batch is None else batch
    how = method(name)
    (scored,) = rate(how.message, world.ctx, [batch], received(world.ctx, how, batch))
    return np.asarray(scored.nll)


def taken(world: World, name: str) -> np.ndarray:
    """Columns of the message."""
    how, batch = method(name), world.batch(0, ROWS)
    return np.asarray(place(how.message, world.ctx, batch, received(world.ctx, how, batch))[1])


def test_nothing_beside_the_text_is_the_text(world: World) -> None:
    """LoRA whose ups are zero, without soft tokens."""
    other = rival(world, 0, BESIDE, lora=lora.Config(r=2))
    own = other.ctx.params["readers"][RECEIVER]
    own["lora"] = jax.tree_util.tree_map_with_path(
        lambda path, x: x * ("down" in jax.tree_util.keystr(path)),
        own["lora"],
    )
    latent, text = asked(other, "latent"), asked(other, "text")
    np.testing.assert_allclose(latent.scored.nll, text.scored.nll, rtol=1e-5)
    np.testing.assert_array_equal(latent.written.ids, text.written.ids)
    np.testing.assert_array_equal(latent.columns, text.columns)


def test_the_text_baseline_is_read_by_the_clean_receiver(world: World) -> None:
    """Fault 13: LoRA changes what `latent` says, and nothing that `text` or `no_message` says."""
    other = rival(world, 0, BESIDE, lora=lora.Config(r=2))
    for name in ("text", "no_message", "embedding_replay_raw"):
        batch = world.batch(0, ROWS)
        np.testing.assert_array_equal(nll(other, name, batch), nll(world, name, batch))
    moved = nll(other, "latent") - nll(other, "text")
    assert np.abs(moved).max() > 0.1


def test_prompt_tuning_reads_soft_tokens_and_the_text(world: World) -> None:
    beside = rival(world, SLOTS, BESIDE, soft_tokens=soft_tokens.Config())
    without = rival(world, SLOTS, PLAIN, soft_tokens=soft_tokens.Config())
    both, alone, text = nll(beside, "latent"), nll(without, "latent"), nll(beside, "text")
    np.testing.assert_array_equal(taken(beside, "latent"), SLOTS + taken(beside, "text"))
    np.testing.assert_array_equal(taken(without, "latent"), [SLOTS] * ROWS)
    assert np.abs(both - alone).max() > 0.01  # the text is read
    assert np.abs(both - text).max() > 0.01  # and so are the soft tokens
    sent = received(beside.ctx, method("latent"), beside.batch(0, ROWS))
    assert sent is not None
    np.testing.assert_array_equal(sent.mask.sum(axis=1), [SLOTS] * ROWS)
    held = columns(beside.ctx, beside.batch(0, ROWS), sent)
    np.testing.assert_array_equal(held, taken(beside, "latent"))
    # No latent is seen: another text's is the same one.
    other = beside.batch(0, ROWS)
    other |= {k: v for k, v in beside.other(0, ROWS).items() if k.startswith("source/")}
    np.testing.assert_array_equal(nll(beside, "deranged", other), both)


def test_the_scorer_and_the_decoder_agree(world: World) -> None:
    readers = {"soft_tokens": soft_tokens.Config(), "lora": lora.Config(r=2)}
    beside = rival(world, SLOTS, BESIDE, **readers)
    batch = beside.batch(0, ROWS)
    written = asked(beside, "latent", batch).written
    lengths = (written.lengths + written.ended).astype(np.int32)
    width = batch[f"{RECEIVER}/answer/ids"].shape[1]
    ids = np.where(np.arange(width)[None] < lengths[:, None], _wide(written.ids, width), 0)
    gold = batch | {f"{RECEIVER}/answer/ids": ids.astype(np.int32)}
    gold[f"{RECEIVER}/answer/lengths"] = np.minimum(lengths, width)
    assert asked(beside, "latent", gold).scored.argmax.all()
    spoiled = ids + (np.arange(width) == 0)  # another first token
    gold[f"{RECEIVER}/answer/ids"] = spoiled.astype(np.int32)
    assert not asked(beside, "latent", gold).scored.argmax.any()


def _wide(ids: np.ndarray, width: int) -> np.ndarray:
    return np.pad(ids, ((0, 0), (0, max(0, width - ids.shape[1]))))[:, :width]


def test_training_reads_what_is_evaluated(world: World) -> None:
    beside = rival(world, SLOTS, BESIDE, soft_tokens=soft_tokens.Config(), lora=lora.Config(r=2))

    @jax.jit
    def in_training(ctx: EvalContext, batch: Any) -> jax.Array:
        given = ctx.deliver(ctx.encode(batch))
        model = ctx.model
        message = answer.message_of(model, ctx.prompt, batch, RECEIVER, "latent", given)
        reading = answer.reading(model, ctx.prompt, message, *answer.asked(batch, RECEIVER))
        scored = chunked_cross_entropy(model.arch, model.params, reading.hidden, reading.labels)
        return jnp.sum(scored.nll * reading.mask, axis=1)

    trained = in_training(beside.ctx, beside.batch(0, ROWS))
    np.testing.assert_allclose(trained, nll(beside, "latent"), rtol=1e-4)
