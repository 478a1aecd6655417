"""The benchmark of docs/performance.md: its page, and that every part runs on a CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import float8, starting
from benchmarks.break_even import first, flops, forward, kv_bytes, measured, table
from benchmarks.killed import difference
from benchmarks.run import BEGIN, END, PAGE, WAYS, page, spliced
from benchmarks.speed.sizes import run_of, sizes
from benchmarks.speed.uneven import batches, in_order, summary
from lw_jax.config.parse import from_dict
from lw_jax.data.facts import FactsRows
from lw_jax.models.config import ModelConfig
from lw_jax.models.encoder_arch import arch_from_hf
from lw_jax.models.spec import open_model

ROOT = Path(__file__).parents[1]
ROW = {"first_s": 3.0, "ms": 50.0, "min": 49.0, "max": 52.0, "calls": 12}
FOUND = {
    "preset": "h200",
    "device": "NVIDIA H200",
    "devices": 1,
    "cores": 16,
    "machine": "x86_64",
    "date": "2026-12-01",
    "python": "3.12.1",
    "versions": {"jax": "0.11.2"},
    "lw_jax": "0.1",
    "parts": {
        "step": {
            "lw_jax": {"step": ROW | {"planned_gb": 35.2}},
            "torch, plain": {"failed": "out of memory"},
            "torch, tuned and compiled": {"step": ROW | {"ms": 40.0}},
        },
        "decode": {"lw_jax": {"b1_per_token": {"ms": 4.5, "peak_gb": 15.0}}},
        "tiles": {
            "lw_jax": {
                "o_xla": {"ms": 0.0112, "gb_per_s": 3000.0},
                "o_32_256_4_4": {"ms": 0.0089, "gb_per_s": 3770.0},
                "o_fastest": {"ms": 0.0089, "tile": [32, 256, 4, 4]},
            }
        },
        "start": {"lw_jax": {"cold": {"s": 40.0, "cpu_s": 60.0}, "warm": {"failed": "x"}}},
    },
}


def test_the_page_compares_within_one_run() -> None:
    text = page(FOUND)
    assert "1 x NVIDIA H200" in text
    assert "| step | lw_jax | 50.00 | 49.00 to 52.00 | 3.0 |  | 35.2 | 1.25 |" in text
    assert "failed: out of memory" in text
    assert "ratio to torch, tuned and compiled" in text
    assert "| b1_per_token | lw_jax | 4.50 |  |  | 15.0 | 1.00 |" in text  # it has no rival there
    assert "| o | XLA | 11.2 | 3000 |\n| o | 32 256 4 4 | 8.9 | 3770 |" in text
    assert "| cold | 40.0 | 60.0 |" in text


def test_ways_without_their_rival_stand_beside_the_first_of_them() -> None:
    ways = {
        "torch, tuned and compiled": {"failed": "more than 200 s"},
        "lw_jax, remat none": {"step": ROW},
        "lw_jax, remat dots": {"step": ROW | {"ms": 100.0}},
    }
    text = page(FOUND | {"parts": {"step": ways}})
    assert "ratio to lw_jax, remat none |" in text
    assert [line.split(" | ")[-1] for line in text.splitlines() if "| step | lw" in line] == [
        "1.00 |",
        "2.00 |",
    ]


def test_runs_of_one_machine_stand_together_and_say_what_has_no_column() -> None:
    text = {"ms": 200.0, "tflops": 600.4, "share_of_peak": 0.811, "times_latent": 30.04}
    handed = {"lw_jax": {"matmul": {"ms": 1.5, "tflops": 740.2}, "text_8192": text}}
    decoded = {"lw_jax, kernels": {f"b{n}_per_token": {"ms": 4.2, "off": 0.04} for n in (1, 16)}}
    said = page(
        FOUND,
        FOUND | {"parts": {"handoff": handed, "decode": decoded}},
        FOUND | {"preset": "real", "parts": {"step": {"lw_jax": {"step": ROW}}}},
    )
    assert said.count("Preset `h200`") == said.count("Preset `real`") == 1
    assert said.count("## decode") == 1
    assert "0.81 of 740 of one product of 8192 x 8192 matrices; 30.0 times the time" in said
    assert "from the decoder's, by rows: lw_jax, kernels: 0.040, 0.040." in said


def test_uneven_texts_are_padded_to_a_few_lengths_or_to_the_longest(tmp_path: Path) -> None:
    tokens = [10, 70, 100, 120, 130, 200, 30, 60] * 8 + [1000]
    file = tmp_path / "lengths.json"
    file.write_text(json.dumps({"tokens": tokens, "pieces": tokens}))
    of = batches(replace(sizes("h200"), rows=8, longest=256), file)
    assert (len(of.bucketed), of.left_out, of.mean) == (8, pytest.approx(1 / 65), 90.0)
    assert set(of.bucketed) <= {64, 128, 192, 256}
    assert sum(of.bucketed) < sum(of.longest)
    assert of.longest == tuple(-(-exact // 64) * 64 for exact in of.exact)
    assert max(of.exact) == 200  # a text of each length is in a batch of the longest

    each = {size: {"ms": 10.0 + size} for size in (64, 128, 192, 256)}
    rows = summary(each, of, "longest", 50.0)
    assert rows["longest"]["ms"] == 10 + sum(of.longest) / 8
    assert rows["longest"]["unrounded_ms"] == pytest.approx(10 + sum(of.exact) / 8)
    assert rows["longest_unwaited"] == {"ms": 50.0}
    assert rows["longest"]["padded"] == round(sum(of.longest) / 8 / 90, 3)
    called: list[int] = []
    assert in_order(called.append, lambda _: None, (64, 128) * 40) > 0
    assert called == [64, 128] * 16

    ours = {f"bucketed{end}": {"ms": 50.0} | rows["longest"] for end in ("", "_unwaited")}
    other = {"longest": rows["longest"] | {"ms": 75.0}, "longest_unwaited": {"ms": 100.0}}
    for kind in ours.values():
        kind["ms"] = 50.0
    part = {"lw_jax": ours, "torch, tuned and compiled": other}
    text = page(FOUND | {"parts": {"uneven": part}})
    assert "1.50 times as fast as torch, tuned and compiled that pads to the longest" in text
    assert "2.00 as training goes" in text and "1.5 % left out" in text


def test_questions_of_a_text_are_as_many_rows() -> None:
    train = run_of(sizes("h200"), {"questions": "4", "shared": "yes"})["stages"]["fit"]["train"]
    assert (train["batch_size"], train["questions"], train["shared_text"]) == (4, 4, True)
    assert not run_of(sizes("h200"), {})["stages"]["fit"]["train"]["shared_text"]


def test_several_devices_stand_beside_one() -> None:
    ways = {
        "step, fsdp": {"step": ROW | {"weights_gb": 11.3, "peak_gb": 30.0}},
        "decode, tensor": {"b1_per_token": {"ms": 4.0}, "b16_per_token": {"ms": 5.0}},
        "step, data": {"failed": "no memory"},
    }
    gains = {
        "step, fsdp": {"efficiency": 0.951},
        "decode, tensor": {"b1 times as quick": 1.2, "b16 times as quick": 1.3},
    }
    about = {k: v for k, v in FOUND.items() if k != "parts"} | {"several": 2}
    said = page(about | {"ways": ways, "beside one": gains})
    assert "| step, fsdp | step | 50.00 | 49.00 to 52.00 | 11.3, 30.0 | efficiency 0.95 |" in said
    assert "| b1_per_token | 4.00 |  | ,  | times as quick 1.20 |" in said
    assert "| b16_per_token | 5.00 |  | ,  | times as quick 1.30 |" in said
    assert "failed: no memory" in said


def test_a_killed_run_is_held_against_one_that_was_not() -> None:
    whole = {"losses": {"1": 3.0, "2": 2.0}, "arrays": {"a": "x"}}
    killed = whole | {"killed": 2, "resumed": 1}
    assert difference(whole, killed)["equal"]
    other = killed | {"losses": {"1": 3.0, "2": 2.5}}
    found = difference(whole, other)
    assert (found["equal"], found["first step that differs"]) == (False, 2)
    assert not difference(whole, killed | {"arrays": {"a": "y"}})["equal"]
    assert not difference(whole, killed | {"losses": {"1": 3.0}})["equal"]
    assert difference({"failed": "no"}, killed) == {"failed": "no"}


def test_models_of_the_start_can_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "SHARD", 2000)
    starting.write_model(tmp_path / "sender", sizes("smoke").sender, ROOT / "zoo" / "tiny-llama")
    assert len(list((tmp_path / "sender").glob("*.safetensors"))) > 2
    spec = open_model("sender", ModelConfig(str(tmp_path / "sender")))
    spec.check_files()
    spec.check_weights()
    asked = from_dict(starting.config(sizes("smoke"), tmp_path))
    assert asked.stages["fit"].train.log_every == 1


@pytest.mark.slow
def test_8_bits_are_held_against_16(tmp_path: Path) -> None:
    def passage(group: Any) -> dict[str, Any]:
        text, answer = group[0].context, group[0].answers[0]
        answers = [{"text": answer, "answer_start": max(0, text.find(answer))}]
        asked = {"id": group[0].id, "question": group[0].question, "answers": answers}
        return {"title": group[0].id, "paragraphs": [{"context": text, "qas": [asked]}]}

    rows = FactsRows("eval", 0, 2, 12)
    file = tmp_path / "qa.json"
    file.write_text(json.dumps({"data": [passage(rows[i]) for i in range(12)]}))
    reader = str(ROOT / "zoo" / "tiny-llama")
    some = float8.texts(open_model("r", ModelConfig(reader)).tokenizer, str(file), 8, 64)
    assert (some.begin < some.answer).all() and (some.answer < some.lengths).all()
    found = float8.compared(reader, str(file), 8, 64, 4, reads=True)
    assert len(found["taps"]["layers"]) == 4 and found["rows"] % 4 == 0
    assert 0.98 < found["taps"]["least"] < 1
    assert 0 < found["divergence"] < 0.1 and 0.8 < found["agreement"] <= 1
    assert 0 < found["gradient"]["least"] <= found["gradient"]["mean"] < 1
    same = float8.compared(reader, str(file), 8, 64, 4, reads=True, quant="none")
    assert (same["divergence"], same["agreement"]) == (0, 1)
    assert same["taps"]["least"] > 0.9999 and same["gradient"]["least"] > 0.9999


def test_what_stands_around_the_tables_stays() -> None:
    before = PAGE.read_text()
    once = spliced(before, "first")
    assert spliced(once, "second") == spliced(before, "second")
    assert once.split(BEGIN)[0] == before.split(BEGIN)[0]
    assert once.split(END)[1] == before.split(END)[1]


@pytest.mark.slow
def test_a_smoke_run_of_every_part(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    command = [sys.executable, "-m", "benchmarks.run", "--preset", "smoke", "--out", str(out)]
    subprocess.run(command, cwd=ROOT, check=True)
    found = json.loads(out.read_text())
    assert set(found["parts"]) == set(WAYS)
    assert {"step", "decode", "handoff", "start"} <= set(found["parts"])
    assert found["parts"]["step"]["lw_jax"]["step"]["ms"] > 0
    start = found["parts"]["start"]["lw_jax"]
    assert start["warm"]["cpu_s"] < start["cold"]["cpu_s"]
    assert "ratio to lw_jax" in page(found)


def test_flops_of_the_pieces() -> None:
    """As counted by hand for the step of docs/performance.md: 57.7 and 133.9 TFLOP."""
    s = sizes("h200")
    sender, receiver = (arch_from_hf(x, None, where="") for x in (s.sender, s.receiver))
    assert 16 * forward(sender, 512, 16) == pytest.approx(57.7e12, rel=2e-3)
    assert 16 * forward(receiver, 593) == pytest.approx(133.9e12, rel=2e-3)
    assert forward(sender, 512) == pytest.approx(
        forward(sender, 500) + forward(sender, 12, after=500)
    )
    assert kv_bytes(s, 1) == 2 * 32 * 8 * 128 * 2


def test_where_a_latent_is_cheaper() -> None:
    assert first(lambda n: n >= 777) == 777
    assert first(lambda n: n >= 1) == 1
    assert first(lambda n: False) is None
    assert first(lambda n: n < 50 or n > 300) == 301  # for all longer texts
    s = sizes("h200")
    reading, latent = flops(s, 8192, 4, kept=False)
    assert latent < 0.2 * reading
    reading, latent = flops(s, 64, 1, kept=False)
    assert latent > reading
    took = measured({"handoff": {"lw_jax": {"encode_512": {"ms": 7.0}, "text_512": {"ms": 5.0}}}})
    assert took == {512: {"encode": 7.0, "text": 5.0}}
    row = {"encode": 7.0, "read": 4.0, "text": 6.0, "wire": 11.0}
    assert "| 512 tokens | 7.00 ms | 4.00 ms | 6.00 ms | 11.00 ms | from 4 | dearer |" in table(
        s, {512: row}, [1]
    )
    assert "never" in table(s, {512: row | {"text": 3.0}}, [1])
