"""What the doctor looks at in models: their files, weights and taps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax

from lw_jax.evaluate.methods import method
from lw_jax.models.config import ModelConfig
from lw_jax.models.encoder_arch import EncoderArch
from lw_jax.models.spec import SENDER
from lw_jax.runs.findings import Examination
from lw_jax.runs.frozen import sender_arch, sender_layers


def check_taps(seen: Examination, key: str, view: str) -> None:
    """Warns of a source that reads only the first layers of a deep sender."""
    arch = sender_arch(seen.specs)
    assert seen.config.bridge is not None
    source = seen.config.bridge.views[view]
    if arch is None or not source.reads_sender:
        return
    highest = source.sender_layers(arch)
    if 0 < highest < arch.layers / 4:
        seen.note(
            "warning",
            key,
            f"the highest tap is after {highest} of the sender's {arch.layers} layers; higher ones "
            "usually carry more: name others, or set `of` to the depth that `layers` is meant for",
        )


def check_model(seen: Examination, name: str, model: ModelConfig) -> None:
    """Checks that a model can be opened and that its weights are there."""
    key = name if name == SENDER else f"receivers.{name}"
    with seen.trying(f"{key}.path"):
        spec = seen.session.open(name, model)
        there = Path(model.path).expanduser().exists()
        if there and model.random_weights is None and seen.files:
            spec.check_files() if name != SENDER else spec.files()
        seen.specs[name] = spec
        arch = spec.arch
        ends = (
            f"encoder of at most {arch.max_positions} tokens"
            if isinstance(arch, EncoderArch)
            else f"ends at {', '.join(map(str, arch.eos_ids))}"
        )
        seen.note(
            "ok",
            f"{key}.path",
            f"{arch.family}, {arch.layers} layers of width {arch.width}, "
            f"vocabulary {arch.vocab_size}, {ends}",
        )
        mesh, own = seen.config.mesh, seen.config.mesh.sender
        ways = own.tensor if name == SENDER and own is not None else mesh.tensor
        if arch.heads % ways or arch.kv_heads % ways:
            seen.note(
                "warning",
                "mesh.tensor",
                f"{ways} does not divide the {arch.heads} heads and {arch.kv_heads} key/value "
                f"heads of {key}: their weights are copied to every device",
            )
    if model.attention == "cudnn" and (
        jax.default_backend() != "gpu" or model.dtype != "bfloat16" or model.quant == "nf4"
    ):
        seen.note(
            "error",
            f"{key}.attention",
            "cudnn needs an NVIDIA GPU and dtype bfloat16; use xla",
        )


def check_weights(seen: Examination) -> None:
    """Checks that the weights of local models are finite; a run checks it while it loads them."""
    for name, spec in seen.specs.items():
        key = name if name == SENDER else f"receivers.{name}"
        if Path(spec.config.path).expanduser().exists():
            with seen.trying(f"{key}.path"):
                if name == SENDER:
                    check_needed(seen, spec.check_weights)
                else:
                    spec.check_weights()


def check_needed(seen: Examination, check: Callable[[int | None, bool], None]) -> None:
    """Checks the part of a local sender that is read: up to the highest tap, or all if it writes.

    Args:
        seen: the examination.
        check: takes the number of layers, from the first on, and whether the head is needed.
    """
    if not (seen.files and Path(seen.specs[SENDER].config.path).expanduser().exists()):
        return
    stages = seen.config.stages.values()
    if any(s.evaluate and any(method(m).relayed for m in s.evaluate.methods) for s in stages):
        check(None, True)
    else:
        check(sender_layers(seen.config, seen.specs), False)
