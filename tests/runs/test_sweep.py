"""A grid of runs: which ones, where they go, what is done again, and what comes of them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lw_jax import launch
from lw_jax.config.parse import to_dict
from lw_jax.config.yaml_files import load
from lw_jax.errors import UserError
from lw_jax.runs.grid import grid
from lw_jax.runs.sweep import against
from lw_jax.train.diagnostics import DivergedError
from tests.config.conftest import Write

KEY = "bridge.compressor.perceiver.slots"


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """(stage, slots, seed) of the stages run; an evaluation's F1 is a hundredth of the slots."""
    calls: list[tuple[str, int, int]] = []

    def run(this: Any, name: str, config: Any) -> None:
        slots = this.config.bridge.compressor.perceiver.slots
        calls.append((name, slots, this.config.seed))
        if len(calls) == 4:
            raise KeyboardInterrupt
        if name == "report":
            figures = {"f1": slots / 100, "nll": 1.0, "ci": {"f1": [0, 1]}}
            metrics = {
                "receivers": {"reader": {"latent": figures}},
                "verdict": {"reader": {"carries": slots > 4}},
            }
            (this.run_dir / "metrics.json").write_text(json.dumps(metrics))

    monkeypatch.setattr(launch, "stage_module", lambda kind: SimpleNamespace(run=run))
    return calls


