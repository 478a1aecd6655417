"""A stage that keeps what its frozen models say: the same losses, also after it was stopped."""

from __future__ import annotations

from pathlib import Path

import pytest

from lw_jax.launch import main
from lw_jax.train.progress import Display
from tests.stages.test_compiled_ahead import config, lines_of

FLAGS = (
    *("--objectives.kd.weight=0.5", "--stages.fit.train.eval_every=0"),
    *("--stages.fit.train.steps=12", "--data.facts.size=12", "--stages.fit.train.save_every=5"),
    *("--stages.fit.train.curriculum=[]", "--data.facts.levels=[1,4]"),
    *("--stages.fit.train.buckets=2", "--data.facts.questions=1"),
)
REUSE = (*FLAGS, "--stages.fit.train.reuse.memory_gb=0.1")
__all__ = ["config"]


class StoppedError(BaseException):
    """Stands for a kill."""


@pytest.mark.slow
def test_losses_stay_and_a_stopped_run_ends_as_if_never_stopped(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = lines_of(config, tmp_path / "plain", *FLAGS)
    whole = lines_of(config, tmp_path / "whole", *REUSE)
    assert [line["reused"] for line in whole][:3] == [0.0] * 3  # an epoch
    assert [line["reused"] for line in whole][-3:] == [1.0] * 3
    for one, other in zip(plain, whole, strict=True):
        assert abs(one["loss"] - other["loss"]) < 1e-5

    step = Display.step

    def stops(self: Display, done: int) -> None:
        step(self, done)
        if done == 7:
            raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(Display, "step", stops)
        with pytest.raises(StoppedError):
            lines_of(config, tmp_path / "stopped", *REUSE)
    assert lines_of(config, tmp_path / "stopped", *REUSE) == whole  # bit for bit
    assert len(list((tmp_path / "stopped" / "reuse").glob("*.sqlite"))) == 2


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        pytest.param(
            ("--data.facts.size=1000",),
            "stages.fit.train.reuse: no context comes twice: 48 are taken of 1000",
            marks=pytest.mark.slow,
        ),
        (
            ("--bridge.source.hidden_states.lora.r=2",),
            "stages.fit.train.reuse.sender: bridge.source trains a LoRA of the sender",
        ),
        (
            ("--stages.fit.train.reuse.sender=false", "--objectives.kd=null"),
            "stages.fit.train.reuse: its objectives and its source ask the frozen models for",
        ),
    ],
)
def test_where_nothing_would_be_kept_it_is_refused(
    config: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: tuple[str, ...],
    said: str,
) -> None:
    run = tmp_path / "run"
    assert main(["--config", str(config), f"--run_dir={run}", *REUSE, *flags]) == 2
    shown = capsys.readouterr()
    assert said in shown.err + shown.out
    assert not (run / "reuse").exists() and not (run / "checkpoints").exists()
