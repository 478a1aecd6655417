"""Decoding is the scoring pass, step by step; its controls do what they say."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lw_jax.models import head
from lw_jax.models.decoder import LayerInputs, embed_tokens, run
from lw_jax.models.generate import DecodeOptions, _gain, _pick, generate
from lw_jax.types import KV, Edits, Lora
from tests.tiny.arch import decoder, weights

ARCH = decoder("mistral", 24, 16, 2, 4, 2, 4, 24, theta=100.0, window=8, init_std=0.5)
ROWS, TOKENS, NEW = 64, 7, 5
PROMPTS = np.random.default_rng(0).integers(3, TOKENS + 1, ROWS).astype(np.int32)
EOS = (3, 5)
GREEDY = DecodeOptions(NEW, EOS)


@pytest.fixture(scope="module")
def params():
    return jax.device_put(weights(ARCH, 0))


IDS = np.random.default_rng(1).integers(0, 24, (ROWS, TOKENS)).astype(np.int32)
POSITIONS = np.broadcast_to(np.arange(TOKENS)[None], IDS.shape)


def draw(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def delivery() -> LayerInputs:
    columns = KV(
        draw(2, 2, ROWS, 3, 2, 4),
        draw(3, 2, ROWS, 3, 2, 4),
        np.ones((ROWS, 3), bool),
        np.broadcast_to(1.0 + np.arange(3)[None], (ROWS, 3)),
    )
    lora = Lora({"q": draw(4, 1, 16, 2)}, {"q": draw(5, 1, 2, 16)}, 0.5, layers=(1,))
    edits = Edits(lora, None, draw(6, 2, ROWS, 2, 2, 4), draw(7, 2, ROWS, 2, 2, 4))
    slots = np.broadcast_to(np.array([[1, 2]]), (ROWS, 2))
    return LayerInputs(columns, np.ones((ROWS,), np.int32), edits, slots)


@jax.jit
def scored(params, ids, lengths, given):
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1])[None], ids.shape)
    h = embed_tokens(params, ids)
    out = run(ARCH, params, h, positions=positions, lengths=lengths, delivery=given)
    return head.chunked_cross_entropy(ARCH, params, out.h[:, :-1], ids[:, 1:])


@jax.jit
def distributions(params, ids, lengths):
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1])[None], ids.shape)
    h = run(ARCH, params, embed_tokens(params, ids), positions=positions, lengths=lengths).h
    z = head.logits(ARCH, params, h.reshape(-1, ARCH.width))
    return jax.nn.softmax(z, axis=-1).reshape(*ids.shape, -1)


def decode(params, options, given=None, rng=None):
    return jit_decode(params, IDS, POSITIONS, PROMPTS, given, rng, options=options)


@jax.jit(static_argnames="options")
def jit_decode(params, ids, positions, prompts, given, rng, options):
    return generate(
        ARCH,
        params,
        embed_tokens(params, ids),
        positions=positions,
        lengths=prompts,
        options=options,
        delivery=given,
        rng=rng,
    )


def with_answers(answers, sizes):
    """Prompts with answers appended, packed, and the mask [B, T - 1] of the answers' labels."""
    ids = np.zeros((ROWS, TOKENS + NEW), np.int32)
    mask = np.zeros((ROWS, TOKENS + NEW - 1), bool)
    for b, (start, size) in enumerate(zip(PROMPTS, sizes, strict=True)):
        ids[b, :start] = IDS[b, :start]
        ids[b, start : start + size] = answers[b, :size]
        mask[b, start - 1 : start + size - 1] = True
    return ids, mask