def test_a_sweep_goes_on_where_it_was_stopped_and_ends_in_one_table(
    write: Write, ran: list[tuple[str, int, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--config", str(write()), "--sweep", f"{KEY}=4,6", "--sweep", "seed=1,2"]
    assert launch.main(command) == 130
    assert ran == [("fit", 4, 1), ("report", 4, 1), ("fit", 4, 2), ("report", 4, 2)]
    (one,) = json.loads(Path("runs/small/sweep.json").read_text())["runs"]
    assert one["values"] == {KEY: "4", "seed": "1"}
    assert launch.main(command) == 0
    assert ran[4:] == [("report", 4, 2), ("fit", 6, 1), ("report", 6, 1), ("fit", 6, 2), ran[-1]]
    found = json.loads(Path("runs/small/sweep.json").read_text())
    assert found["keys"] == [KEY, "seed"]
    assert [Path(run["run_dir"]).name for run in found["runs"]] == [
        f"slots={slots}_seed={seed}" for slots in (4, 6) for seed in (1, 2)
    ]
    assert [run["receivers"]["reader"]["latent"]["f1"] for run in found["runs"]] == [
        *(0.04, 0.04),
        *(0.06, 0.06),
    ]
    assert [run["carries"]["reader"] for run in found["runs"]] == [False, False, True, True]
    lines = capsys.readouterr().out.splitlines()
    assert sum("reader" in line and "0.060" in line for line in lines) == 2


def test_a_run_that_fails_is_a_line_and_the_others_go_on(
    write: Write, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ends = {
        "1": DivergedError("stages.fit: not finite at step 2", 2),
        "2": UserError("train_only: matches nothing"),
        "3": RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"),
    }

    def run(this: Any, name: str, config: Any) -> None:
        if (error := ends.get(str(this.config.seed))) is not None:
            raise error

    monkeypatch.setattr(launch, "stage_module", lambda kind: SimpleNamespace(run=run))
    command = ["--config", str(write()), "--sweep", "seed=1,2,3,4"]
    assert launch.main(command) == 2
    out, err = capsys.readouterr()
    assert err == ""
    rows = [line.split("  ") for line in out.splitlines()]
    last = [[part.strip() for part in row if part.strip()] for row in rows]
    table = last[next(i for i, row in enumerate(last) if row and row[0] == "seed") :]
    assert table[0][1:] == ["receiver", "nll", "carries", "run"]
    assert table[1:5] == [
        ["1", "diverged at step 2"],
        ["2", "failed"],
        ["3", "failed"],
        ["4", "not evaluated"],
    ]
    assert "failed: seed 2: train_only: matches nothing" in out
    found = json.loads(Path("runs/small/sweep.json").read_text())["runs"]
    assert [run.get("diverged") for run in found] == [2, None, None, None]
    assert ["error" in run for run in found] == [True, True, True, False]
    ends.clear()
    assert launch.main(command) == 0  # what failed is run again


def test_lists_and_keys_with_one_end(write: Write) -> None:
    swept = [
        ("bridge.source.hidden_states.layers", "[0, 1], [2]"),
        ("stages.fit.train.batch_size", "8, 16"),
        ("stages.report.evaluate.batch_size", "8"),
    ]
    _, points = grid(write(), [("seed", "3")], [], swept)
    layers = [p.config.bridge.source.hidden_states.layers for p in points if p.config.bridge]
    assert layers == [(0, 1), (0, 1), (2,), (2,)]
    assert {p.config.seed for p in points} == {3}
    assert [Path(str(p.config.run_dir)).name for p in points[:2]] == [
        f"layers=0-1_train.batch_size={size}_evaluate.batch_size=8" for size in (8, 16)
    ]


def test_a_files_lists_are_swept_and_flags_add_to_them(write: Write, tmp_path: Path) -> None:
    over = tmp_path / "over.yaml"
    over.write_text("sweep: {bridge.latent_dim: [16, 32], objectives.answer_ce.weight: null}")
    path = write(sweep={"seed": [1, 2], "objectives.answer_ce.weight": [1.0, 2.0]})
    flags = [("seed", "7"), (KEY, "4,6")]
    _, points = grid(path, [("mesh.tensor", "2")], [over], flags)
    assert [point.values for point in points] == [
        {"seed": "7", "bridge.latent_dim": dim, KEY: slots}
        for dim in ("16", "32")
        for slots in ("4", "6")
    ]
    for point in points:
        assert point.config.bridge is not None
        assert point.config.bridge.latent_dim == int(point.values["bridge.latent_dim"])
        assert point.config.bridge.compressor.perceiver.slots == int(point.values[KEY])
        assert (point.config.seed, point.config.mesh.tensor) == (7, 2)
        assert "sweep" not in to_dict(point.config)
    assert Path(str(points[3].config.run_dir)).name == "seed=7_latent_dim=32_slots=6"


def test_a_file_with_lists_is_run_as_a_sweep(
    write: Write, ran: list[tuple[str, int, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--config", str(write(sweep={KEY: [4, 6]}))]
    assert [launch.main(command) for _ in range(2)] == [130, 0]
    assert ran == [("fit", 4, 42), ("report", 4, 42), ("fit", 6, 42), *[("report", 6, 42)] * 2]
    found = json.loads(Path("runs/small/sweep.json").read_text())
    assert [run["values"] for run in found["runs"]] == [{KEY: "4"}, {KEY: "6"}]
    assert "sweep" not in load("runs/small/slots=6/config.yaml")
    assert "2 runs: F1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("sweep", "more", "said"),
    [
        ([1, 2], [], "sweep: expected a mapping of dotted keys to lists"),
        ({"seed": 3}, [], "sweep.seed: expected a mapping of dotted keys to lists"),
        ({"bridge": {"latent_dim": [4, 8]}}, [], "sweep.bridge: expected a mapping of dotted keys"),
        ({"seed": []}, [], "sweep.seed: expected different values"),
        ({"seed": [1, 1]}, [], "sweep.seed: expected different values"),
        ({"run_dir": ["a", "b"]}, [], "sweep another key"),
        ({"sed": [1, 2]}, [], "did you mean seed?"),
        ({"seed": [1, 2]}, ["--doctor"], "leave its sweep out"),
        ({"seed": [1, 2]}, ["--print_config"], "leave its sweep out"),
    ],
)
def test_bad_lists_in_a_file(
    write: Write, sweep: Any, more: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch.main(["--config", str(write(sweep=sweep)), *more]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert err.count("\n") == 1
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("swept", "said"),
    [
        ([("seed", "")], "expected different values"),
        ([("seed", "1,1")], "expected different values"),
        ([("seed", "1"), ("seed", "2")], "given twice"),
        ([("name", "a,b")], "sweep another key"),
        ([("sed", "1,2")], "did you mean seed?"),
        ([("seed", "1,x")], 'seed: expected a whole number; got "x"'),
        ([("seed", "1,2,1.0")], "sweep: 1 and 1.0 of seed mean the same"),
        ([("seed", "1,2"), ("layout.bos_after_anchor", "[x]")], "layout.bos_after_anchor"),
    ],
)
def test_bad_sweeps(write: Write, swept: list[tuple[str, str]], said: str) -> None:
    with pytest.raises(UserError) as caught:
        grid(write(), [], [], swept)
    assert said in str(caught.value)


def test_a_flag_for_a_swept_key_is_not_left_out_unsaid(write: Write) -> None:
    with pytest.raises(UserError, match=r"^--seed: it is swept, too"):
        grid(write(), [("seed", "5")], [], [("seed", "1,2")])
    with pytest.raises(UserError, match=r"^--layout: it is swept, too"):
        grid(write(), [("layout.anchor", "A:")], [], [("layout", "{primer: A},{primer: B}")])


def test_long_values_make_names_that_a_directory_can_have(write: Write) -> None:
    texts = [f'"{letter}{"long " * 100}{{question}}"' for letter in "ab"]
    _, points = grid(write(), [], [], [("layout.question", ",".join(texts))])
    names = [Path(point.config.run_dir or "").name for point in points]
    assert len(set(names)) == 2 and all(len(name) < 100 for name in names)


@pytest.mark.parametrize(
    ("more", "said"),
    [(["--sweep", "seed"], "give values as well"), (["--doctor", "--sweep", "seed=1"], "--doctor")],
)
def test_bad_command_lines(
    write: Write, more: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch.main(["--config", str(write()), *more]) == 2
    assert said in capsys.readouterr().err
    assert list(Path().iterdir()) == []


def test_a_single_runs_directory_is_no_sweeps(
    write: Write, ran: list[tuple[str, int, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(write())
    assert launch.main(["--config", path]) == 0
    assert launch.main(["--config", path, "--sweep", "seed=1,2"]) == 2
    assert "holds a single run" in capsys.readouterr().err


def result(f1: float, distinct: float = 0.8, low: float = 0.4, high: float = 0.6) -> dict[str, Any]:
    latent = {"f1": f1, "distinct": distinct, "f1_ci": [low, high]}
    return {"receivers": {"reader": {"latent": latent}}}


@pytest.mark.parametrize(
    ("row", "word"),
    [
        (result(0.7), "improved"),
        (result(0.6), "stable"),
        (result(0.39), "degraded"),
        (result(0.12), "collapsed"),
        (result(0.5, distinct=0.19), "collapsed"),
        ({"error": "diverged"}, "collapsed"),
    ],
)
def test_a_run_has_a_verdict_against_the_first(row: dict[str, Any], word: str) -> None:
    assert against(result(0.5), row) == {"reader": word}


def test_a_run_that_is_not_evaluated_has_none() -> None:
    assert against(result(0.5), {"values": {}}) == {}
    assert against({"values": {}}, result(0.5)) == {}


def test_the_verdict_is_in_the_table(
    write: Write, ran: list[tuple[str, int, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch.main(["--config", str(write()), "--sweep", f"{KEY}=4,40"]) == 130
    assert launch.main(["--config", str(write()), "--sweep", f"{KEY}=4,40"]) == 0
    found = json.loads(Path("runs/small/sweep.json").read_text())["runs"]
    assert "against_first" not in found[0]
    assert found[1]["against_first"] == {"reader": "stable"}  # the first's interval is 0 to 1
    assert "against the first" in capsys.readouterr().out


def test_a_dry_run_lists_the_runs_and_begins_none(
    write: Write, ran: list[tuple[str, int, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(write())
    assert launch.main(["--dry_run", "--config", config, "--sweep", f"{KEY}=4,6"]) == 0
    said = capsys.readouterr().out
    assert "slots=4" in said and "slots=6" in said and "0 of 2" in said
    assert ran == [] and not Path("runs").exists()
    assert launch.main(["--dry_run", "--config", config]) == 2
    assert "--dry_run: there is no sweep" in capsys.readouterr().err
