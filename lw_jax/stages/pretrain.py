"""The stage that trains one of the small models that ship, tests it, and writes it to disk."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
from tokenizers import Tokenizer as Backend

from lw_jax.config.parse import to_dict
from lw_jax.data import gsm8k
from lw_jax.data.example import Remark
from lw_jax.errors import UserError
from lw_jax.models.arch import Arch, Rope
from lw_jax.models.config import ModelConfig
from lw_jax.models.frozen import FrozenDecoder
from lw_jax.models.params import init
from lw_jax.models.save import save_pretrained
from lw_jax.models.spec import open_model
from lw_jax.pretrain.batches import Texts, left_out
from lw_jax.pretrain.config import ArchConfig, PretrainConfig
from lw_jax.pretrain.final_test import final_test
from lw_jax.pretrain.mixture import MixtureRows, Shares, mixture
from lw_jax.pretrain.model_card import minutes, model_card
from lw_jax.pretrain.step import make_step
from lw_jax.pretrain.tokenizer import save_tokenizer, special_ids, train_bpe
from lw_jax.runs.directory import Run
from lw_jax.runs.rows import report
from lw_jax.text.fit import MANY
from lw_jax.text.tokenizer import Tokenizer
from lw_jax.train.loop import Job, bad_steps, fit
from lw_jax.train.optimiser import make_optimiser
from lw_jax.train.state import TrainState, new_state
from lw_jax.utils.files import damaged, write_json, write_text

MEASURED_TEXTS = 4000
"""Texts on which the share that is left out for its length is measured."""
MOST_LEFT_OUT = 0.4
"""A larger share means that the limit is wrong for the tokenizer."""


def run(run: Run, name: str, cfg: PretrainConfig) -> None:
    """Train the tokenizer and the model, write it to `cfg.out`, test what was written.

    Raises:
        UserError: bad data, texts too long, or a checkpoint of another config.
    """
    seed = run.config.seed
    shares = Shares(cfg.facts, cfg.facts_copy, cfg.gsm8k_copy, cfg.gsm8k_solve)
    rows = mixture(
        shares,
        "train",
        seed,
        problems=problems(cfg),
        questions=cfg.questions,
        shared=cfg.shared,
    )
    hf_tokenizer = _tokenizer(run.run_dir / f"{name}.tokenizer.json", cfg, rows)
    arch = make_arch(cfg, hf_tokenizer)
    tokenizer = Tokenizer(name, hf_tokenizer, arch.bos_id, arch.eos_ids[0])
    texts = Texts(rows, tokenizer, cfg.batch_size, cfg.max_tokens)
    skipped = left_out(texts, MEASURED_TEXTS)
    if skipped > MOST_LEFT_OUT:
        raise UserError(
            f"stages.{name}.pretrain.max_tokens: {skipped:.0%} of the texts have more than "
            f"{cfg.max_tokens} tokens; raise it"
        )
    remarks = list(rows.remarks)
    if skipped:
        words = f"{skipped:.1%} of the texts have more than max_tokens={cfg.max_tokens} tokens"
        level: Literal["ok", "warning"] = "warning" if skipped >= MANY else "ok"
        remarks.append(Remark(level, f"{words}, and are left out"))
    report(run.console, f"stages.{name}.pretrain", remarks)
    state = _train(run, name, cfg, arch, texts)

    out = Path(cfg.out).expanduser()
    save_pretrained(out, arch, state.params)
    save_tokenizer(hf_tokenizer, arch.family, out, arch.max_positions)
    spec = open_model(name, ModelConfig(str(out), dtype=compute_dtype()))
    model = spec.load(run.mesh)
    assert isinstance(model, FrozenDecoder)  # it was written as one
    figures = {
        "parameters": sum(x.size for x in jax.tree.leaves(state.params)),
        "steps": cfg.steps,
        "bad_steps": bad_steps(run.run_dir, name),
        "minutes": minutes(run.run_dir / "diagnostics.jsonl", name),
        "left_out": skipped,
        **final_test(model, spec.tokenizer, cfg, problems(cfg), seed),
    }
    write_json(run.out_dir / "metrics.json", {"pretrain": {name: figures}})
    write_text(out / "README.md", model_card(out.name, cfg, arch, figures, run.command))
    run.console.print(f"{out}:", json.dumps(figures, indent=2), highlight=False)


def problems(cfg: PretrainConfig) -> gsm8k.Config | None:
    """GSM8K to train on and to read back; None where the config names none."""
    if cfg.gsm8k_train is None:
        return None
    return gsm8k.Config(train=cfg.gsm8k_train, eval=cfg.gsm8k_eval)


def make_arch(cfg: PretrainConfig, tokenizer: Backend) -> Arch:
    """The decoder's arch from the config and the ids of its tokenizer."""
    shape: ArchConfig = cfg.arch
    ids = special_ids(tokenizer, shape.family)
    assert ids["eos_token_id"] is not None
    return Arch(
        family=shape.family,
        vocab_size=cfg.tokenizer.vocab_size,
        width=shape.width,
        layers=shape.layers,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        mlp_width=shape.mlp_width,
        norm_eps=1e-5,
        rope=Rope(shape.rope_theta),
        window=shape.window,
        qkv_bias=shape.family == "qwen2",
        tied=shape.tied,
        max_positions=shape.max_positions,
        bos_id=ids["bos_token_id"],
        eos_ids=(ids["eos_token_id"],),
    )


def compute_dtype() -> Literal["float32", "bfloat16"]:
    """bfloat16 where the device multiplies it faster, else float32."""
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def _train(run: Run, name: str, cfg: PretrainConfig, arch: Arch, texts: Texts) -> TrainState:
    keys = jax.random.split(jax.random.key(run.config.seed))
    params = init(arch, keys[0])
    optimiser = make_optimiser(cfg.optimiser, params, cfg.steps)
    step = make_step(
        arch, optimiser, cfg.rest_weight, cfg.written_weight, jnp.dtype(compute_dtype())
    )
    ids = hashlib.sha256(texts.tokenizer.backend.to_str().encode()).hexdigest()[:32]
    return fit(
        Job(
            name=name,
            directory=run.run_dir,
            steps=cfg.steps,
            state=new_state(params, optimiser, keys[1]),
            step_for=lambda _: step,
            batches=lambda start, stop: texts.batches(start, stop, cfg.workers),
            identity={
                "stages": {name: {"pretrain": to_dict(cfg)}},
                "seed": run.config.seed,
                "fingerprints": {"tokenizer": ids},
            },
            log_every=cfg.log_every,
            save_every=cfg.save_every,
        )
    )


def _tokenizer(path: Path, cfg: PretrainConfig, rows: MixtureRows) -> Backend:
    """The run's tokenizer: trained once, then read."""
    if not path.exists():
        made = train_bpe(
            (
                f"{task.example.context} {task.example.question} {task.example.answers[0]}"
                for i in range(cfg.tokenizer.samples)
                for task in rows[i][:1]
            ),
            cfg.tokenizer.vocab_size,
            family=cfg.arch.family,
            single_digits=cfg.tokenizer.single_digits,
        )
        new = path.with_suffix(".tmp")
        made.save(str(new))
        os.replace(new, path)
    try:
        return Backend.from_str(path.read_bytes().decode("utf-8"))
    except OSError:
        raise
    except Exception as error:  # the library has no class of its own for this
        raise damaged(path, error) from None
