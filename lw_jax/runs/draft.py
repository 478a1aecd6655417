"""A config for two models and a data set, by rule, and what a run of it will cost.

The rules are those of the configs that ship (`configs/facts_any_ratio.yaml`,
`configs/real/questions.yaml`): they are a start to change, not a result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import jax
import numpy as np

from lw_jax.bridge.bridge import fresh
from lw_jax.config import parse
from lw_jax.config.schema import Config
from lw_jax.data import files, records
from lw_jax.data.example import Group
from lw_jax.data.load import load_rows, sample
from lw_jax.data.source import OWN_IDS
from lw_jax.errors import UserError
from lw_jax.mesh import make_mesh
from lw_jax.models.config import ModelConfig
from lw_jax.models.encoder_arch import AnyArch
from lw_jax.models.spec import SENDER, FrozenSpec
from lw_jax.runs.abstract import abstract_bridge, abstract_models, size_in_bytes
from lw_jax.runs.frozen import tokenizers_of
from lw_jax.runs.opened import Session
from lw_jax.text.collate import Collate, Lengths, by_key
from lw_jax.text.layout_config import LayoutConfig
from lw_jax.types import PyTree
from lw_jax.utils import shipped

GENERATED = {"facts": {"levels": [6], "questions": 6, "augment": {"shared": 0.85}}, "topics": {}}
"""Data sets that are made, with their options."""
HUB = {"squad": "rajpurkar/squad", "gsm8k": "openai/gsm8k", "hotpotqa": "hotpotqa/hotpot_qa"}
FIELDS = {
    "context_field": ("context", "passage", "text", "document", "article", "paragraph", "story"),
    "question_field": ("question", "query", "instruction", "prompt"),
    "answer_field": ("answer", "answers", "output", "response", "target", "completion"),
}
"""Names that rows are known to have for text, question and answer."""
TAPS = (0.0, 0.13, 0.27, 0.53, 0.8)
"""Depths of a deep sender at which it is read: its last layers hold the least of the text."""
FEW_LAYERS = 8
"""A sender of no more is read after every layer."""
RATIOS = (1.5, 3.0, 6.0)
"""Source tokens a slot, from the easiest to what is wanted."""
SHARES = (0.10, 0.20, 0.70)
LEVELS = (1, 3, 6)
"""Sentences of generated facts, in the same order."""
SMALL = 10**8
"""Weights of a model that is kept in float32; a larger one in bfloat16."""
LOOKED_AT, ENOUGH = 512, 0.98
"""Rows whose lengths are looked at, and the share of them that the length of a batch holds."""
LONGEST = 4096
"""Tokens of a text, at most, whatever the models can read."""
HELD_OUT = 8
"""Contexts below which the share of a split of a file is raised."""
SPLITS = {"eval": ("eval_share", 0.2), "validation": ("validation_share", 0.1)}
"""The key of each split's share, and what it is raised to."""


@dataclass(frozen=True)
class Draft:
    """A config, and what it will cost.

    Attributes:
        raw: plain values of the config, which is checked.
        config: the same.
        notes: what was chosen and why, and what it costs, a line each.
    """

    raw: dict[str, Any]
    config: Config
    notes: tuple[str, ...]


