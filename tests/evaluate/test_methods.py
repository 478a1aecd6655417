"""Every method through one sequence: what the scorer says and what the decoder writes agree."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lw_jax.bridge.config import CompressorConfig, ReaderConfig
from lw_jax.compressors import perceiver
from lw_jax.data.example import Example
from lw_jax.evaluate import predict as predicting
from lw_jax.evaluate.config import DecodeConfig
from lw_jax.evaluate.methods import method, methods
from lw_jax.evaluate.metrics.base import Prediction
from lw_jax.evaluate.predict import (
    Raw,
    columns,
    on_host,
    options_of,
    place,
    plain,
    predict,
    prepared,
    rate,
    shortened,
)
from lw_jax.models.generate import DecodeOptions, Generation
from lw_jax.readers import deep_prefix, soft_tokens
from lw_jax.receiver import answer as asking
from lw_jax.text.layout_config import LayoutConfig
from tests.tiny.evaluation import PREFIX, RECEIVER, SLOTS, World, make_world, received

ROOT = Path(__file__).parents[2]
SIZE = 64
SLOW = pytest.mark.slow
Arrays = dict[str, np.ndarray]


def _options(world: World) -> DecodeOptions:
    return options_of(DecodeConfig(max_new_tokens=8), world.ctx.model.arch, world.tokenizer)


def _batch(world: World, name: str, start: int = 0) -> Arrays:
    batch = world.batch(start, SIZE)
    if method(name).latent in ("other", "near"):
        other = world.other(start, SIZE)
        batch |= {k: v for k, v in other.items() if k.startswith("source/")}
    return batch


def _raw(world: World, name: str, batch: Arrays, ctx: Any = None) -> Raw:
    ctx = world.ctx if ctx is None else ctx
    how = method(name)
    sent, batch = received(ctx, how, batch), prepared(batch, method=how, ctx=ctx)
    out = predict(how.message, ctx, batch, sent, jax.random.key(0), _options(world))
    return jax.device_get(out)


def _host(
    world: World, name: str, raw: Raw, batch: Arrays, examples: Sequence[Example]
) -> list[Prediction]:
    return on_host(
        raw,
        batch,
        examples,
        [" " + e.context for e in examples],
        [1000] * len(examples),
        method=method(name),
        ctx=world.ctx,
        tokenizer=world.tokenizer,
        options=_options(world),
    )


@pytest.fixture(scope="module")
def said(world: World) -> Callable[[str], Raw]:
    """What is said of the first rows with a method, asked once."""

    @cache
    def of(name: str) -> Raw:
        return _raw(world, name, _batch(world, name))

    return of


def _with_gold(batch: Arrays, written: Generation, spoil: bool = True) -> Arrays:
    """The decoded answers as gold; in every second row one of its tokens is another one."""
    ids = np.zeros_like(batch[f"{RECEIVER}/answer/ids"])
    rng = np.random.default_rng(0)
    lengths = (written.lengths + written.ended).astype(np.int32)
    for i, count in enumerate(lengths):
        ids[i, :count] = written.ids[i, :count]
        if spoil and i % 2:
            ids[i, rng.integers(count)] += 1
    return batch | {f"{RECEIVER}/answer/ids": ids, f"{RECEIVER}/answer/lengths": lengths}


# The messages of what cuts on the host are `text`'s; the slow ones' are laid out as others', and
# the first three say bit for bit what another says, as is seen below.
ALIKE = (
    "embedding_replay_raw",
    "token_budget_first",
    "deranged",
    "zero",
    "mean",
    "token_budget_last",
    "relay",
    "pca",
    "deranged_near",
    "embedding_replay_anchor",
    "embedding_replay_adapter",
)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=[SLOW] if n in ALIKE else [])
        for n in methods()
        if method(n).kept is None and method(n).cut is None
    ],
)
def test_argmax_is_greedy_on_256_examples(world: World, name: str) -> None:
    said: list[Prediction] = []
    ended, how, model = 0, method(name), (world.ctx.model, world.ctx.prompt)
    for start in range(0, len(world.examples), SIZE):
        batch = _batch(world, name, start)
        sent, batch = received(world.ctx, how, batch), prepared(batch, method=how, ctx=world.ctx)
        given, taken = place(how.message, world.ctx, batch, sent)
        ask, _ = asking.asked(batch, RECEIVER)
        written = jax.device_get(
            asking.write(*model, given, ask, jax.random.key(0), _options(world))
        )
        ended += int(written.ended.sum())
        gold = _with_gold(batch, written)
        raw = jax.device_get(Raw(*rate(how.message, world.ctx, [gold], sent), written, taken))
        if not start:  # both at once say what each says alone
            chex.assert_trees_all_equal(_raw(world, name, gold), raw)
        said += _host(world, name, raw, gold, world.examples[start : start + SIZE])
    assert [p.argmax for p in said] == [p.same for p in said]
    assert sum(bool(p.same) for p in said) == len(said) // 2
    assert 20 < ended < len(said) - 20  # both answers that end and answers cut off were compared


READ_BACK = LayoutConfig(
    primer="", bos="after_message", question_in="latent", target="question_answer"
)


@pytest.mark.parametrize(
    "name", ["latent", *(pytest.param(n, marks=SLOW) for n in ("text", "no_message"))]
)
def test_argmax_is_greedy_where_the_receiver_writes_question_and_answer(
    world: World, name: str
) -> None:
    """[message][BOS], then all that follows is written: no head stands before the message."""
    other = world.with_layout(READ_BACK)
    batch = _batch(other, name)
    assert other.ctx.prompt.head == ()
    assert (batch[f"{RECEIVER}/ask/lengths"] == 1).all()
    said = batch[f"{RECEIVER}/answer/ids"][0][: batch[f"{RECEIVER}/answer/lengths"][0] - 1]
    example = world.examples[0]
    whole = f"{example.question}\nAnswer: {example.answers[0]}"
    assert other.tokenizer.backend.decode(said.tolist()) == whole
    gold = _with_gold(batch, _raw(other, name, batch).written)
    found = _host(other, name, _raw(other, name, gold), gold, world.examples[:SIZE])
    assert [p.argmax for p in found] == [p.same for p in found]
    assert sum(bool(p.same) for p in found) == SIZE // 2


def _without_bos(asked: list[Any]) -> list[Any]:
    head = asked[0]
    return [head.replace(ids=head.ids[:, 1:], lengths=head.lengths - 1), *asked[1:]]


def _other_primer(asked: list[Any]) -> list[Any]:
    return [asked[0].replace(ids=asked[0].ids.at[:, -1].add(1)), *asked[1:]]


def _without_question(asked: list[Any]) -> list[Any]:
    ask = asked[2]
    return [*asked[:2], ask.replace(ids=ask.ids[:, 5:], lengths=ask.lengths - 5), *asked[3:]]


def _padded_inside(asked: list[Any]) -> list[Any]:
    """Padding in the middle of the sequence, as if it were real."""
    message = asked[1]
    whole = message.replace(lengths=jnp.full_like(message.lengths, message.size))
    return [asked[0], whole, *asked[2:]]


@pytest.mark.parametrize(
    ("reader", "fault"),
    [
        ("decode", _without_bos),  # fault 3
        pytest.param("decode", _other_primer, marks=SLOW),  # fault 4
        pytest.param("read", _without_question, marks=SLOW),  # fault 22
        ("read", _padded_inside),  # faults 1, 2
    ],
)
def test_the_check_is_red_when_scorer_and_decoder_differ(
    world: World,
    said: Callable[[str], Raw],
    monkeypatch: pytest.MonkeyPatch,
    reader: str,
    fault: Any,
) -> None:
    gold = _with_gold(_batch(world, "text"), said("text").written, spoil=False)
    right = getattr(asking, reader)

    def wrong(arch: Any, params: Any, asked: list[Any], *rest: Any, **more: Any) -> Any:
        return right(arch, params, fault(asked), *rest, **more)

    monkeypatch.setattr(asking, reader, wrong)
    part = {"decode": "write", "read": "score"}[reader]
    whole = getattr(asking, part).__wrapped__
    # A new function, so that the right one's compiled program is not found again.
    static = (1, 5) if part == "write" else (1,)
    faulty = jax.jit(lambda *args: whole(*args), static_argnums=static)
    monkeypatch.setattr(predicting, part, faulty)
    found = _host(world, "text", _raw(world, "text", gold), gold, world.examples[:SIZE])
    assert sum(p.argmax != p.same for p in found) > SIZE // 10


def test_outputs_are_what_was_decoded_and_nothing_is_cut(
    world: World, said: Callable[[str], Raw]
) -> None:
    raw = said("text")
    found = _host(world, "text", raw, _batch(world, "text"), world.examples[:SIZE])
    for i, p in enumerate(found):
        ids = raw.written.ids[i][: raw.written.lengths[i]].tolist()
        own = [t for t in ids if t not in (0, 1, 2)]
        assert p.text == world.tokenizer.backend.decode(own).strip()
    assert sum(bool(p.text) for p in found) > SIZE // 2  # fault 5: every output was empty


def test_text_methods_never_see_the_bridge(world: World, said: Callable[[str], Raw]) -> None:
    """Fault 13: text baselines measured with adapters attached."""
    params = jax.tree.map(lambda x: jnp.asarray(3 * np.asarray(x) + 0.1), world.ctx.params)
    louder = world.ctx.replace(params=params)
    batch = _batch(world, "text")
    for name in ("text", "no_message", "embedding_replay_raw", "token_budget_first"):
        jax.tree.map(np.testing.assert_array_equal, said(name), _raw(world, name, batch, louder))
    assert (said("latent").scored.nll != _raw(world, "latent", batch, louder).scored.nll).all()


def test_only_methods_of_the_wire_need_a_bridge(world: World) -> None:
    bare = world.ctx.replace(params=None, mean=None)
    free = [name for name in methods() if not method(name).needs_bridge]
    replayed = ["embedding_replay_raw", "embedding_replay_anchor"]
    assert free == ["text", "relay", *replayed, "no_message"]
    _raw(world, "text", _batch(world, "text"), bare)
    for name in free[1:]:  # after their message nothing is asked for a bridge
        how = method(name)
        place(how.message, bare, prepared(_batch(world, name), method=how, ctx=bare), None)


def test_padding_is_known_by_length(world: World, said: Callable[[str], Raw]) -> None:
    """Id 0 is padding, EOS and pad at once (fault 21); wider padding changes nothing."""
    batch = _batch(world, "text")
    wide = {k: np.pad(v, [(0, 0), (0, 8)]) if k.endswith("/ids") else v for k, v in batch.items()}
    a, b = said("text"), _raw(world, "text", wide)
    np.testing.assert_allclose(a.scored.nll, b.scored.nll, rtol=1e-5)
    np.testing.assert_array_equal(a.written.ids, b.written.ids)
    lengths = batch[f"{RECEIVER}/answer/lengths"]
    np.testing.assert_array_equal(a.scored.tokens, lengths)
    assert (batch[f"{RECEIVER}/answer/ids"][np.arange(SIZE), lengths - 1] == 0).all()  # EOS


def test_embeddings_of_the_text_read_like_the_text(said: Callable[[str], Raw]) -> None:
    jax.tree.map(np.testing.assert_array_equal, said("text"), said("embedding_replay_raw"))


def test_a_budget_cuts_only_the_text_that_the_latent_replaces(
    world: World, said: Callable[[str], Raw]
) -> None:
    """Question and anchor stay: it reads as the whole text would if the context were that short."""
    batch = _batch(world, "text")
    ids, lengths = batch[f"{RECEIVER}/context/ids"], batch[f"{RECEIVER}/context/lengths"]
    kept = np.minimum(lengths, SLOTS + PREFIX)
    tails = np.zeros_like(ids)
    for i, n in enumerate(lengths):
        tails[i, : kept[i]] = ids[i, n - kept[i] : n]
    for name, left in (("token_budget_first", ids), ("token_budget_last", tails)):
        cut = batch | {f"{RECEIVER}/context/ids": left, f"{RECEIVER}/context/lengths": kept}
        a, b = said(name), _raw(world, "text", cut)
        np.testing.assert_array_equal(a.columns, kept)
        jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_budget_is_all_columns_16_soft_tokens_and_100_of_a_prefix() -> None:
    long = make_world(4, level=4, slots=16, prefix=100)
    batch = long.batch(0, 4)
    sent = received(long.ctx, method("latent"), batch)
    assert np.asarray(columns(long.ctx, batch, sent)).tolist() == [116] * 4
    ids, lengths = batch[f"{RECEIVER}/context/ids"], batch[f"{RECEIVER}/context/lengths"]
    assert (lengths > 116).all()
    first, _ = place(method("token_budget_first").message, long.ctx, batch, sent)
    last, _ = place(method("token_budget_last").message, long.ctx, batch, sent)
    for message in (first, last):
        assert message.delivery is None
        assert np.asarray(message.segment.lengths).tolist() == [116] * 4
    for i, n in enumerate(lengths):
        np.testing.assert_array_equal(first.segment.ids[i, :116], ids[i, :116])
        np.testing.assert_array_equal(last.segment.ids[i, :116], ids[i, n - 116 : n])


def _principal(x: np.ndarray, count: int) -> np.ndarray:
    """The mean of the tokens x [T, D], then their scaled components, [count, D], by numpy."""
    mean = x.mean(axis=0)
    _, values, vectors = np.linalg.svd(x - mean, full_matrices=False)
    largest = np.abs(vectors).argmax(axis=1)
    signs = np.sign(vectors[np.arange(len(vectors)), largest])
    scaled = (signs * values)[:, None] * vectors / np.sqrt(len(x))
    return np.concatenate([mean[None], scaled])[:count]


def _components(world: World, rows: int, **changed: Any) -> None:
    """The message of `pca` on some rows equals numpy's, as many as the latent has columns and never
    more than tokens or directions. changed: arrays of the text."""
    batch = world.batch(0, rows) | {f"{RECEIVER}/context/{k}": v for k, v in changed.items()}
    ids, lengths = batch[f"{RECEIVER}/context/ids"], batch[f"{RECEIVER}/context/lengths"]
    how = method("pca")
    sent = received(world.ctx, how, batch)
    given = prepared(batch, method=how, ctx=world.ctx)
    found, held = jax.device_get(place(how.message, world.ctx, given, sent))
    table = np.asarray(world.ctx.model.params["embed"], np.float64)
    most = np.minimum(columns(world.ctx, batch, sent), table.shape[1] + 1)
    np.testing.assert_array_equal(held, np.minimum(lengths, most))
    np.testing.assert_array_equal(found.segment.lengths, held)
    for i in range(rows):
        expected = _principal(table[ids[i, : lengths[i]]], held[i])
        np.testing.assert_allclose(found.segment.embeds[i, : held[i]], expected, atol=2e-4)


def test_principal_components_are_those_of_the_text_without_padding(world: World) -> None:
    ids = world.batch(0, 4)[f"{RECEIVER}/context/ids"]
    _components(world, 4)
    _components(world, 4, ids=np.pad(ids, [(0, 0), (0, 24)], constant_values=5))


def test_principal_components_are_no_work_of_the_devices(world: World) -> None:
    """Those of one CPU wait for each other without end in LAPACK's kernels."""
    how, batch = method("pca"), world.batch(0, 4)
    sent = received(world.ctx, how, batch)
    given = prepared(batch, method=how, ctx=world.ctx)
    text = place.lower(how.message, world.ctx, given, sent).as_text()
    assert "lapack" not in text and "custom_call" not in text


