"""Every small file of a finished run, damaged in every way: one line, and the way out works."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from lw_jax.launch import main
from tests.tiny.models import write_model

CONFIG = """
name: tiny
mesh: {{data: 1}}
sender: {{path: {home}/sender, dtype: float32}}
receivers:
  reader: {{path: {home}/reader, dtype: float32}}
data:
  facts: {{levels: [1], size: 40, eval_size: 8}}
bridge:
  latent_dim: 8
  source: {{hidden_states: {{layers: [1]}}}}
  compressor: {{perceiver: {{slots: 4, width: 16, heads: 2, depth: 1}}}}
  reader: {{soft_tokens: {{}}}}
objectives:
  answer_ce: {{weight: 1.0}}
stages:
  measure: {{calibrate: {{rows: 8, batch_size: 8}}}}
  fit: {{train: {{steps: 4, batch_size: 4, save_every: 2, eval_every: 2, eval_rows: 2}}}}
  report: {{evaluate: {{rows: 8, batch_size: 8, methods: [latent], bootstrap: 40}}}}
"""
FILES = (
    *("config.yaml", "finished.json", "receivers.json", "mean_latent.npz", "diagnostics.jsonl"),
    *("calibration/measure.npz", "metrics.json", "predictions.jsonl"),
    *("checkpoints/fit/4/files.json", "checkpoints/fit/4/_CHECKPOINT_METADATA"),
)


def damages(content: bytes) -> dict[str, bytes]:
    """A file's content, damaged."""
    draw = random.Random(len(content))
    flipped = bytearray(content)
    flipped[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    return {
        "cut": content[: len(content) // 2],
        "empty": b"",
        "list": b"[]",
        "null": b"null",
        "flipped": bytes(flipped),
        "garbage": draw.randbytes(200),
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("damaged")
    write_model(home / "sender", "llama")
    write_model(home / "reader", "mistral", vocab=290, width=24)
    (home / "tiny.yaml").write_text(CONFIG.format(home=home))
    assert main(["--config", str(home / "tiny.yaml"), f"--run_dir={home / 'run'}"]) == 0
    assert all((home / "run" / name).is_file() for name in FILES)
    return home


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["cut", "empty", "list", "null", "flipped", "garbage"])
@pytest.mark.parametrize("way", ["again", "evaluate", "report"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_one_line_and_its_advice_leads_out(
    name: str,
    way: str,
    damage: str,
    made: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`again`: the same command; `evaluate`: another evaluation; `report`: the same command where
    the last stage is still to be done."""
    home = tmp_path / "run"
    command = ["--config", str(made / "tiny.yaml"), f"--run_dir={home}"]
    doing = ["--evaluate", str(home)] if way == "evaluate" else command
    shutil.copytree(made / "run", home)
    if way == "report":
        (home / "finished.json").write_text('{"measure": 1, "fit": 1}')
    (home / name).write_bytes(damages((made / "run" / name).read_bytes())[damage])
    capsys.readouterr()
    code = main(doing)
    said = capsys.readouterr().err.splitlines(keepends=True)
    err = "".join(line for line in said if not line.startswith("warning: "))
    assert "Traceback" not in err
    if code == 0:
        return
    assert code == 2, err
    assert err.startswith("error: ") and err.count("\n") == 1, err
    assert "delete" in err or "undo that" in err, err
    if name.startswith("checkpoints"):
        assert str(home / "checkpoints/fit/4") in err
        shutil.rmtree(home / "checkpoints/fit/4")
    else:
        assert str(home / name) in err, err
        (home / name).unlink()
    assert main(command) == 0, capsys.readouterr().err
    assert main(doing) == 0, capsys.readouterr().err