def draft(sender: str, receiver: str, data: str, name: str) -> Draft:
    """A config by rule.

    Args:
        sender: directory, file or hub name of the model that reads.
        receiver: the same of the model that answers.
        data: local rows, `facts` or `topics`, or one of `HUB`.
        name: of the run.

    Raises:
        UserError: a model or the data cannot be used.
    """
    session = Session()
    specs: dict[str, FrozenSpec] = {}
    specs[SENDER] = session.open(SENDER, ModelConfig(shipped.found(sender)))
    reader = session.open("receiver", ModelConfig(shipped.found(receiver)))
    called = reader.arch.family.rstrip("0123456789")
    specs[called] = reader
    notes = []
    for key, spec, place in ((SENDER, specs[SENDER], sender), (called, reader, receiver)):
        notes.append(f"{key}: {place}, {spec.arch.layers} layers of width {spec.arch.width}")
    source, told = _data(data)
    notes.append(told)
    taps = _taps(specs[SENDER].arch)
    raw: dict[str, Any] = {
        "name": name,
        "seed": 42,
        "sender": {"path": sender, "dtype": _dtype(specs[SENDER])},
        "receivers": {called: {"path": receiver, "dtype": _dtype(reader)}},
        "layout": {},
        "data": source,
        "bridge": _bridge(taps, reader.arch, 64),
        "objectives": {"answer_ce": {"weight": 1.0}},
        "stages": {"fit": {"train": {"steps": 1}}, "report": {"evaluate": {}}},
    }
    validated = True
    if data not in GENERATED and data not in HUB:
        validated, held = _hold_out(raw)
        notes += held
    groups, count = _sampled(raw)
    lengths = _lengths(parse.from_dict(raw), specs, called, groups)
    limits = [specs[SENDER].arch.max_positions, reader.arch.max_positions // 2, LONGEST]
    longest = min(_rounded(lengths["text"], 8), *limits)
    if _rounded(max(lengths["texts"]), 8) <= 1.25 * longest:  # then none is left out
        longest = min(_rounded(max(lengths["texts"]), 8), *limits)
    beyond = float(np.mean([n > longest for n in lengths["texts"]]))
    if beyond == 1:
        raise UserError(
            f"DATA {data}: all {len(groups)} texts looked at are longer than {longest} tokens; cut "
            "them into shorter rows, or write a config with a larger layout.max_tokens"
        )
    slots = math.ceil(longest / RATIOS[0])
    raw["layout"] = {"max_tokens": longest}
    raw["bridge"] = _bridge(taps, reader.arch, slots)
    small = reader.arch.width <= 512
    raw["stages"] = _stages(source, count, lengths["answer"], small, validated)
    config = parse.from_dict(raw)
    wide = raw["bridge"]["latent_dim"]
    notes += [
        f"taps: after layers {', '.join(map(str, taps))} of {specs[SENDER].arch.layers}",
        f"lengths: texts of up to {longest} tokens ({beyond:.0%} of {len(groups)} looked at are "
        f"longer and left out), answers of up to {lengths['answer']}",
        f"slots: up to {slots} of {wide}, one for every {', '.join(f'{r:g}' for r in RATIOS)} "
        "tokens, each for a part of training",
        *_costs(config, specs, lengths, longest),
    ]
    return Draft(raw, config, tuple(notes))


def _data(data: str) -> tuple[dict[str, Any], str]:
    """The `data` of a config, and a line about it."""
    if data in GENERATED:
        return {data: dict(GENERATED[data])}, f"data: {data}, which are generated"
    if data in HUB:
        return {data: {"train": HUB[data], "eval": HUB[data]}}, f"data: {HUB[data]} of the hub"
    if not files.is_file(data):
        known = ", ".join([*GENERATED, *HUB])
        raise UserError(f"DATA {data}: no such file or directory, and none of {known}")
    rows = [row for _, row in islice(records.read(data, None, "train"), 100)]
    rows = [row for row in rows if isinstance(row, Mapping)]
    if not rows:
        raise UserError(f"DATA {data}: no row in it can be read")
    keys = list(dict.fromkeys(key for row in rows for key in row))
    if "paragraphs" in keys:
        return {"squad": {"train": data, "eval": None}}, f"data: {data}, in SQuAD's format"
    found = {
        field: next((one for one in names if one in keys), None) for field, names in FIELDS.items()
    }
    if found["context_field"] is None:
        names = ", ".join(FIELDS["context_field"])
        raise UserError(
            f"DATA {data}: its rows have {', '.join(map(str, keys[:8]))} and none of {names}; "
            "rename the field of the text, or write data.jsonl.context_field into a config"
        )
    said = ", ".join(str(v) for v in found.values() if v)
    rest = [str(key) for key in keys if key not in {*found.values(), *OWN_IDS}]
    left = f"; not used: {', '.join(rest[:8])}" if rest else ""
    return {"jsonl": {"train": data, "eval": None, **found}}, (
        f"data: {data}, its fields {said}{left}"
    )


def _taps(arch: AnyArch) -> list[int]:
    if arch.layers <= FEW_LAYERS:
        return list(range(arch.layers + 1))
    return sorted({round(depth * arch.layers) for depth in TAPS})


def _dtype(spec: FrozenSpec) -> str:
    arch = spec.arch
    weights = arch.vocab_size * arch.width + 12 * arch.layers * arch.width**2
    return "float32" if weights <= SMALL else "bfloat16"


def _bridge(taps: Sequence[int], receiver: AnyArch, slots: int) -> dict[str, Any]:
    width = 64 * max(4, min(16, round(0.7 * receiver.width / 64)))
    inner = {"width": width, "heads": 8 if width < 512 else width // 64}
    return {
        "latent_dim": width,
        "source": {"hidden_states": {"layers": list(taps), "mix": "concat"}},
        "compressor": {
            "perceiver": {
                "slots": slots,
                "ratios": list(RATIOS),
                "ratio": RATIOS[-1],
                **inner,
                "encoder_layers": 2,
                "depth": 2,
                "rotary": True,
            }
        },
        "bottleneck": {"rounded": {"dtype": "float16"}},
        "reader": {
            "soft_tokens": {"hidden": "mlp", "positions": "spread"},
            "coprocessor": {},
            "latent_adapters": {"mlp_ratio": 0},
        },
    }


def _hold_out(raw: Mapping[str, Any]) -> tuple[bool, list[str]]:
    """Raises the shares of rows that are held out, in place, where few would be.

    Args:
        raw: the config so far, whose rows are in files.

    Returns:
        Whether there are rows for validation, and a line about each share that was raised.

    Raises:
        UserError: not even a raised share holds out a row to evaluate, or none is left to train.
    """
    (source,) = raw["data"].values()
    told = []
    for split, (key, share) in SPLITS.items():
        if _contexts(raw, split) < HELD_OUT:
            source[key] = share
            told.append(f"few rows: {key} {share:g}, {_contexts(raw, split)} contexts")
    for split in ("train", "eval"):
        load_rows(parse.from_dict(dict(raw)).data, split, raw["seed"])
    if _contexts(raw, "validation"):
        return True, told
    return False, [*told, "no row falls to validation: eval_every 0, nothing is measured meanwhile"]


def _contexts(raw: Mapping[str, Any], split: str) -> int:
    """How many contexts a split has; 0 if its rows cannot be had."""
    try:
        return len(load_rows(parse.from_dict(dict(raw)).data, split, raw["seed"]))
    except UserError:
        return 0


def _sampled(raw: Mapping[str, Any]) -> tuple[list[Group], int]:
    """Some rows to train on, and how many there are."""
    config = parse.from_dict(dict(raw))
    rows = load_rows(config.data, "train", config.seed)
    return sample(rows, LOOKED_AT), len(rows)


def _lengths(
    config: Config, specs: Mapping[str, FrozenSpec], receiver: str, groups: Sequence[Group]
) -> dict[str, Any]:
    """Tokens of the sampled rows: `texts` of each, the `text` that nearly all are no longer than,
    and the longest `ask` and `answer`."""
    assert config.bridge is not None
    sources = tokenizers_of(config.bridge, specs)
    tokenizer = specs[receiver].tokenizer
    probe = Collate(LayoutConfig(), sources, {receiver: tokenizer}, Lengths())
    flat = [example for group in groups for example in group]
    found = {key: rows for key, (rows, _) in probe.rows(groups, flat, 1).items()}

    def sizes(key: str) -> list[int]:
        return [len(row) for row in found[key] if row is not None]

    (source,) = by_key(sources)
    texts = sizes(source)
    answers, asks = sizes(f"{receiver}/answer"), sizes(f"{receiver}/ask")
    most = int(np.quantile(texts, ENOUGH))
    return {"texts": texts, "text": most, "ask": max(asks), "answer": max(answers)}


def _stages(
    source: Mapping[str, Any], count: int, answer: int, small: bool, validated: bool
) -> dict[str, Any]:
    batch = 64 if small else 32
    steps = 2000 if next(iter(source)) in GENERATED else min(4000, max(300, 10 * count // batch))
    curriculum: list[dict[str, Any]] = [
        {"ratio": ratio, "share": share} for ratio, share in zip(RATIOS, SHARES, strict=True)
    ]
    if "facts" in source:
        curriculum = [p | {"level": n} for p, n in zip(curriculum, LEVELS, strict=True)]
    rates = {"lr": 0.01, "adam_lr": 0.001} if small else {"lr": 0.003, "adam_lr": 0.0006}
    train = {
        "steps": steps,
        "batch_size": batch,
        "curriculum": curriculum,
        "optimiser": {"name": "muon", **rates},
        "log_every": max(1, steps // 40),
        "eval_every": max(1, steps // 4) if validated else 0,
        "save_every": max(1, steps // 4),
        "eval_rows": 4 * batch,
    }
    report = {"rows": 1000, "decode": {"max_new_tokens": min(512, _rounded(answer + 2, 8))}}
    return {"fit": {"train": train}, "report": {"evaluate": report}}


def _costs(
    config: Config, specs: Mapping[str, FrozenSpec], lengths: Mapping[str, Any], longest: int
) -> list[str]:
    bridge = abstract_bridge(config, specs)
    params = fresh.eval_shape(bridge, jax.random.key(0))
    mesh = make_mesh(config.mesh)
    frozen = size_in_bytes(abstract_models(config, specs, mesh, config.layout))
    count = _count(params)
    middle = int(np.median([n for n in lengths["texts"] if n <= longest]))
    per = [f"{bridge.nbytes(math.ceil(middle / ratio)):,} at {ratio:g}" for ratio in RATIOS]
    return [
        f"bridge: {count:,} parameters, {4 * count / 2**20:,.0f} MiB, with its optimiser about "
        f"{3 * 4 * count / 2**20:,.0f} MiB",
        f"frozen models: {frozen / 2**20:,.0f} MiB",
        f"bytes of a message for a text of {middle} tokens, the median: {', '.join(per)} tokens a "
        "slot",
    ]


def _count(params: PyTree) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def _rounded(count: int, step: int) -> int:
    return -(-count // step) * step