@SLOW
def test_principal_components_end_on_many_devices_of_one_cpu() -> None:
    """And are those of one device."""
    code = """
import jax, numpy as np
from lw_jax.evaluate.methods import method
from lw_jax.evaluate.predict import place, prepared
from lw_jax.mesh import MeshConfig, make_mesh, put_batch, replicated
from tests.tiny.evaluation import make_world, received

world, how, found = make_world(64, level=2), method("pca"), {}
batch = world.batch(0, 64)
sent = received(world.ctx, how, batch)
for devices in (1, 8):
    mesh = make_mesh(MeshConfig(data=devices), jax.devices()[:devices])
    ctx = jax.device_put(world.ctx, replicated(mesh))
    given = put_batch(mesh, prepared(batch, method=how, ctx=ctx))
    message, _ = jax.device_get(place(how.message, ctx, given, put_batch(mesh, sent)))
    found[devices] = message.segment.embeds
np.testing.assert_allclose(found[8], found[1], atol=1e-6)
"""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}  # the compiler's own besides
    command = [sys.executable, "-c", code]
    subprocess.run(command, env=os.environ | flags, cwd=ROOT, check=True, timeout=300)


def test_there_are_no_more_components_than_tokens_or_directions(world: World) -> None:
    wide = world.with_reader(deep_prefix=deep_prefix.Config(length=60, heads=2, mlp_ratio=0))
    _components(wide, 4)
    _components(wide, 4, lengths=np.arange(1, 5, dtype=np.int32))


