"""What a train stage runs is compiled before its first step, every phase and evaluation of it."""

from pathlib import Path
from typing import Any

import pytest

from lw_jax.launch import main
from lw_jax.train.progress import Display
from tests.tiny.compilations import compilations
from tests.tiny.models import write_model

CONFIG = """
name: tiny
mesh: {{data: 1}}
sender: {{path: {home}/sender, dtype: float32}}
receivers:
  reader: {{path: {home}/reader, dtype: float32}}
data:
  facts: {{levels: [2], size: 40, eval_size: 8}}
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
      steps: 5
      batch_size: 4
      eval_every: 2
      eval_rows: 4
      curriculum: [{{share: 0.4, ratio: 4}}, {{share: 0.6}}]
"""
PROGRAMS = {"quick_scores", "inspect", "quick_answers"}


def test_no_program_is_compiled_between_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(tmp_path / "sender", "llama")
    write_model(tmp_path / "reader", "mistral", vocab=290, width=24)
    (tmp_path / "tiny.yaml").write_text(CONFIG.format(home=tmp_path))
    before: list[str] = []
    enter = Display.__enter__

    def first_step(self: Display) -> Any:
        before.extend(compiled)
        return enter(self)

    monkeypatch.setattr(Display, "__enter__", first_step)
    with compilations() as compiled:
        assert main(["--config", str(tmp_path / "tiny.yaml"), f"--run_dir={tmp_path / 'run'}"]) == 0
    assert before.count("train_step") == 3  # one ratio; all, before and after the objective begins
    assert before.count("objective_gradients") == 2
    assert set(before) >= PROGRAMS
    after = compiled[len(before) :]
    assert not {"train_step", "objective_gradients", *PROGRAMS} & set(after)
