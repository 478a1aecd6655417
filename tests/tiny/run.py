"""A run directory with two random models on disk and a bridge that was never trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import optax
from rich.console import Console

from lw_jax.config.parse import to_dict, to_yaml
from lw_jax.config.schema import Config
from lw_jax.data.facts import FactsRows
from lw_jax.evaluate.methods import methods
from lw_jax.mesh import make_mesh
from lw_jax.models.fingerprint import FORMAT
from lw_jax.models.save import save_pretrained
from lw_jax.pretrain.tokenizer import save_tokenizer
from lw_jax.runs.directory import CONFIG, Run, run_directory
from lw_jax.runs.session import open_pipeline
from lw_jax.train.checkpoint import Checkpoints
from lw_jax.train.loop import checkpoint_root
from lw_jax.train.plan import init_heads
from lw_jax.train.state import new_state
from tests.tiny.evaluation import RECEIVER, fresh, make_party

STEP = 7
METHODS = tuple(n for n in methods() if n != "deranged_near")  # the rows are of no articles


def make_models(home: Path) -> dict[str, Path]:
    """A sender and a receiver as Hugging Face directories."""
    facts = FactsRows("eval", 0, 2, 60)
    texts = [facts[i][0].context for i in range(60)]
    found = {}
    for i, family in enumerate(("llama", "mistral")):
        model, tokenizer = make_party(family, 300 - 10 * i, i, texts)
        found[family] = home / family
        save_pretrained(found[family], model.arch, model.params)
        save_tokenizer(tokenizer.backend, family, found[family], 512)
    return found


def raw_config(models: dict[str, Path], run_dir: Path, **evaluate: Any) -> dict[str, Any]:
    """The config of a run with one train and one evaluate stage."""
    return {
        "name": "tiny",
        "run_dir": str(run_dir),
        "mesh": {"data": 1},
        "sender": {"path": str(models["llama"]), "dtype": "float32"},
        "receivers": {RECEIVER: {"path": str(models["mistral"]), "dtype": "float32"}},
        "data": {"facts": {"levels": [2], "size": 64, "eval_size": 40}},
        "bridge": {
            "latent_dim": 12,
            "source": {"hidden_states": {"layers": [1]}},
            "compressor": {"perceiver": {"slots": 6, "width": 16, "heads": 2, "depth": 1}},
            "reader": {"soft_tokens": {}},
        },
        "objectives": {"answer_ce": {}},
        "stages": {
            "wire": {"train": {"steps": STEP, "batch_size": 4}},
            "test": {
                "evaluate": {
                    "methods": list(METHODS),
                    "relay": {"max_new_tokens": 8},
                    "rows": 22,
                    "batch_size": 8,
                    "bootstrap": 50,
                    "decode": {"max_new_tokens": 6},
                }
                | evaluate
            },
        },
    }


def make_run(config: Config, console: Console) -> Run:
    """A run directory with the checkpoint of its train stage."""
    path = run_directory(config)
    path.mkdir(parents=True)
    (path / CONFIG).write_text(to_yaml(config))
    run = Run(config, path, make_mesh(config.mesh), console, path)
    save_bridge(run)
    return run


def save_bridge(run: Run, seed: int = 3, flatten: Callable[[Any], Any] | None = None) -> None:
    """The checkpoint of the train stage: random parameters, or what `flatten` makes of them."""
    pipeline = open_pipeline(run.config, run.mesh)
    bridge = fresh(pipeline.bridge, seed)
    params = {
        "bridge": bridge if flatten is None else flatten(bridge),
        "heads": init_heads(run.config.objectives, pipeline.bridge.dims, jax.random.key(0)),
    }
    state = new_state(params, optax.identity(), jax.random.key(1))
    identity = {
        "config": to_dict(run.config),
        "format": FORMAT,
        "fingerprints": pipeline.fingerprints,
        "weights": pipeline.weights,
    }
    root = checkpoint_root(run.run_dir, "wire")
    Checkpoints(root, 2, identity).save(state, STEP, {})