def test_a_budget_of_bytes_leaves_the_longest_start_that_fits(world: World) -> None:
    """And the receiver reads no more of it; where the latent is larger than the text, all."""
    batch, name = _batch(world, "token_budget_bytes"), "token_budget_bytes"
    key = f"{RECEIVER}/context/lengths"
    budgets = [0, 1, 20, 21, 1000]
    how = {"receiver": RECEIVER, "tokenizer": world.tokenizer}
    cut = shortened(batch, budgets, method=method(name), **how)
    assert shortened(batch, budgets, method=method("text"), **how) is batch
    np.testing.assert_array_equal(cut[key][5:], batch[key][5:])
    assert cut[key][0] == 0
    assert cut[key][4] == batch[key][4]
    raw = _raw(world, name, cut)
    np.testing.assert_array_equal(raw.columns, cut[key])
    found = _host(world, name, raw, cut, world.examples[:5])
    decode = world.tokenizer.backend.decode
    for i, budget in enumerate(budgets):
        ids = batch[f"{RECEIVER}/context/ids"][i]
        left = decode(ids[: cut[key][i]].tolist())
        assert found[i].wire_bytes == len(left.encode()) <= budget
        if cut[key][i] < batch[key][i]:
            assert len(decode(ids[: cut[key][i] + 1].tolist()).encode()) > budget


