"""What a run directory may be used for again, and what of its files may be wrong."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lw_jax import launch
from lw_jax.config.parse import read, to_dict
from lw_jax.errors import UserError
from lw_jax.runs import doctor
from lw_jax.stages import calibrate, evaluate, train
from lw_jax.train import loop
from tests.config.conftest import Write

Stage = Callable[[Any, str], None]


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> dict[str, Stage]:
    """What each kind of stage does; with the checks of what a finished stage has lost."""
    own = {"train": train, "evaluate": evaluate, "calibrate": calibrate}
    does: dict[str, Stage] = {"train": trains, "evaluate": evaluates, "calibrate": lambda *_: None}

    def stage(kind: str) -> SimpleNamespace:
        def run(this: Any, name: str, config: Any) -> None:
            does[kind](this, name)

        return SimpleNamespace(run=run, lost=own[kind].lost)

    monkeypatch.setattr(launch, "stage_module", stage)
    monkeypatch.setattr(doctor, "check", lambda *_: [])  # of models and rows, which are right
    return does


def trains(this: Any, name: str) -> None:
    """A checkpoint of the stage's last step."""
    steps = this.config.stages[name].train.steps
    (this.run_dir / "checkpoints" / name / str(steps)).mkdir(parents=True, exist_ok=True)


def evaluates(this: Any, name: str) -> None:
    (this.out_dir / "metrics.json").write_text("{}")
    (this.out_dir / "predictions.jsonl").write_text("{}\n")


def fails(this: Any, name: str) -> None:
    raise UserError("train_only: 'nothing' matches no parameter")


def main(*argv: str) -> int:
    return launch.main(list(argv))


