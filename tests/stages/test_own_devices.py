"""A stage whose sender has devices of its own: the same numbers, also after it was stopped, and
where it goes on with other devices."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from lw_jax.launch import main
from lw_jax.train.progress import Display
from tests.stages.test_compiled_ahead import config, lines_of

OWN = ("--mesh.data=2", "--mesh.sender.data=2")
FLAGS = (
    *("--stages.fit.train.steps=4", "--stages.fit.train.save_every=2"),
    *("--stages.fit.train.eval_every=4", "--stages.fit.train.watch_every=4"),
    *("--stages.fit.train.curriculum=[]", "--objectives.batch_diversity=null"),
)
EVALUATED = {
    "rows": 6,
    "batch_size": 4,
    "methods": ["latent", "text", "relay"],
    "bootstrap": 40,
    "decode": {"max_new_tokens": 4},
    "relay": {"max_new_tokens": 4},
}
__all__ = ["config"]


@pytest.fixture
def evaluated(config: Path) -> Path:
    """The same with an evaluation after it."""
    raw = yaml.safe_load(config.read_text())
    raw["stages"]["report"] = {"evaluate": EVALUATED}
    path = config.parent / "evaluated.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


class StoppedError(BaseException):
    """Stands for a kill."""


def close(one: Any, other: Any) -> bool:
    """Whether figures agree, in whatever they are; words have to be the same."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(close(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(close, one, other))
    if isinstance(one, float):
        return bool(one == pytest.approx(other, rel=1e-3, abs=1e-4))
    return bool(one == other)


@pytest.mark.slow
def test_the_numbers_stay_and_a_stopped_run_goes_on_anywhere(
    config: Path, evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = lines_of(evaluated, tmp_path / "plain", *FLAGS, "--mesh.data=2")
    whole = lines_of(evaluated, tmp_path / "whole", *FLAGS, *OWN)
    for one, other in zip(plain, whole, strict=True):
        assert one.get("loss", 0) == pytest.approx(other.get("loss", 0), abs=1e-5)
        assert close(one, other), (one, other)
    files = [(tmp_path / n / "predictions.jsonl").read_text() for n in ("plain", "whole")]
    said = [[json.loads(line) for line in text.splitlines()] for text in files]
    assert said[0] and close(*said)

    step = Display.step

    def stops(self: Display, done: int) -> None:
        step(self, done)
        if done == 3:
            raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(Display, "step", stops)
        with pytest.raises(StoppedError):
            lines_of(config, tmp_path / "same", *FLAGS, *OWN)
    shutil.copytree(tmp_path / "same", tmp_path / "other")
    own = [line for line in whole if line["stage"] == "fit"]
    assert lines_of(config, tmp_path / "same", *FLAGS, *OWN) == own  # bit for bit
    elsewhere = lines_of(config, tmp_path / "other", *FLAGS, "--mesh.data=2")
    assert close(elsewhere, own)


@pytest.mark.slow
def test_what_is_kept_is_not_asked_of_it_again(config: Path, tmp_path: Path) -> None:
    more = (
        "--stages.fit.train.steps=12",
        "--data.facts.size=12",
        "--stages.fit.train.eval_every=0",
    )
    kept = (*more, "--stages.fit.train.curriculum=[]", "--stages.fit.train.reuse.memory_gb=0.1")
    plain = lines_of(config, tmp_path / "plain", *kept)
    whole = lines_of(config, tmp_path / "whole", *kept, "--mesh.data=1", "--mesh.sender.tensor=2")
    assert [line["reused"] for line in whole][-3:] == [1.0] * 3
    for one, other in zip(plain, whole, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--mesh.sender.data=8",), "mesh.sender: 8 devices of its own asked for; there are 8"),
        (("--mesh.sender.data=0",), "mesh.sender.data: expected at least 1; got 0"),
        (
            ("--mesh.data=5", "--mesh.sender.data=4"),
            "mesh.data: 5 asks for 5 devices; there are 4 beside the sender's 4",
        ),
        (
            ("--mesh.data=2", "--mesh.sender.data=3"),
            "4 rows do not divide over 3 devices of the sender's own; use a multiple of 3",
        ),
        (
            ("--mesh.sender.data=1", "--bridge.source.hidden_states.lora.r=2"),
            "mesh.sender: bridge.source trains a LoRA of the sender",
        ),
        (
            ("--mesh.sender.data=1", "--bridge.source={bytes: {}}", "--sender=null"),
            "mesh.sender: no source reads a sender; leave it out",
        ),
    ],
)
def test_devices_that_cannot_be_are_one_line(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: Any, said: str
) -> None:
    assert main(["--doctor", "--config", str(config), f"--run_dir={tmp_path}", *flags]) == 2
    shown = capsys.readouterr()
    assert said in " ".join((shown.out + shown.err).split())


@pytest.mark.slow
def test_a_plan_names_both_groups(evaluated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--mesh.data=2", "--mesh.sender.tensor=2"]
    assert main(["--plan", "--config", str(evaluated), *flags]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "2 devices (cpu), data 2 x fsdp 1 x tensor 1; for the sender 2 more, data 1 x" in shown
    both, own = shown.split("stages.fit.train, the sender's own devices")
    assert "sender, up to its highest tap" not in both and "taps of the next two batches" in both
    assert "sender, up to its highest tap" in own and "whole sender (relay)" in own
