"""Probes of a bridge: an inverter learns what is there and no more; each writes its figures."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import optax
import pytest
from rich.console import Console

from lw_jax.__main__ import main
from lw_jax.api.bridge import Bridge
from lw_jax.data.example import Example
from lw_jax.data.words import open_split
from lw_jax.errors import UserError
from lw_jax.probes import inverter, leak
from lw_jax.probes.base import Probed, _cell, figure, open_probed, sentences
from lw_jax.probes.config import LeakConfig, SkillConfig
from lw_jax.probes.inverter import Inverter, Seen, train
from lw_jax.results.record import record_of
from lw_jax.wire.gate import Gate
from tests.tiny.shipped import FACTS

# The inverter


def pairs(count: int, seed: int, vocab: int = 8, length: int = 8) -> tuple[Seen, np.ndarray]:
    """Texts of random tokens, and columns in each of which one token can be read."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(3, length, count)
    real = np.arange(length)[None] < sizes[:, None]
    tokens = np.where(real, rng.integers(0, vocab, (count, length)), vocab).astype(np.int32)
    x = np.eye(vocab + 1, 12, dtype=np.float32)[tokens] * real[..., None]
    at = np.broadcast_to(np.arange(length, dtype=np.float32), (count, length))
    return Seen(x, real, at), tokens


def test_an_inverter_writes_what_is_there_and_guesses_the_rest() -> None:
    seen, tokens = pairs(512, 0)
    other, gold = pairs(64, 1)
    module = Inverter(length=8, vocab=8, width=32, depth=1, heads=2)
    how: dict[str, Any] = {"steps": 150, "batch_size": 32, "lr": 0.02, "seed": 0}
    nothing = seen.replace(x=np.zeros_like(seen.x))  # type: ignore[attr-defined]
    told = tokens.copy()
    told[-40:] = 0  # of pairs that are apart nothing is learned
    trained = train(module, seen, told, step=lambda *_: None, apart=40, **how)
    blind = train(module, nothing, tokens, step=lambda *_: None, **how)
    assert [*trained.curve] == [0, *range(15, 151, 15)] and blind.late is None
    wrote = trained.write(seen.of(np.arange(472, 512)), 32)
    assert trained.curve[150] == pytest.approx((wrote == 0).mean()) and trained.curve[150] < 0.3
    assert trained.late == trained.curve[150] - trained.curve[90]
    real = gold < 8
    assert (trained.write(other, 32) == gold)[real].mean() > 0.95
    assert (blind.write(other, 32) == gold)[real].mean() < 0.3
    assert trained.loss < 0.5 < blind.loss


