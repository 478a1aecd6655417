"""A bridge of several sources: trained, killed, resumed and evaluated; each view has its part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lw_jax.bridge.bridge import Bridge, fresh
from lw_jax.bridge.paths import components
from lw_jax.config import parse
from lw_jax.errors import UserError
from lw_jax.launch import main
from lw_jax.models.dims import ModelDims
from lw_jax.sources import bytes as raw_bytes
from lw_jax.text.collate import Collate, measure
from lw_jax.text.layout_config import LayoutConfig
from lw_jax.train import loop
from lw_jax.train.diagnostics import TIMES
from lw_jax.types import Taps
from tests.tiny.models import write_model
from tests.tiny.receiver import arch, groups, text_tokenizer

STEPS, KILLED = 20, 12
CONFIG = """
name: views
mesh: {{data: 1}}
sender: {{path: {home}/sender, dtype: float32}}
receivers:
  reader: {{path: {home}/reader, dtype: float32}}
data:
  facts: {{levels: [2], size: 40, eval_size: 8}}
bridge:
  latent_dim: 8
  sources:
    sender: {{hidden_states: {{layers: [1]}}}}
    bytes: {{bytes: {{width: 8, heads: 2, depth: 1}}}}
  compressor:
    window: {{size: 4, width: 16, heads: 2, depth: 1, views: [sender, bytes]}}
  reader: {{soft_tokens: {{}}}}
objectives:
  answer_ce: {{weight: 1.0}}
stages:
  fit:
    train: {{steps: 20, batch_size: 4, eval_every: 0, watch_every: 6, save_every: 6, log_every: 1}}
  report:
    evaluate: {{rows: 8, batch_size: 4, methods: [text, latent], bootstrap: 40}}
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("views")
    write_model(home / "sender", "llama")
    write_model(home / "reader", "mistral", vocab=290, width=24)
    path = home / "views.yaml"
    path.write_text(CONFIG.format(home=home))
    return path


def watched(run: Path) -> list[dict[str, Any]]:
    """Lines of looks, without what differs from one process to the next."""
    found = [json.loads(line) for line in (run / "diagnostics.jsonl").read_text().splitlines()]
    looks = [line for line in found if line["kind"] == "watch"]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in looks]


def lines(run: Path) -> list[dict[str, float]]:
    found = [json.loads(line) for line in (run / "diagnostics.jsonl").read_text().splitlines()]
    return [line for line in found if "loss" in line]