def line_of(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that was said of an error."""
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1, err
    return err


HOME = Path("runs/small")
STEPS = "--stages.fit.train.steps="


def test_a_start_that_failed_does_not_stand_in_the_way(
    write: Write, stages: dict[str, Stage], capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(write())
    stages["train"] = fails
    assert main("--config", config, "--stages.fit.train.train_only=[nothing]", "--seed=3") == 2
    for left in ("receivers.json", "diagnostics.jsonl"):  # of another config
        (HOME / left).write_text("{}\n")
    stages["train"] = trains
    assert main("--config", config) == 0
    assert read(HOME / "config.yaml").seed == 42
    assert not (HOME / "receivers.json").exists()
    assert not (HOME / "diagnostics.jsonl").exists()
    capsys.readouterr()
    assert main("--config", config, "--seed=3") == 2  # what has begun is left alone
    assert "seed was 42, is 3" in line_of(capsys)


def test_what_concerns_stages_to_come_may_be_corrected(
    write: Write, stages: dict[str, Stage], capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(write())
    stages["evaluate"] = fails
    assert main("--config", config) == 2
    stages["evaluate"] = evaluates
    assert main("--config", config, "--stages.report.evaluate.rows=4") == 0
    capsys.readouterr()
    assert main("--config", config) == 2
    assert "stages.report.evaluate.rows was 4, is 8" in line_of(capsys)


def test_the_steps_of_a_finished_run_may_be_raised_and_not_lowered(
    write: Write, stages: dict[str, Stage], capsys: pytest.CaptureFixture[str]
) -> None:
    config, ran = str(write()), []
    assert main("--config", config) == 0
    (HOME / "metrics.json").write_text("{}")
    stages["evaluate"] = lambda this, name: ran.append(this.config.stages["fit"].train.steps)
    capsys.readouterr()
    assert main("--config", config, f"{STEPS}6") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "stages.fit.train.steps: raised from 4 to 6" in said and "schedules" in said
    assert ran == [6]
    assert set(json.loads((HOME / "finished.json").read_text())) == {"fit", "report"}
    assert main("--config", config, f"{STEPS}5") == 2
    said = line_of(capsys)
    assert "stages.fit.train.steps was 6, is 5" in said
    assert "steps may be raised, not lowered" in said


def test_more_steps_do_not_begin_again_what_stop_when_ended(
    write: Write,
    stages: dict[str, Stage],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nor does a line say that they do."""

    def ends_early(this: Any, name: str) -> None:
        (this.run_dir / "checkpoints" / name / "3").mkdir(parents=True)

    config, stages["train"] = str(write()), ends_early
    monkeypatch.setattr(loop, "read_meta", lambda _: {"progress": {"ended": {"since": 2}}})
    assert main("--config", config) == 0
    before = (HOME / "finished.json").read_text()
    capsys.readouterr()
    assert main("--config", config, f"{STEPS}6") == 2
    assert "stages.fit: stop_when ended it after step 3 of 4" in line_of(capsys)
    assert (HOME / "finished.json").read_text() == before


def test_what_went_on_from_a_stage_holds_its_steps(
    write: Write, stages: dict[str, Stage], capsys: pytest.CaptureFixture[str]
) -> None:
    more = {"fit": {"train": {"steps": 4, "batch_size": 8}}}
    more["more"] = more["fit"]
    config = str(write(stages=more))
    assert main("--config", config) == 0
    assert main("--config", str(write(stages={"early": more["fit"], **more}))) == 2
    assert "stages was [fit, more], is [early, fit, more]" in line_of(capsys)
    config = str(write(stages=more))
    assert main("--config", config, f"{STEPS}6") == 2
    assert "stages.more went on from its end" in line_of(capsys)
    assert main("--config", config, "--stages.more.train.steps=6") == 0


def test_a_lost_checkpoint_is_had_again_or_asked_for(
    write: Write, stages: dict[str, Stage], capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(write())
    assert main("--config", config) == 0
    root = HOME / "checkpoints/fit"
    (root / "4").rename(root / "2")
    assert main("--config", config) == 0
    assert "fit: done already, but its last checkpoint is gone; going on from step 2" in (
        " ".join(capsys.readouterr().out.split())
    )
    assert (root / "4").is_dir()
    for path in root.iterdir():
        path.rmdir()
    assert main("--config", config) == 0  # nothing needs it
    finished = HOME / "finished.json"
    finished.write_text(json.dumps({"fit": 1.0}))
    assert main("--config", config) == 2
    assert f"delete {finished} to train it again from its start" in line_of(capsys)
    finished.unlink()
    assert main("--config", config) == 0


def test_lost_statistics_are_measured_again_where_a_stage_needs_them(
    write: Write, stages: dict[str, Stage], capsys: pytest.CaptureFixture[str]
) -> None:
    fit = {"train": {"steps": 4, "batch_size": 8}}
    config = str(write(stages={"measure": {"calibrate": {}}, "fit": fit}))
    measured: list[str] = []
    stages["calibrate"] = lambda this, name: measured.append(name)
    stages["train"] = fails
    assert main("--config", config) == 2
    path = HOME / "calibration/measure.npz"
    path.parent.mkdir()
    path.write_bytes(b"PK")
    capsys.readouterr()
    assert main("--config", config) == 2
    assert f"{path} is damaged" in (said := line_of(capsys))
    assert "delete it and run the same command again" in said
    path.unlink()
    stages["train"] = trains
    assert main("--config", config) == 0
    assert measured == ["measure"] * 2
    assert main("--config", config) == 0  # no stage needs them now
    assert measured == ["measure"] * 2


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("finished.json", b'{"fit": 1'),
        ("finished.json", b"[]"),
        ("finished.json", b'{"fit": "x"}'),
        ("config.yaml", b""),
        ("config.yaml", b"- a\n"),
        ("config.yaml", b"name: small\n"),
        ("config.yaml", b"\xff\xfe{"),
        ("metrics.json", b"null"),
        ("predictions.jsonl", b'{"id": 3, '),
    ],
)
def test_a_damaged_file_is_named_and_the_advice_leads_out(
    name: str,
    content: bytes,
    write: Write,
    stages: dict[str, Stage],
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = str(write())
    assert main("--config", config) == 0
    (HOME / name).write_bytes(content)
    capsys.readouterr()
    assert main("--config", config) == 2
    said = line_of(capsys)
    assert f"{HOME / name} is damaged (" in said
    assert "; delete it" in said
    (HOME / name).unlink()
    assert main("--config", config) == 0
    assert (HOME / name).is_file()


def test_an_evaluation_that_fails_leaves_no_number(
    write: Write, stages: dict[str, Stage], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main("--config", str(write())) == 0
    home = HOME / "evaluations"
    stages["evaluate"] = fails
    assert main("--evaluate", str(HOME)) == 2
    assert not home.exists()
    home.mkdir()
    (home / "\u00b2").mkdir()
    (home / "notes.txt").write_text("mine")
    stages["evaluate"] = fails
    assert main("--evaluate", str(HOME)) == 2
    assert {p.name for p in home.iterdir()} == {"\u00b2", "notes.txt"}
    stages["evaluate"] = evaluates
    assert main("--evaluate", str(HOME)) == 0
    assert (home / "1/metrics.json").is_file()


def test_two_evaluations_at_once_get_two_numbers(
    write: Write, stages: dict[str, Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main("--config", str(write())) == 0
    mkdir, raced = Path.mkdir, []

    def slower(self: Path, *given: Any, **more: Any) -> None:
        if self.parent.name == "evaluations" and not raced:
            raced.append(self)
            mkdir(self)  # another process was quicker
        mkdir(self, *given, **more)

    monkeypatch.setattr(Path, "mkdir", slower)
    assert main("--evaluate", str(HOME)) == 0
    assert [p.name for p in raced] == ["1"]
    assert (HOME / "evaluations/2/metrics.json").is_file()


def test_an_exported_bridge_is_evaluated_as_its_own_config_says(
    write: Write, stages: dict[str, Stage], capsys: pytest.CaptureFixture[str]
) -> None:
    config, given = read(write()), []
    exported = Path("bridges/mine")
    exported.mkdir(parents=True)
    (exported / "bridge.safetensors").write_bytes(b"")
    about = {"parameters": {}, "step": 4, "stage": "fit", "fingerprints": {}}
    about["config"] = to_dict(config)
    (exported / "bridge.json").write_text(json.dumps(about))
    (exported / "receivers.json").write_text("{}\n")
    stages["evaluate"] = lambda this, name: given.append((this, name))
    assert main("--evaluate", str(exported), "--rows=4") == 0
    ((this, name),) = given
    assert list(this.config.stages) == ["report"] == [name]
    cfg = this.config.stages["report"].evaluate
    assert (cfg.init_from, cfg.rows, cfg.methods) == (
        str(exported),
        4,
        config.stages["report"].evaluate.methods,  # type: ignore[union-attr]
    )
    assert this.run_dir == Path("runs/exported/mine")
    assert this.out_dir == this.run_dir / "evaluations/1"
    assert (this.run_dir / "receivers.json").read_text() == "{}\n"
    assert {p.name for p in exported.iterdir()} == {
        *("bridge.json", "bridge.safetensors", "receivers.json")
    }
    capsys.readouterr()
    assert main("--evaluate", "bridges") == 2
    assert "is no run directory, and no bridge.json" in line_of(capsys)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "here"), "here: the disk is full"),
        (OSError(errno.EROFS, "Read-only file system", "here"), "here: the place is read-only"),
        (ValueError("RESOURCE_EXHAUSTED: [OS error 28: ENOSPC]"), "the disk is full"),
        (ValueError("OUT_OF_RANGE: x [os_error_code='27']"), "the limit on the size of a file"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory"), "too little memory: lower batch_size"),
        (MemoryError(), "too little memory"),
    ],
    ids=lambda x: str(x)[:24],
)
def test_a_failure_of_the_machine_is_one_line(
    error: Exception,
    says: str,
    write: Write,
    stages: dict[str, Stage],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(this: Any, name: str) -> None:
        raise error

    stages["train"] = fail
    argv = "--config", str(write())
    assert main(*argv) == 2
    said = line_of(capsys)
    assert says in said and "run the same command again" in said
    stages["train"] = trains
    assert main(*argv) == 0


@pytest.mark.parametrize("error", [ValueError("not one"), KeyError("x"), FileNotFoundError(2, "x")])
def test_a_fault_of_the_program_keeps_its_traceback(
    error: Exception, write: Write, stages: dict[str, Stage]
) -> None:
    def fail(this: Any, name: str) -> None:
        raise error

    stages["train"] = fail
    with pytest.raises(type(error)):
        main("--config", str(write()))


def test_signals_have_their_codes_before_a_stage_begins(
    write: Write, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        monkeypatch.setattr(doctor, "check", lambda *_, n=number: os.kill(os.getpid(), n))
        assert main("--config", str(write())) == 128 + number
    assert not HOME.exists()


def test_a_lock_that_leads_nowhere_is_one_line(
    write: Write, stages: dict[str, Stage], capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(write())
    assert main("--config", config) == 0
    capsys.readouterr()
    (HOME / ".lock").unlink()
    (HOME / ".lock").symlink_to(HOME / "gone" / "lock")
    assert main("--config", config) == 2
    assert "cannot open runs/small/.lock: No such file or directory; remove it" in line_of(capsys)
    (HOME / ".lock").unlink()
    assert main("--config", config) == 0
