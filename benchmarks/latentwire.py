"""The runs of docs/results/latentwire.md, several at once on one machine.

    python -m benchmarks.latentwire [--data FOLDER] [--encoder DIR] [--at_once 2] [--seconds 3600]
        [--only PART ...] [--recorded docs/records]

Each feature of `configs/latentwire` at its own 200 steps, each encoder with each reader, the
settings that failed the earlier system, and points of its sweeps, all on generated facts. FOLDER,
with `train.json` and `squad_xquad_en_dev.json` of SQuAD's format, adds the runs on real text.
DIR holds all-MiniLM-L6-v2. A finished run is left as it is; `--list` prints the commands and runs
none; the rest is as in `benchmarks/versions.py`, whose runs are the versions of Telepathy.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.versions import Job, arguments, started

CONFIGS = Path("configs/latentwire")
ROWS = "evaluate.rows=300"
LOSSES = CONFIGS / "smokes/losses.yaml"
WITH_ENCODER = ("st_query", "simple")
"""Smokes that need the sentence encoder."""
REPLAYED = "[rms_0.5, rms_0.6, rms_0.7, rms_0.8, rms_0.9, rms, rms_1.2, rms_1.5, batch, "
REPLAYED += "nearest_4, offset_0.5, codebook_0.05]"
ADAPTERS = ["--bridge.reader.coprocessor=null", "--bridge.reader.latent_adapters={mlp_ratio: 0}"]
FAILED = {
    "wire": [],
    "rms_33": ["--bridge.reader.soft_tokens.conditioning=layer_norm"],
    "tanh": ["--bridge.reader.soft_tokens.conditioning=tanh"],
    "mse_anchor": ["--objectives.embedding_anchor={weight: 1.0, distance: mse, to: answer}"],
    "k_token": ["--objectives.k_token_ce={weight: 0.5, tokens: 4}"],
}
"""Settings that failed the earlier system, one change each to `wire`."""
TAPS = "--bridge.source={hidden_states: {layers: [0, 1, 2, 3, 4], mix: concat}}"
POOLED = "--bridge.compressor={pool_expand: {slots: 16, pools: 1, width: 128, heads: 4}}"
NO_ADAPTERS = "--bridge.reader.latent_adapters=null"
READERS = {
    "adapters": [],
    "coprocessor": [NO_ADAPTERS, "--bridge.reader.coprocessor={}"],
    "soft": [NO_ADAPTERS],
    "prefix": [NO_ADAPTERS, "--bridge.reader.deep_prefix={length: 32}"],
    "lora": [NO_ADAPTERS, "--bridge.reader.lora={r: 8, alpha: 16.0, layers: 4}"],
}
LONGER = [
    "--stages.report.evaluate.methods=[text, latent]",
    "--stages.fit.train.steps=400",
    "--stages.fit.train.batch_size=16",
    "--stages.fit.train.eval_every=200",
    "--stages.fit.train.log_every=50",
    "--stages.fit.train.save_every=400",
]
"""An encoder with a reader has twice the steps of a smoke."""


def sources(encoder: str) -> dict[str, list[str]]:
    """What reads the text: flags of each encoder."""
    sentences = f"--sender={{path: {encoder}, dtype: float32}}"
    return {
        "bytes": [],
        "hidden": ["--sender={path: zoo/tiny-llama, dtype: float32}", TAPS],
        "st_query": [sentences, "--bridge.source={sentence_encoder: {pool: none}}"],
        "simple": [sentences, "--bridge.source={sentence_encoder: {pool: mean}}", POOLED],
        "embeddings": [
            "--sender={path: zoo/tiny-mistral, dtype: float32}",
            "--bridge.source={embeddings: {}}",
        ],
    }


def job(name: str, config: Path, *flags: str, stages: tuple[str, ...] = ("report",)) -> Job:
    """A run of a config, its evaluations with 300 rows."""
    rows = [f"--stages.{stage}.{ROWS}" for stage in stages]
    own = f"latentwire_{name}"
    return Job(own, ("--config", str(config), *rows, *flags, f"--name={own}"), 1)


def jobs(encoder: str, data: Path | None) -> list[Job]:
    """All runs, the most telling first."""
    path = f"--sender.path={encoder}"
    found = []
    for file in sorted((CONFIGS / "smokes").glob("*.yaml")):
        own = [path] if file.stem in WITH_ENCODER else []
        if file.stem == "embedding_baselines":
            own += [f"--stages.report.evaluate.replay={REPLAYED}"]
        more = ("nearest", "batch") if file.stem == "transform" else ()
        found.append(job(file.stem, file, *own, stages=("report", *more)))
    pairs = ("from_mistral", "from_qwen")
    found.append(job("interlingua", CONFIGS / "interlingua.yaml", path, stages=pairs))
    for name in ("phase_1b", "phase_1b_annealed"):
        found.append(job(name, CONFIGS / f"{name}.yaml"))
    for file in sorted((CONFIGS / "suite").glob("*.yaml")):
        found.append(job(file.stem, file))
    facts = ("--data.squad=null", "--data.facts.levels=[1]", "--data.facts.questions=4")
    decode = [f"--stages.c.evaluate.decode.{k}=0" for k in ("min_new_tokens", "eos_ban_steps")]
    found.append(job("smoke_facts", CONFIGS / "smoke.yaml", *facts, *decode, stages=("c",)))
    for weight in (3.0, 6.0, 12.0, 20.0):
        flag = f"--objectives.first_token_ce.weight={weight}"
        found.append(job(f"first_token_{weight:g}", LOSSES, flag))
    found.append(job("latent_keep_1", LOSSES, "--stages.fit.train.latent_keep.end=1.0"))
    wire = CONFIGS / "smokes/coprocessor.yaml"
    found += [job(f"failures_{n}", wire, *ADAPTERS, *flags) for n, flags in FAILED.items()]
    adapters = CONFIGS / "smokes/latent_adapters.yaml"
    for reader, reads in READERS.items():
        for source, flags in sources(encoder).items():
            found.append(job(f"{source}_x_{reader}", adapters, *LONGER, *flags, *reads))
    low = ["--receivers.mistral.quant=int8"]
    low += ["--sender={path: zoo/tiny-llama, dtype: float32, quant: nf4}", TAPS]
    found.append(job("quant", wire, *low))
    of = "--stages.phase_1b.train.objectives"
    for text in ("0.0", "0.001", "0.01", "0.1", "0.5"):
        flags = [f"{of}.kd=null", f"{of}.k_token_ce.weight={text}"]
        name = f"k_token_{text.replace('.', '_')}"
        found.append(job(name, CONFIGS / "phase_1b.yaml", *flags))
    for text, ramp in (("0.0", 120), ("0.1", 0)):
        flags = [f"{of}.kd.weight={text}", f"{of}.kd.schedule.ramp={ramp}"]
        name = f"annealing_{text.replace('.', '_')}_{ramp}"
        found.append(job(name, CONFIGS / "phase_1b_annealed.yaml", *flags))
    return found + ([] if data is None else on_text(data))


def on_text(data: Path) -> list[Job]:
    """Smoke size and today's default on SQuAD's form, and the final plan's first 20 steps."""
    squad = [f"--data.squad.train={data / 'train.json'}"]
    squad += [f"--data.squad.eval={data / 'squad_xquad_en_dev.json'}"]
    train = "--stages.plan.train"
    plan = [f"{train}.steps=20", f"{train}.log_every=5", f"{train}.eval_every=0"]
    plan += [f"{train}.watch_every=10", f"{train}.text_batches.steps=10"]
    plan += [f"{train}.latent_keep.ramp=20", "--stages.c.evaluate.rows=64"]
    plan += ["--stages.c.evaluate.methods=[text, latent]", "--stages.c.evaluate.wire=[]"]
    short = ["--stages.fit.train.steps=1000", "--stages.fit.train.eval_every=500"]
    return [
        job("smoke", CONFIGS / "smoke.yaml", *squad, stages=("c",)),
        job("final_plan", CONFIGS / "final_plan.yaml", *squad, *plan, stages=()),
        job("default", CONFIGS / "default.yaml", *squad, *short),
    ]


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with SQuAD's train and XQuAD files")
    parser.add_argument("--encoder", default="models/all-MiniLM-L6-v2", help="all-MiniLM-L6-v2")
    parser.add_argument("--at_once", type=int, default=2)
    asked = arguments(parser)
    return started(jobs(asked.encoder, asked.data), asked)


if __name__ == "__main__":
    sys.exit(main())