@pytest.mark.slow
def test_trained_killed_resumed_and_evaluated(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main(["--config", str(config), f"--run_dir={whole}"]) == 0

    class KilledError(Exception):
        pass

    with monkeypatch.context() as patched:
        saved = loop.Checkpoints.save

        def save(self: loop.Checkpoints, state: object, step: int, *rest: object) -> None:
            saved(self, state, step, *rest)  # type: ignore[arg-type]
            if step == KILLED:
                raise KilledError

        patched.setattr(loop.Checkpoints, "save", save)
        with pytest.raises(KilledError):
            main(["--config", str(config), f"--run_dir={killed}"])
    assert main(["--config", str(config), f"--run_dir={killed}"]) == 0

    losses = {line["step"]: line["loss"] for line in lines(whole)}
    assert len(losses) == STEPS
    assert {line["step"]: line["loss"] for line in lines(killed)} == losses
    assert losses[STEPS] < losses[1]
    for line in lines(whole):  # the sender's states have no parameters of their own
        assert line["grad_norm/sources/bytes"] > 0
    looks = watched(whole)
    assert looks == watched(killed)
    assert [look["step"] for look in looks] == [6, 12, 18]
    for look in looks:
        assert look["grad_norm/objective/answer_ce"] > 0
        assert 0 <= look["reader/first_top1"] <= look["reader/first_top5"] <= 1
        assert look["reader/first_entropy"] > 0 and look["reader/first_tokens"]
    for line in lines(whole):
        least, most = (line[f"reader/token_rms/{end}"] for end in ("least", "most"))
        assert 0 < least <= most
        assert line["reader/scale"] == pytest.approx(1, abs=0.1)
    history = (tmp_path / "metrics_history.jsonl").read_text().splitlines()
    said = [json.loads(line) for line in history]
    assert [(e["run"], e["stage"], e["kind"]) for e in said] == [
        (run, stage, kind)
        for run in ("whole", "killed")
        for stage, kind in (("fit", "train"), ("report", "evaluate"))
    ]
    assert all(e["argv"][:2] == ["--config", str(config)] for e in said)
    assert said[0]["overrides"] == {"run_dir": str(whole)}
    assert (said[0]["step"], said[0]["loss"]) == (STEPS, losses[STEPS])
    metrics = [json.loads((run / "metrics.json").read_text()) for run in (whole, killed)]
    assert metrics[0]["parameters"]["digest"] == metrics[1]["parameters"]["digest"]
    assert "sources/bytes" in metrics[0]["parameters"]["components"]
    figures = [found["receivers"]["reader"]["latent"] for found in metrics]
    assert figures[0]["nll"] == figures[1]["nll"]


def test_every_view_reaches_the_latent(config: Path) -> None:
    read = parse.read(config)
    assert read.bridge is not None
    dims = read.bridge.dims(arch("llama"), {"reader": ModelDims(24, 2, 2, 12)})
    bridge = Bridge(read.bridge, dims)
    params = fresh(bridge, jax.random.key(0))
    assert ("sources", "bytes") in dict(components(params))
    rng = np.random.default_rng(0)
    taps = {}
    for name in read.bridge.views:
        dims, rows, tokens = bridge.dims.of_view(name), 2, 9
        states = rng.normal(size=(dims.taps, rows, tokens, dims.source_width))
        ids = rng.integers(0, 200, (rows, tokens))
        taps[name] = Taps(
            states.astype(np.float32), np.ones((rows, tokens), bool), ids.astype(np.int32)
        )

    def total(states: jax.Array, params: object) -> jax.Array:
        seen = taps | {"sender": taps["sender"].replace(states=states)}  # type: ignore[attr-defined]
        return jnp.sum(jnp.square(bridge.encode(params, seen).slots))

    gradients = jax.jit(jax.grad(total, argnums=(0, 1)))
    by_sender, by_params = jax.device_get(gradients(taps["sender"].states, params))
    assert np.abs(by_sender).max() > 0
    assert np.abs(by_params["sources"]["bytes"]["byte"]["embedding"]).max() > 0
    latent = jax.eval_shape(bridge.encode, params, taps)
    chex.assert_shape(latent.slots, (2, 3, 8))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("bridge.compressor.window.views=[]", "bridge.sources: compressor.window reads one view"),
        ("bridge.compressor.window.views=[sender, other]", "it reads the view 'other'; there are"),
        ("bridge.source.bytes={}", "bridge.sources: source is set as well"),
        ("bridge.sources.sender.hidden_states.pca.components=2", "measures `source` alone"),
    ],
)
def test_views_that_do_not_fit(config: Path, change: str, message: str) -> None:
    key, _, value = change.partition("=")
    with pytest.raises(UserError, match=message):
        parse.read(config, [(key, value)])


def test_a_batch_has_every_view() -> None:
    layout, rows = LayoutConfig(), groups(3)
    sources = {
        "source/sender": text_tokenizer("llama"),
        "source/bytes": raw_bytes.Config().tokenizer(None),
    }
    readers = {"r": text_tokenizer()}
    batch = Collate(layout, sources, readers, measure(layout, sources, readers, rows))(rows)
    text = rows[0][0].context
    length = int(batch["source/bytes/lengths"][0])
    skip = int(batch["source/bytes/skip"][0])
    assert bytes(batch["source/bytes/ids"][0, skip:length].tolist()).decode().strip() == text
    assert batch["source/sender/ids"].shape[0] == 3
    assert batch["valid"].all()