@pytest.mark.parametrize(
    ("readers", "count"),
    [
        ({"soft_tokens": soft_tokens.Config()}, SLOTS),
        ({"deep_prefix": deep_prefix.Config(length=5, heads=2, mlp_ratio=0)}, 5),
    ],
)
def test_columns_of_a_message(world: World, readers: Any, count: int) -> None:
    ctx, batch = world.with_reader(**readers).ctx, _batch(world, "latent")
    sent = received(ctx, method("latent"), batch)
    assert sent is not None
    assert np.asarray(columns(ctx, batch, sent)).tolist() == [count] * SIZE
    assert sent.mask.sum(axis=1).tolist() == [SLOTS] * SIZE


def test_controls_say_nothing_of_the_text_and_deranged_says_another(
    world: World, said: Callable[[str], Raw]
) -> None:
    own, swapped = _batch(world, "latent"), _batch(world, "deranged")
    for name in ("zero", "mean"):
        np.testing.assert_array_equal(said(name).scored.nll, _raw(world, name, swapped).scored.nll)
    a, b = said("latent"), said("deranged")
    assert (a.scored.nll != b.scored.nll).all()
    # Row i of `deranged` hears what row i + 1 of `latent` hears, and is asked its own question.
    moved = own | {k: np.roll(v, -1, 0) for k, v in own.items() if k.startswith("source/")}
    c = _raw(world, "latent", moved)
    np.testing.assert_array_equal(b.scored.nll[:-1], c.scored.nll[:-1])


