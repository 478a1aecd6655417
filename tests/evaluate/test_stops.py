"""Answers that end at a stop: text and latent are judged alike, and the check of scorer and decoder
holds there too; which decode controls are whose; answers that run on are said."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest

from lw_jax.evaluate import report, summary, verdict
from lw_jax.evaluate.config import DecodeConfig
from lw_jax.evaluate.figures import Asked, figures
from lw_jax.evaluate.methods import method, methods
from lw_jax.evaluate.metrics import squad
from lw_jax.evaluate.metrics.base import Prediction
from lw_jax.evaluate.predict import on_host, options_of, plain, predict
from lw_jax.evaluate.summary import Settings
from lw_jax.models.frozen import FrozenModels
from lw_jax.text.stop import Stop, stop_of
from tests.evaluate.test_figures import _example, _said
from tests.tiny.evaluation import RECEIVER, World, received

SIZE, NEW = 128, 8
DECODE = DecodeConfig(max_new_tokens=NEW)
SETTINGS = Settings(seed=0, resamples=50)


def _says(
    world: World, name: str, batch: dict[str, np.ndarray], stop: Stop, wire: bool = True
) -> tuple[Any, list[Prediction]]:
    """What a method's receiver writes, in tokens and in words."""
    how, examples = method(name), world.examples[:SIZE]
    options = options_of(DECODE, world.ctx.model.arch, world.tokenizer, stop, wire)
    sent = received(world.ctx, how, batch)
    raw = jax.device_get(
        predict(how.message, world.ctx, batch, sent, jax.random.key(0), options, stop.clean)
    )
    more = {"method": how, "ctx": world.ctx, "tokenizer": world.tokenizer, "options": options}
    texts, sizes = [" " + e.context for e in examples], [100] * len(examples)
    return raw.written, on_host(raw, batch, examples, texts, sizes, stop=stop, **more)


def _goes_on(world: World, name: str) -> tuple[World, np.ndarray]:
    """The same models, but that the receiver says a line break where it said a frequent word of its
    answers; and the length [N] of every row's answer before it, 0 where it says none."""
    batch = world.batch(0, SIZE)
    usual, _ = _says(world, name, batch, Stop())
    ids = usual.ids[:, 1:][np.arange(1, NEW)[None] < usual.lengths[:, None]]
    word = np.bincount(ids).argmax()
    (line,) = world.tokenizer.encode("\n")
    model = world.ctx.model
    head = np.array(model.params["head"])
    head[:, [word, line]] = head[:, [line, word]]
    frozen = world.ctx.frozen
    receivers = {RECEIVER: model.replace(params={**model.params, "head": head})}
    changed = FrozenModels.of(frozen.sender, receivers, dict(frozen.prompts))
    found = (usual.ids == word) & (np.arange(NEW)[None] < usual.lengths[:, None])
    first = np.where(found.any(axis=1), found.argmax(axis=1), 0)
    return replace(world, ctx=world.ctx.replace(frozen=changed)), first


def _with_gold(
    world: World, batch: dict[str, np.ndarray], written: Any, first: np.ndarray
) -> dict[str, np.ndarray]:
    """Gold answers: what is written before the line break, where something is."""
    ids, lengths = batch[f"{RECEIVER}/answer/ids"].copy(), batch[f"{RECEIVER}/answer/lengths"]
    lengths = lengths.copy()
    ids = np.pad(ids, ((0, 0), (0, max(0, NEW - ids.shape[1]))))
    for i in np.flatnonzero(first):
        ids[i, : first[i]] = written.ids[i, : first[i]]
        ids[i, first[i]], lengths[i] = world.tokenizer.eos_id, first[i] + 1
    return batch | {f"{RECEIVER}/answer/ids": ids, f"{RECEIVER}/answer/lengths": lengths}


@pytest.mark.parametrize("name", ["text", pytest.param("latent", marks=pytest.mark.slow)])
def test_a_receiver_that_goes_on_after_its_answer_is_judged_by_its_answer(
    world: World, name: str
) -> None:
    talks, first = _goes_on(world, name)
    stop = stop_of(world.tokenizer, ("\n",))
    assert np.count_nonzero(first) > 10
    written, _ = _says(talks, name, talks.batch(0, SIZE), stop)
    batch = _with_gold(talks, talks.batch(0, SIZE), written, first)
    _, ended = _says(talks, name, batch, stop)
    _, on = _says(talks, name, batch, Stop())
    went_on = 0
    for i in np.flatnonzero(first):
        length = batch[f"{RECEIVER}/answer/lengths"][i] - 1
        gold = world.tokenizer.backend.decode(
            batch[f"{RECEIVER}/answer/ids"][i, :length].tolist()
        ).strip()
        assert ended[i].text == gold
        assert (ended[i].ended, ended[i].same, ended[i].argmax) == ("stop", True, True)
        # Without a stop the same answer is wrong, and the check says that as well.
        assert on[i].text.startswith(gold)
        assert (on[i].ended != "stop", on[i].same, on[i].argmax) == (True, False, False)
        went_on += squad.exact_match(on[i].text, (gold,)) == 0
    assert went_on > 5
    assert [p.same for p in ended if p.same is not None] == [
        p.argmax for p in ended if p.same is not None
    ]
    assert {p.ended for p in ended} == {"eos", "stop", "limit"}
    assert [p.nll for p in ended] == pytest.approx([p.nll for p in on])  # of the answer and EOS