@pytest.mark.parametrize(
    ("given", "gain"),
    [
        (None, ()),
        pytest.param("delivery", (), marks=pytest.mark.slow),
        ("delivery", (1.5, 1.2, 1.0)),
    ],
)
def test_greedy_is_the_argmax_under_teacher_forcing(params, given, gain):
    """Exactly when every label is the argmax does greedy decoding give the answer.

    See docs/design.md section 8.
    """
    given = None if given is None else delivery()
    made = decode(params, replace(GREEDY, gain=gain), given)
    out, ended = np.asarray(made.ids), np.asarray(made.ended)
    sizes = np.asarray(made.lengths) + ended
    rng = np.random.default_rng(3)
    # Half of the answers are what greedy writes, half differ from it at one token.
    answers = out.copy()
    wrong = np.arange(ROWS) % 2 == 1
    at = rng.integers(0, sizes)
    answers[wrong, at[wrong]] = (answers[wrong, at[wrong]] + 1) % 24
    ids, mask = with_answers(answers, sizes)
    inputs = given or LayerInputs()
    if gain:
        step = np.arange(TOKENS + NEW)[None] - (PROMPTS[:, None] - 1)
        steps = np.asarray(gain)[np.clip(step, 0, len(gain) - 1)]
        inputs = replace(inputs, gain=np.where(step < 0, 1.0, steps).astype(np.float32))
    scores = scored(params, ids, PROMPTS + sizes, inputs)
    hit = (jax.device_get(scores).correct(ids[:, 1:]) | ~mask).all(axis=1)
    np.testing.assert_array_equal(hit, ~wrong)
    assert 5 < ended.sum() < ROWS - 5
    forced = -np.where(mask, scores.nll, 0.0).sum(axis=1)
    total = jax.device_get(made).total_logprob
    np.testing.assert_allclose(forced[~wrong], total[~wrong], atol=1e-4)


def test_rows_do_not_disturb_each_other(params):
    """A row that ended, or a longer one beside it, changes nothing."""
    made = jax.device_get(decode(params, GREEDY))
    row, until = slice(5, 6), slice(PROMPTS[5])
    given = IDS[row, until], POSITIONS[row, until], PROMPTS[row]
    alone = jax.device_get(jit_decode(params, *given, None, None, options=GREEDY))
    np.testing.assert_array_equal(alone.ids[0], made.ids[5])
    beyond = np.arange(NEW)[None] >= (np.asarray(made.lengths) + made.ended)[:, None]
    assert (np.asarray(made.ids)[beyond] == 0).all()
    assert (np.asarray(made.logprobs)[beyond] == 0).all()
    for b in np.flatnonzero(made.ended):
        assert int(made.ids[b, made.lengths[b]]) in EOS
    assert not np.isin(np.asarray(made.ids), EOS).sum(axis=1).max() > 1


def test_end_is_banned_as_long_as_asked(params):
    for options in (replace(GREEDY, min_new=3), replace(GREEDY, eos_ban_steps=3)):
        made = jax.device_get(decode(params, options))
        assert int(made.lengths.min()) == 3
        assert not np.isin(np.asarray(made.ids[:, :3]), EOS).any()
    assert np.asarray(decode(params, GREEDY).lengths).min() < 3


def test_a_token_that_holds_a_stop_ends_a_row(params):
    usual = decode(params, GREEDY)
    said = np.asarray(usual.ids)
    written = np.arange(NEW)[None] < np.asarray(usual.lengths)[:, None]
    stops = tuple(np.unique(said[:, 1:][written[:, 1:]]).tolist()[:6])
    made = jax.device_get(decode(params, replace(GREEDY, stop_ids=stops)))
    holds = np.isin(said, stops) & written
    cut = holds.any(axis=1)
    assert cut.sum() > 5
    assert (~cut).sum() > 5
    first = np.where(cut, holds.argmax(axis=1), np.asarray(usual.lengths))
    np.testing.assert_array_equal(made.lengths, first)
    np.testing.assert_array_equal(made.stopped, cut)
    np.testing.assert_array_equal(made.ended, cut | np.asarray(usual.ended))
    # The same tokens up to the stop, which is the last; nothing after it.
    kept = np.arange(NEW)[None] < (first + np.asarray(made.ended))[:, None]
    np.testing.assert_array_equal(np.where(kept, said, 0), made.ids)
    assert not np.asarray(made.logprobs)[~kept].any()
    barred = jax.device_get(decode(params, replace(GREEDY, stop_ids=stops, min_new=2)))
    assert int(barred.lengths.min()) == 2
    assert not np.isin(np.asarray(barred.ids[:, :2]), (*EOS, *stops)).any()