def test_bytes_on_the_wire(world: World, said: Callable[[str], Raw]) -> None:
    batch = _batch(world, "text")
    example = world.examples[0]
    text = " " + example.context
    tokens = world.tokenizer.encode(text)
    cut = {
        "token_budget_first": world.tokenizer.backend.decode(tokens[: SLOTS + PREFIX]),
        "token_budget_last": world.tokenizer.backend.decode(tokens[-SLOTS - PREFIX :]),
    }
    expected = {
        "text": len(text.encode()),
        "latent": 1000,
        "deranged": 1000,
        "no_message": 0,
        "embedding_replay_raw": len(tokens) * 24 * 4,
        "pca": (SLOTS + PREFIX) * 24 * 4,
        **{name: len(left.encode()) for name, left in cut.items()},
    }
    for name, size in expected.items():
        assert _host(world, name, said(name), batch, [example])[0].wire_bytes == size


def test_decode_options(world: World) -> None:
    arch, tokenizer = world.ctx.model.arch, world.tokenizer
    greedy = options_of(DecodeConfig(), arch, tokenizer)
    # The first token is drawn as the others are, unless it has a temperature of its own.
    assert (
        options_of(DecodeConfig(temperature=0.5), arch, tokenizer).first_token_temperature is None
    )
    assert greedy.eos_ids == arch.eos_ids
    assert plain(greedy)
    word = world.examples[0].answers[0]
    banned = options_of(DecodeConfig(first_token_stop_list=(word,)), arch, tokenizer)
    assert tokenizer.encode(word)[0] in banned.first_token_stop
    assert (
        tokenizer.encode(" ")[0] not in banned.first_token_stop
    )  # a bare space begins every answer
    for changed in (
        DecodeConfig(first_token_stop_list=(word,)),
        DecodeConfig(min_new_tokens=2),
        DecodeConfig(eos_ban_steps=1),
        DecodeConfig(temperature=0.5),
        DecodeConfig(prefix_gain=(1.25, 1.0)),
    ):
        assert not plain(options_of(changed, arch, tokenizer))


