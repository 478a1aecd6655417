"""Writes questions as `prompt_embeds`, and the tokens that lw_jax writes for each.

python .ci/vllm_prompts.py RUN_DIR OUT_DIR [COUNT]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from lw_jax import Bridge
from lw_jax.api import engines
from lw_jax.data.facts import FactsRows
from lw_jax.evaluate.methods.base import EvalContext
from lw_jax.models.generate import DecodeOptions
from lw_jax.receiver import answer
from lw_jax.receiver.pack import Segment
from lw_jax.text.layout import Prompt


def main(run_dir: Path, out: Path, count: int) -> None:
    """Writes them all.

    Args:
        run_dir: of a run whose only reader is soft tokens in columns.
        out: directory of the files.
        count: of questions.
    """
    out.mkdir(parents=True, exist_ok=True)
    bridge, facts, lines = Bridge.load(run_dir), FactsRows("eval", 0, 1, count), []
    (name,) = bridge.pipeline.receivers
    for i in range(count):
        example = facts[i][0]
        packet = bridge.encode(example.context)
        prompt = engines.export(bridge, packet, example.question, form="prompt_embeds")
        engines.to_file(prompt, out / f"{i}.safetensors")
        lines.append({"max_new": prompt.max_new, "eos": list(prompt.eos)})
        lines[-1]["ids"] = written(bridge, name, prompt)
    (out / "written.json").write_text(json.dumps(lines))
    print(
        f"{count} prompts in {out}, {len({tuple(one['ids']) for one in lines})} different answers"
    )


def written(bridge: Bridge, name: str, prompt: engines.Prompt) -> list[int]:
    """The tokens that lw_jax's own decoder writes greedily after a prompt's embeddings, without the
    one that ends them."""
    s = bridge.pipeline
    ctx = EvalContext(s.frozen, bridge.trained.params, None, s.bridge, name)
    assert prompt.embeds is not None
    size = len(prompt.embeds)
    sizes = jnp.asarray([size], jnp.int32)
    whole = Segment(None, jnp.asarray(prompt.embeds)[None], sizes, "message")
    none = Segment(jnp.zeros((1, 0), jnp.int32), None, jnp.zeros(1, jnp.int32), "ask")
    options = DecodeOptions(max_new=prompt.max_new, eos_ids=prompt.eos)
    said = answer.write(
        ctx.model, Prompt(), answer.Message(whole), none, jax.random.key(0), options
    )
    ids: list[int] = np.asarray(said.ids)[0, : int(said.lengths[0])].tolist()
    return ids


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 100)