def test_first_token_stop_list(params):
    usual = np.asarray(decode(params, GREEDY).ids)
    stop = tuple(np.unique(usual[:, 0]).tolist()[:4])
    made = np.asarray(decode(params, replace(GREEDY, first_token_stop=stop)).ids)
    assert not np.isin(made[:, 0], stop).any()
    assert np.isin(made[:, 1:], stop).any()


def test_sampling_follows_its_seed_and_nucleus(params):
    warm = DecodeOptions(NEW, temperature=1.0, top_p=0.6)
    one, same, other = (decode(params, warm, rng=jax.random.key(s)).ids for s in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (np.asarray(one) != other).any()
    # Every drawn token lies in the smallest set of tokens that holds 0.6 of the mass.
    ids, mask = with_answers(np.asarray(one), np.full(ROWS, NEW))
    p = np.asarray(distributions(params, ids, PROMPTS + NEW))[:, :-1][mask]
    of_drawn = np.take_along_axis(p, ids[:, 1:][mask][:, None], axis=1)
    above = np.where(p > of_drawn, p, 0).sum(axis=1)
    assert above.max() < 0.6 + 1e-4
    assert (above > 0).any()


def test_first_token_has_its_own_temperature(params):
    base = DecodeOptions(NEW, first_token_temperature=1.0, first_token_top_p=0.95)
    draws = [np.asarray(decode(params, base, rng=jax.random.key(s)).ids) for s in (1, 2)]
    same_first = draws[0][:, 0] == draws[1][:, 0]
    assert 0 < same_first.sum() < ROWS
    # After an equal first token both are greedy.
    np.testing.assert_array_equal(draws[0][same_first], draws[1][same_first])


def test_tokens_are_drawn_from_the_nucleus_alone():
    """Kept until their mass reaches top_p; colder logits are drawn more alike."""
    shares = np.asarray([0.05, 0.45, 0.3, 0.15, 0.05])
    z = np.broadcast_to(np.log(shares, dtype=np.float32)[None], (400, 5))
    nuclei = {0.01: 1, 0.4: 1, 0.5: 2, 0.7: 2, 0.8: 3}
    ways = {
        "greedy": {},
        "everything": {"temperature": 1.0},
        "cold": {"temperature": 0.5},
        "hot": {"temperature": 2.0},
        **{str(top_p): {"temperature": 1.0, "top_p": top_p} for top_p in nuclei},
    }

    @jax.jit
    def picked(z, key):
        return {name: _pick(z, DecodeOptions(1, **way), key) for name, way in ways.items()}

    drawn = {}
    for name, found in picked(z, jax.random.key(0)).items():
        assert found.dtype == jnp.int32
        drawn[name] = (np.bincount(found, minlength=5) / 400).tolist()
    assert drawn["greedy"] == [0, 1, 0, 0, 0]
    np.testing.assert_allclose(drawn["everything"], shares, atol=0.08)
    for top_p, kept in nuclei.items():
        assert [i for i, share in enumerate(drawn[str(top_p)]) if share] == [1, 2, 3][:kept], top_p
    cold, hot = shares**2 / (shares**2).sum(), shares**0.5 / (shares**0.5).sum()
    np.testing.assert_allclose(drawn["cold"], cold, atol=0.08)
    np.testing.assert_allclose(drawn["hot"], hot, atol=0.08)


def test_the_last_gain_holds_for_all_later_steps():
    options = DecodeOptions(4, gain=(3.0, 2.0))
    of = jax.jit(lambda step: _gain(options, step))
    assert [float(of(step)) for step in (0, 1, 2, 9)] == [3, 2, 2, 2]
    assert _gain(DecodeOptions(4), np.asarray(0)) is None
