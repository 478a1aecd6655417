"""Whether vLLM writes the tokens that lw_jax wrote; it has no lw_jax.

python .ci/vllm_check.py MODEL_DIR PROMPTS_DIR
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(model: Path, place: Path) -> int:
    """Compares all; the exit code."""
    from safetensors.torch import load_file
    from vllm import LLM, SamplingParams  # type: ignore[import-not-found]

    wanted = json.loads((place / "written.json").read_text())
    engine = LLM(
        model=str(model),
        dtype="float32",
        enable_prompt_embeds=True,
        enforce_eager=True,
        skip_tokenizer_init=True,
        gpu_memory_utilization=0.3,
    )
    prompts = [
        {"prompt_embeds": load_file(place / f"{i}.safetensors")["embeds"].float()}
        for i in range(len(wanted))
    ]
    how = [
        SamplingParams(
            temperature=0.0,
            max_tokens=one["max_new"],
            stop_token_ids=one["eos"],
            detokenize=False,
        )
        for one in wanted
    ]
    said = engine.generate(prompts, how)
    wrong = []
    for i, (out, one) in enumerate(zip(said, wanted, strict=True)):
        ids = list(out.outputs[0].token_ids)
        if ids and ids[-1] in one["eos"]:
            ids.pop()
        if ids != one["ids"]:
            wrong.append(f"{i}: vLLM {ids}, lw_jax {one['ids']}")
    print(f"{len(wanted) - len(wrong)} of {len(wanted)} the same", *wrong, sep="\n")
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]), Path(sys.argv[2])))
