"""Makes tests/models/golden/ and golden_encoders/: tiny random checkpoints and what transformers
(PyTorch) gets of them.

    python tests/models/make_golden.py

Each folder is what transformers itself saves (config.json in its version 5 spelling and
model.safetensors, float32), with `hub_config.json`, the same model as the hub would spell it,
written by hand, and `golden.safetensors`. The fixtures are made to notice: deviations of 0.15 and
more, norms and biases that are not trivial, an eps that matters, a context longer than the window
and than Llama's original positions. An encoder's last LayerNorm is loud, so that the two forms of
GELU, which differ by 0.0005 at most, move its states by more than the tolerance too.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file

HERE = Path(__file__).parent / "golden"
ENCODERS = Path(__file__).parent / "golden_encoders"
ROWS, TOKENS, PROMPT, LENGTHS = 2, 24, 18, (24, 17)
LOUD = 25.0


def main() -> None:
    torch.set_float32_matmul_precision("highest")
    for home, make in ((HERE, make_decoder), (ENCODERS, make_encoder)):
        for folder in sorted(path.parent for path in home.glob("*/hub_config.json")):
            make(folder)
            print(folder.name, {p.name: p.stat().st_size for p in sorted(folder.iterdir())})


def config_of(folder: Path) -> transformers.PretrainedConfig:
    return transformers.AutoConfig.for_model(**json.loads((folder / "hub_config.json").read_text()))


def make_decoder(folder: Path) -> None:
    config = config_of(folder)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    randomise(model.eval().float())
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (ROWS, TOKENS))
    save_file(reference(model, ids), folder / "golden.safetensors")


def make_encoder(folder: Path) -> None:
    config = config_of(folder)
    model = transformers.AutoModel.from_config(config, attn_implementation="eager")
    randomise(model.eval().float())
    model.encoder.layer[-1].output.LayerNorm.weight.data *= LOUD
    model.save_pretrained(folder)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (ROWS, TOKENS))
    mask = torch.arange(ids.shape[1])[None] < torch.tensor(LENGTHS)[:, None]
    with torch.no_grad():
        out = model(torch.tensor(ids), attention_mask=mask.long(), output_hidden_states=True)
    found = {"ids": ids.astype(np.int32), "states": torch.stack(out.hidden_states).numpy()}
    save_file(found, folder / "golden.safetensors")


def randomise(model: torch.nn.Module) -> None:
    draw = torch.Generator().manual_seed(0)
    for name, value in model.named_parameters():
        noise = torch.randn(value.shape, generator=draw)
        if "norm" in name.lower() and name.endswith("weight"):
            value.data = 1 + 0.3 * noise
        elif name.endswith("bias"):
            value.data = 0.5 * noise
        else:
            value.data = (0.15 if "embed" in name else 0.25) * noise


@torch.no_grad()
def reference(model: torch.nn.Module, ids: np.ndarray) -> dict[str, np.ndarray]:
    """What the model computes: ids [B, T], embeddings, the first attention, each layer, logits.

    cached: [B, T - PROMPT + 1, V], logits from the last prompt token on, decoded one by one.
    Rows are right-padded to LENGTHS, except for the cached run.
    """
    found: dict[str, np.ndarray] = {"ids": ids.astype(np.int32)}
    layers: list[np.ndarray] = []
    hooks = [
        model.model.embed_tokens.register_forward_hook(
            lambda _m, _i, out: found.update(embeddings=out.numpy())
        ),
        model.model.layers[0].self_attn.register_forward_hook(
            lambda _m, _i, out: found.update(attention=out[0].numpy())
        ),
    ] + [
        layer.register_forward_hook(
            lambda _m, _i, out: layers.append((out[0] if isinstance(out, tuple) else out).numpy())
        )
        for layer in model.model.layers
    ]
    mask = torch.arange(ids.shape[1])[None] < torch.tensor(LENGTHS)[:, None]
    found["logits"] = model(torch.tensor(ids), attention_mask=mask.long()).logits.numpy()
    found["layers"] = np.stack(layers)
    for hook in hooks:
        hook.remove()
    out = model(torch.tensor(ids[:, :PROMPT]), use_cache=True)
    steps = [out.logits[:, -1:]]
    for step in range(PROMPT, ids.shape[1]):
        out = model(torch.tensor(ids[:, step : step + 1]), past_key_values=out.past_key_values)
        steps.append(out.logits)
    found["cached"] = torch.cat(steps, dim=1).numpy()
    return {name: np.ascontiguousarray(value) for name, value in found.items()}


if __name__ == "__main__":
    main()