def test_gold_that_holds_a_stop_is_not_compared(world: World) -> None:
    """Decoding cannot write it, so that agreeing on it says nothing."""
    batch = world.batch(0, SIZE)
    token = int(batch[f"{RECEIVER}/answer/ids"][0, 0])
    stop = Stop((world.tokenizer.backend.decode([token]),), (token,), (token,))
    _, said = _says(world, "text", batch, stop)
    held = [
        token in row[:n]
        for row, n in zip(
            batch[f"{RECEIVER}/answer/ids"], batch[f"{RECEIVER}/answer/lengths"], strict=True
        )
    ]
    assert any(held)
    assert all(p.same is None for p, own in zip(said, held, strict=True) if own)


WIRE = {
    "latent",
    "embedding_replay_adapter",
    "no_message",
    "zero",
    "mean",
    "deranged",
    "deranged_near",
}
CONTROLS: list[dict[str, Any]] = [
    {"min_new_tokens": 3},
    {"eos_ban_steps": 2},
    {"first_token_stop_list": ("the",)},
    {"first_token_temperature": 1.0},
    {"first_token_top_p": 0.5},
    {"prefix_gain": (1.25, 1.0)},
]


def test_which_methods_are_of_the_wire() -> None:
    assert {name for name, one in methods().items() if one.of_the_wire} == WIRE
    assert method("latent_int8").of_the_wire
    assert not method("embedding_replay_rms").of_the_wire


@pytest.mark.parametrize("control", CONTROLS, ids=lambda c: next(iter(c)))
def test_controls_of_the_wire_leave_other_methods_as_they_are(
    world: World, control: dict[str, Any]
) -> None:
    arch, config = world.ctx.model.arch, replace(DECODE, **control)
    usual = options_of(DECODE, arch, world.tokenizer)
    assert options_of(config, arch, world.tokenizer, wire=False) == usual
    assert options_of(config, arch, world.tokenizer, wire=True) != usual


@pytest.mark.parametrize("change", [{"max_new_tokens": 3}, {"temperature": 0.5}, {"top_p": 0.5}])
def test_what_is_of_every_method(world: World, change: dict[str, Any]) -> None:
    arch, config = world.ctx.model.arch, replace(DECODE, **change)
    usual = options_of(DECODE, arch, world.tokenizer, wire=False)
    assert options_of(config, arch, world.tokenizer, wire=False) != usual


def test_stops_do_not_make_decoding_less_plain(world: World) -> None:
    arch = world.ctx.model.arch
    stopped = options_of(DecodeConfig(stop=("\n",)), arch, world.tokenizer)
    assert stopped.stop_ids == stop_of(world.tokenizer, ("\n",)).ids != ()
    assert plain(stopped)


def _methods(**said: list[Prediction]) -> dict[str, Any]:
    n = len(next(iter(said.values())))
    examples = [_example(i, "red cat") for i in range(n)]
    return figures(
        Asked(examples, [], 0, 50),
        {"reader": {name: (rows, 1.0) for name, rows in said.items()}},
    )


def test_answers_that_run_on_are_said_and_counted() -> None:
    right, late = _said("red cat", same=True), _said("red cat and", same=True, ended="limit")
    stopped, empty = _said("red cat", same=True, ended="stop"), _said("", same=True, ended="stop")
    found = _methods(
        latent=[right] * 20,
        no_message=[right] * 19 + [late],
        deranged=[right] * 10 + [stopped] * 10,
        token_budget_first=[late] * 12 + [right] * 8,
        zero=[empty] * 2 + [late] * 18,
    )
    shown = found["receivers"]["reader"]
    assert shown["token_budget_first"]["ended"] == {"eos": 0.4, "stop": 0.0, "limit": 0.6}
    assert shown["deranged"]["ended"]["stop"] == 0.5
    assert shown["zero"]["empty"] == 0.1
    notes = report.notes("reader", shown)
    assert [line.split(": ")[0] for line in notes] == [
        "NOTE reader, token_budget_first",
        "NOTE reader, zero",
        "NOTE reader, zero",
    ]
    assert "60% of its answers ended neither at EOS nor at a stop" in notes[0]
    assert "10% of its answers are empty" in notes[2]
    said = found["verdict"]["reader"]["words"][-1]
    assert "60% of the answers of token_budget_first ran into decode.max_new_tokens" in said
    assert "zero" not in said  # it is compared with nothing
    assert "no_message" not in said  # 5 % is few


@pytest.mark.parametrize("late", ["text", "deranged", "token_budget_bytes", "tuned"])
def test_the_verdict_names_a_rival_that_ran_on(late: str) -> None:
    rng = np.random.default_rng(0)
    names = ("latent", "no_message", "deranged", "text", "token_budget_bytes", "tuned")
    rows = {name: (rng.random(50) < 0.5).astype(float) for name in names}
    groups = [str(i) for i in range(50)]

    def words(share: float) -> str:
        ran_on = dict.fromkeys(names, 0.0) | {late: share}
        found = verdict.judge(rows, groups, 4, SETTINGS, rivals=("tuned",), ran_on=ran_on)
        return found.words[-1]

    assert f"90% of the answers of {late} ran into decode.max_new_tokens" in words(0.9)
    assert "ran into" not in words(0.01)


def test_comparing_nothing_is_an_alarm() -> None:
    compared = [_said("red cat", argmax=True, same=True), _said("x", argmax=False, same=None)]
    nothing = [_said("red cat", argmax=True, same=None)] * 2
    examples = [_example(i, "red cat") for i in range(2)]

    def alarms(**methods: list[Prediction]) -> list[str]:
        made = {n: summary.of_method(examples, s, 1.0, SETTINGS) for n, s in methods.items()}
        return report.alarms("reader", made)

    assert not alarms(text=compared, latent=compared)
    (line,) = alarms(text=compared, latent=nothing, deranged=nothing)
    assert line.startswith("ALARM reader: of latent, deranged scorer and decoder were compared in")