def test_nothing_drops_out_in_an_evaluation(world: World) -> None:
    """With dropout 0.5 latent and delivery are, bit for bit, what they are without dropout."""
    batch = world.batch(0, 4)

    def made(dropout: float) -> Any:
        parts = world.with_parts(
            3,
            compressor=CompressorConfig(
                perceiver=perceiver.Config(slots=2, width=16, heads=2, depth=1, dropout=dropout)
            ),
            reader=ReaderConfig(
                soft_tokens=soft_tokens.Config(dropout=dropout),
                deep_prefix=deep_prefix.Config(length=2, heads=2, mlp_ratio=1, dropout=dropout),
            ),
        )

        @jax.jit
        def both(params: Any) -> Any:
            ctx = parts.ctx.replace(params=params)
            latent = ctx.encode(batch)
            return latent, ctx.deliver(latent)

        return both(parts.ctx.params)

    chex.assert_trees_all_equal(made(0.5), made(0.0))


def test_soft_tokens_are_left_of_a_delivery_and_a_layout_may_change_them(world: World) -> None:
    """`embedding_replay_adapter` has no prefix columns; what a layout changes is what is read."""
    batch = world.batch(0, 8)
    adapter, latent = (method(n) for n in ("embedding_replay_adapter", "latent"))
    sent = received(world.ctx, latent, batch)
    alone, _ = place(adapter.message, world.ctx, batch, sent)
    whole, _ = place(latent.message, world.ctx, batch, sent)
    assert whole.delivery is not None and whole.delivery.kv is not None
    assert alone.delivery is not None and alone.delivery.kv is None
    np.testing.assert_array_equal(alone.segment.embeds, whole.segment.embeds)
    changed = world.with_layout(LayoutConfig(transform="scale_2"))
    doubled = place(latent.message, changed.ctx, batch, sent)[0].segment.embeds
    np.testing.assert_allclose(doubled, 2 * np.asarray(whole.segment.embeds), rtol=1e-5)
    raw = method("embedding_replay_raw")
    plain, same = (
        place(raw.message, w.ctx, batch, None)[0].segment.embeds for w in (world, changed)
    )
    np.testing.assert_array_equal(plain, same)
