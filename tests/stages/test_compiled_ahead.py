"""A train stage begins when its first step is compiled; all else is compiled behind it, once."""

import json
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lw_jax.launch import main
from lw_jax.train.diagnostics import TIMES
from lw_jax.train.progress import Display
from lw_jax.utils.compile import Behind
from tests.tiny.compilations import compilations
from tests.tiny.models import write_model

CONFIG = """
name: tiny
mesh: {{data: 1}}
sender: {{path: {home}/sender, dtype: float32}}
receivers:
  reader: {{path: {home}/reader, dtype: float32}}
data:
  facts: {{levels: [1, 2], size: 40, eval_size: 8}}
bridge:
  latent_dim: 8
  source: {{hidden_states: {{layers: [1]}}}}
  compressor: {{perceiver: {{slots: 12, ratios: [4, 8], width: 16, heads: 2, depth: 1}}}}
  reader: {{soft_tokens: {{}}}}
objectives:
  answer_ce: {{weight: 1.0}}
  batch_diversity: {{weight: 0.1, schedule: {{start: 3}}}}
stages:
  fit:
    train:
      steps: 6
      batch_size: 4
      log_every: 1
      eval_every: 3
      eval_rows: 4
      curriculum: [{{share: 0.34, level: 1, ratio: 4}}, {{share: 0.66, level: 2}}]
"""
PROGRAMS = {"quick_scores", "inspect", "quick_answers"}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("models")
    write_model(home / "sender", "llama")
    write_model(home / "reader", "mistral", vocab=290, width=24)
    (home / "tiny.yaml").write_text(CONFIG.format(home=home))
    return home / "tiny.yaml"


def lines_of(config: Path, run: Path, *flags: str) -> list[dict[str, Any]]:
    assert main(["--config", str(config), f"--run_dir={run}", *flags]) == 0
    lines = map(json.loads, (run / "diagnostics.jsonl").read_text().splitlines())
    return [{key: line[key] for key in line if key not in TIMES} for line in lines]


class Gate:
    """Lets nothing be compiled behind the first step before that was taken."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        stepped, step = threading.Event(), Display.step

        def first_step(self: Display, done: int) -> None:
            stepped.set()
            step(self, done)

        class Later(ThreadPoolExecutor):
            def submit(self, make: Any, /, *given: Any, **more: Any) -> Future[Any]:
                def late() -> Any:
                    assert stepped.wait(120)
                    return make(*given, **more)

                return super().submit(late)

        patch.setattr(Display, "step", first_step)
        patch.setattr("lw_jax.utils.compile.ThreadPoolExecutor", Later)


@pytest.mark.slow
def test_the_first_step_does_not_wait_for_the_others_programs(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Gate(monkeypatch)
    with compilations() as compiled:
        lines_of(config, tmp_path / "run")
    assert compiled.count("train_step") == 3  # two shapes, one of them before and after a start
    assert compiled.count("objective_gradients") == 2
    assert all(compiled.count(name) == 1 for name in PROGRAMS)  # none of them twice


@pytest.mark.slow
def test_losses_are_those_of_programs_that_were_all_compiled_first(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        Gate(patch)
        found = lines_of(config, tmp_path / "behind")
    start = Behind.start

    def all_at_once(self: Behind) -> None:
        start(self)
        self.wait(*self._running)

    monkeypatch.setattr(Behind, "start", all_at_once)
    assert lines_of(config, tmp_path / "before") == found  # bit for bit


@pytest.mark.slow
def test_buckets_take_fewer_places_and_as_many_rows(config: Path, tmp_path: Path) -> None:
    flags = (
        *("--data.facts.levels=[1,6]", "--stages.fit.train.steps=8"),
        *("--stages.fit.train.curriculum=[]", "--stages.fit.train.eval_every=0"),
    )
    with compilations() as compiled:
        found = lines_of(config, tmp_path / "buckets", *flags, "--stages.fit.train.buckets=2")
    assert compiled.count("train_step") == 4  # two lengths, before and after an objective begins
    plain = lines_of(config, tmp_path / "plain", *flags)
    places = [[line["tokens_padded"] for line in lines] for lines in (found, plain)]
    assert len(set(places[0])) == 2 and len(set(places[1])) == 1
    assert max(places[0]) == places[1][0]
    shares = [
        sum(x["tokens"] for x in lines) / sum(x["tokens_padded"] for x in lines)
        for lines in (found, plain)
    ]
    assert shares[0] > 1.2 * shares[1]