@pytest.mark.parametrize("steps", [1, 2])
def test_an_inverter_that_blew_up_is_no_proof_that_nothing_leaks(
    steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would write one token everywhere, and each text would look safe: no loss shows what the
    last step has done."""
    seen, tokens = pairs(8, 0)
    module = Inverter(length=8, vocab=8, width=8, depth=1, heads=2)
    monkeypatch.setattr(inverter, "make_optimiser", lambda *_: optax.scale(np.inf))
    how: dict[str, Any] = {"steps": steps, "batch_size": 4, "lr": 0.02, "seed": 0}
    what = "parameters are not finite" if steps == 1 else "loss is nan at step 2 of 2"
    with pytest.raises(UserError, match=f"^lr: the inverter blew up .*{what}.*0.02") as end:
        train(module, seen, tokens, step=lambda *_: None, **how)
    assert "\n" not in str(end.value)


# What is planted


def row(text: str, name: str = "a") -> Example:
    return Example(name, name, text, "What?", ("7",))


def test_a_sentence_is_planted_in_place_of_the_last() -> None:
    text = "One thing is so. Another is not! Is it?"
    secret = leak._planted(row(text), "eval", 1)
    kept = sentences(secret.row.context)
    assert kept[:2] == ["One thing is so.", "Another is not!"]
    assert len(kept) == 3 and secret.name in kept[2]
    assert open_split(secret.name) == "eval"  # no training text has it
    assert all(value in kept[2] for value in (*secret.numbers, *secret.words))
    assert secret.numbers or secret.words
    assert {a for _, a in secret.asked} == {*secret.numbers, *secret.words}
    assert leak._planted(row(text), "eval", 1) == secret
    assert leak._planted(row(text), "eval", 2) != secret
    alone = leak._planted(row("One thing is so."), "eval", 1)
    assert alone.row.context.startswith("One thing is so. ")


def test_what_is_recovered_is_counted_by_whole_words() -> None:
    some = [
        leak.Secret(row("a"), "Tovek", ("12",), (), ()),
        leak.Secret(row("b"), "Dabuk", ("7",), ("zenaluk",), ()),
    ]
    found = leak._recovered(some, [{"Tovek", "123"}, {"7", "zenaluk"}], 0)
    assert (found["names"].value, found["names"].n) == (0.5, 2)
    assert (found["numbers"].value, found["numbers"].n) == (0.5, 2)
    assert (found["words"].value, found["words"].n) == (1.0, 1)


def test_a_figure_of_nothing_is_none() -> None:
    assert figure([0.0, 0.0], 0, [0, 0]).n == 0
    assert _cell(figure([2.5], 0, share=False)) == "2.500"  # nothing is known of another row
    whole = figure([1.0] * 20, 0)
    assert whole.value == 1.0 and whole.ci[0] < 1.0


# Command lines


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "give one of leak, hostile, skill, oracle"),
        ("leaks runs/x", "give one of leak, hostile, skill, oracle"),
        ("leak", "give one of leak, hostile, skill, oracle"),
        ("leak runs/x --row=3", "--row: unknown; there are rows"),
        ("leak runs/x rows=3", "expected --KEY=VALUE"),
        ("leak runs/x --rows=0", "rows: "),
        ("leak runs/x --rows=many", "rows: expected a whole number"),
        ("hostile runs/x --limits=[]", "limits: "),
        ("hostile runs/x --alarms=0", "alarms: "),
        ("skill runs/nowhere", "nowhere"),
    ],
)
def test_wrong_words(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", *words.split()]) == 2
    err = capsys.readouterr().err
    assert said in err and len(err.splitlines()) == 1


# Whole probes, of the bridge that ships


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def result(place: Path, kind: str, *words: str) -> dict[str, Any]:
    assert main(["probe", kind, str(FACTS), f"--out={place}", *words]) == 0
    found: dict[str, Any] = json.loads((place / f"probe_{kind}.json").read_text())
    return found


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> Probed:
    return open_probed(str(FACTS), str(tmp_path_factory.mktemp("probed")), None, quiet())


@pytest.mark.slow
def test_options_that_do_not_fit_the_bridge(probed: Probed) -> None:
    for cfg, said in (
        (LeakConfig(codecs=("gif",)), "unknown codec 'gif'"),
        (LeakConfig(ratios=(4.0,)), "one number of slots"),
        (LeakConfig(texts="nowhere.txt"), "nowhere.txt"),
        (LeakConfig(inverters=("slots",)), "unknown 'slots'; there are message, receiver, prior"),
    ):
        with pytest.raises(UserError, match=said):
            leak.run(probed, cfg)
    assert not list(probed.out.iterdir())  # nothing half-written


@pytest.mark.slow
def test_what_is_asked_for_is_recovered_and_another_text_s_is_not(tmp_path: Path) -> None:
    words = ("--rows=48", "--eval_rows=24", "--steps=3", "--codecs=[float16,int4]", "--width=32")
    found = result(tmp_path, "leak", *words, "--heads=2")
    lines = found["figures"]
    for way in ("float16", "int4"):
        assert set(lines[f"message_{way}"]) == {"tokens", "names", "numbers", "words", "whole_text"}
        assert lines[f"asked_{way}"]["numbers"]["value"] > 0.8
        assert lines[f"receiver_{way}"]["tokens"]["n"] == 24
    assert lines["asked_deranged"]["numbers"]["value"] < 0.2
    assert {"message_deranged", "receiver_deranged", "prior"} < set(lines)
    record = record_of(tmp_path)
    assert record["evaluations"]["probe_leak"]["receivers"]["mistral"]["prior"]["n"] == 24
    assert not record["training"]["fit"]["steps"]


@pytest.mark.slow
@pytest.mark.timeout(1800)  # ten minutes of two slow cores
def test_hostile_messages_reach_their_aim_and_the_gate_refuses_most(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--rows=8", "--steps=60", "--codecs=[float16]", "--limits=[1,0]", "--honest=64")
    lines = result(tmp_path, "hostile", *words)["figures"]
    honest, hostile = lines["honest_float16"], lines["hostile_float16_any_norm"]
    assert honest["right"]["value"] > 0.9 and honest["aim"]["value"] < 0.2
    assert hostile["aim"]["value"] > 0.7
    assert (
        lines["inside_gate_float16_any_norm"]["pass_gate"]["value"]
        >= (hostile["pass_gate"]["value"])
    )
    # the gate before a receiver
    gate = tmp_path / "gate.npz"
    wire = Bridge.load(FACTS, gate=gate)
    text, question = "Ada Lumen keeps 50 hens in the yard.", "How many hens does Ada Lumen keep?"
    data = wire.encode(text)
    (latent,) = open_probed(str(FACTS), str(tmp_path), None, quiet()).opened([data])
    far = Gate(wire.gate.mean, wire.gate.whiten, dict(wire.gate.bounds), wire.gate.mark)  # type: ignore[union-attr]
    far.bounds["largest_norm"] = 0.001  # type: ignore[index]
    far.save(gate)
    strict = Bridge.load(FACTS, gate=gate)
    with pytest.raises(UserError, match=r"^gate: the largest norm of a slot is"):
        strict.answer(data, question)
    assert latent.slots.shape[0] == 1
    capsys.readouterr()
    sent = tmp_path / "message.lwj"
    sent.write_bytes(data)
    words = ("decode", str(FACTS), "-m", str(sent), "--ask", question, f"--gate={gate}")
    assert main(list(words)) == 2
    assert "gate: the largest norm" in capsys.readouterr().err


@pytest.mark.slow
def test_with_nothing_before_it_the_receiver_has_its_skill(tmp_path: Path) -> None:
    path = tmp_path / "instructions.jsonl"
    text = "Ada Lumen keeps 50 hens in the yard."
    prompt = f"Context: {text}\nQuestion: How many hens does Ada Lumen keep?\nAnswer:"
    path.write_text(json.dumps({"prompt": prompt, "answer": "50"}) + "\n")
    lines = result(tmp_path, "skill", "--rows=16")["figures"]
    assert set(lines) == {"nothing", "message", "words"}
    assert lines["nothing"]["exact_match"]["value"] > 0.9
    assert lines["nothing"]["nats_a_token"]["value"] < lines["message"]["nats_a_token"]["value"]
    more = lines["words"]["nats_more"]["value"]
    apart = lines["words"]["nats_a_token"]["value"] - lines["nothing"]["nats_a_token"]["value"]
    assert more == pytest.approx(apart, abs=1e-6)
    lines = result(tmp_path, "skill", "--rows=16", f"--instructions={path}")["figures"]
    assert lines["nothing"]["exact_match"]["n"] == 1
    path.write_text('{"prompt": "a"}\n')
    assert main(["probe", "skill", str(FACTS), f"--instructions={path}"]) == 2


def test_configs_are_checked() -> None:
    with pytest.raises(UserError, match="rows"):
        SkillConfig(rows=0)
