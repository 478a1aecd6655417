"""The runs of docs/results/latentwire.md, several at once on one machine.

    python -m benchmarks.latentwire [--data FOLDER] [--models FOLDER] [--encoder DIR] [--at_once 2]
        [--seconds 3600] [--only PART ...] [--recorded docs/records]

Each feature of `configs/latentwire` at its own 200 steps, each encoder with each reader, the
settings that failed the earlier system, and points of its sweeps, all on generated facts. FOLDER,
with `train.json` and `squad_xquad_en_dev.json` of SQuAD's format, adds the runs on real text, and
with `articles.json`, `prose.jsonl` and a folder of models those between two real models
(`benchmarks/real_cells.py`). DIR holds all-MiniLM-L6-v2. A finished run is left as it is; `--list`
prints the commands and runs none; the rest is as in `benchmarks/versions.py`, whose runs are the
versions of Telepathy.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks import real_cells
from benchmarks.versions import Job, arguments, started

CONFIGS = Path("configs/latentwire")
ROWS = "evaluate.rows=300"
LOSSES = CONFIGS / "smokes/losses.yaml"
WITH_ENCODER = ("st_query", "simple")
"""Smokes that need the sentence encoder."""
MORE_STAGES = {"transform": ("nearest", "batch"), "contrast": ("drawn",)}
"""Evaluations of a smoke before its report."""
BOTH_ANSWER = Path("configs/overlays/smollm_and_qwen.yaml")
BETWEEN_MODELS = "chat"
"""The smoke that needs models with a chat template, which none of those that ship has."""
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


def swept(name: str, *flags: str) -> Job:
    """The runs of a sweep, in one process: their directories are inside its own."""
    own = f"latentwire_{name}"
    return Job(own, (*flags, f"--name={own}"), 1)


def jobs(encoder: str, data: Path | None, models: Path | None = None) -> list[Job]:
    """All runs, the most telling first."""
    path = f"--sender.path={encoder}"
    found = []
    for file in sorted((CONFIGS / "smokes").glob("*.yaml")):
        if file.stem == BETWEEN_MODELS:
            continue
        own = [path] if file.stem in WITH_ENCODER else []
        if file.stem == "embedding_baselines":
            own += [f"--stages.report.evaluate.replay={REPLAYED}"]
        more = MORE_STAGES.get(file.stem, ())
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
    of, rows = "stages.phase_1b.train.objectives", f"--stages.report.{ROWS}"
    for base, sweep, *points in (
        ("phase_1b", "phase_1b", f"{of}.k_token_ce.weight=0.0,0.1,0.5"),
        ("phase_1b_annealed", "annealing", f"{of}.kd.weight=0.0,0.1", f"{of}.kd.schedule.ramp=120"),
    ):
        files = ("--config", f"{CONFIGS}/{base}.yaml", "--config", f"{CONFIGS}/sweeps/{sweep}.yaml")
        found.append(swept(f"sweep_{sweep}", *files, rows, *(f"--sweep={p}" for p in points)))
    refiner = ("--config", f"{CONFIGS}/smokes/refiner.yaml", f"--stages.report.{ROWS}")
    slots = "--sweep=bridge.compressor.pooled_queries.slots=16,32"
    found.append(swept("sweep_slots", *refiner, slots))
    if data is not None:
        found += on_text(data)
    if data is not None and models is not None:
        found += between_models(models, data, encoder)
    return found


def between_models(models: Path, data: Path, encoder: str) -> list[Job]:
    """Chat templates; what reads and how it is given, on two real models; tuned receivers; settings
    that failed; smoke size and today's default with both as receivers."""
    names = {name: name for name in (*real_cells.CELLS, *real_cells.TUNED)}
    names |= {name: f"failures_{name}" for name in real_cells.FAILED}
    sender, receiver = (models / file for file in real_cells.MODELS)
    chat = (f"--sender.path={sender}", f"--receivers.qwen.path={receiver}")
    found = [job(BETWEEN_MODELS, CONFIGS / f"smokes/{BETWEEN_MODELS}.yaml", *chat)]
    for name, said in names.items():
        own = f"latentwire_real_{said}"
        flags = real_cells.flags_of(name, models, data, encoder)
        found.append(Job(own, (*flags, f"--name={own}"), 2))
    both = ["--config", str(BOTH_ANSWER), "--mesh.data=1"]
    both += [f"--receivers.smollm.path={sender}", f"--receivers.qwen.path={receiver}"]
    reads = ["--sender.unroll=never", f"--sender.path={sender}", "--sender.dtype=bfloat16"]
    steps = ["--stages.fit.train.steps=240", "--stages.fit.train.eval_every=120"]
    steps += ["--stages.fit.train.save_every=240", "--stages.report.evaluate.rows=200"]
    on_real = {"latentwire_smoke": both, "latentwire_default": [*both, *reads, *steps]}
    for one in on_text(data):
        if one.name in on_real:
            own = one.name.replace("latentwire_", "latentwire_real_")
            flags = [flag for flag in one.flags if not flag.startswith("--name=")]
            found.append(Job(own, (*flags, *on_real[one.name], f"--name={own}"), 2))
    return found


def on_text(data: Path) -> list[Job]:
    """Smoke size, hero's steps of a smaller batch, today's default and the final plan's first steps
    on text of SQuAD's form."""
    squad = [f"--data.squad.train={data / 'train.json'}"]
    squad += [f"--data.squad.eval={data / 'squad_xquad_en_dev.json'}"]
    train = "--stages.plan.train"
    few = ["--stages.c.evaluate.methods=[text, latent, token_budget_first]"]
    few += ["--stages.c.evaluate.wire=[]"]
    plan = [f"{train}.steps=200", f"{train}.log_every=10", f"{train}.eval_every=100"]
    plan += [f"{train}.save_every=200", f"{train}.text_batches.steps=20"]
    plan += [f"{train}.latent_keep.ramp=200"]
    short = ["--stages.fit.train.steps=600", "--stages.fit.train.eval_every=200"]
    short += ["--stages.report.evaluate.methods=[text, latent, token_budget_first]"]
    short += ["--stages.report.evaluate.wire=[]"]
    one_microbatch = [
        f"--stages.{stage}.train.{key}"
        for stage, rows in (("a", 24), ("b", 36))
        for key in (f"batch_size={rows}", "accumulate=1")
    ]
    return [
        job("smoke", CONFIGS / "smoke.yaml", *squad, *few, stages=("c",)),
        job("default", CONFIGS / "default.yaml", *squad, *short),
        job("hero", CONFIGS / "hero.yaml", *squad, *few, *one_microbatch, stages=("c",)),
        job("final_plan", CONFIGS / "final_plan.yaml", *squad, *few, *plan, stages=("c",)),
    ]


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with SQuAD's train and XQuAD files")
    parser.add_argument("--models", type=Path, help="folder with SmolLM2 and Qwen2.5 as GGUF files")
    parser.add_argument("--encoder", default="models/all-MiniLM-L6-v2", help="all-MiniLM-L6-v2")
    parser.add_argument("--at_once", type=int, default=2)
    asked = arguments(parser)
    return started(jobs(asked.encoder, asked.data, asked.models), asked)


if __name__ == "__main__":
    sys.exit(main())
