"""The model card of an exported bridge: `README.md` with the front matter that a hub reads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lw_jax import __version__
from lw_jax.config.schema import Config
from lw_jax.config.yaml_files import dumps
from lw_jax.data.load import origins
from lw_jax.utils import shipped
from lw_jax.utils.files import read_json, shown, write_text
from lw_jax.utils.registry import chosen

FILE = "README.md"
EVALUATED = "## Evaluated"
"""The heading above the figures."""
_FIGURES = ("text", "latent", "deranged", "no_message", "token_budget_first", "token_budget_last")


def write_card(
    out: Path, config: Config, about: Mapping[str, Any], run_dir: Path, licence: str | None
) -> None:
    """Writes the card.

    Args:
        out: directory of the exported bridge.
        config: that it was trained with.
        about: what its `bridge.json` says.
        run_dir: of the run, whose last evaluation it quotes where there is one.
        licence: of the bridge's weights, a name that the hub knows; None: the card has none.
    """
    assert config.bridge is not None
    models = {"sender": config.sender, **config.receivers}
    bases = [model.path for model in models.values() if model is not None]
    front: dict[str, Any] = {"library_name": "lw_jax", "tags": ["lw_jax", "latent-communication"]}
    if licence is not None:
        front["license"] = licence
    # of a path that is here, or ships, the hub knows nothing
    here = {path for path in bases if Path(shipped.found(path)).exists()}
    if named := [path for path in bases if path.count("/") == 1 and path not in here]:
        front["base_model"] = named
    data = [config.data, *(s.train.data for s in config.stages.values() if s.train)]
    texts = origins(*(one for one in data if one is not None))
    bridge = config.bridge
    parts = [
        f"{kind} `{next(iter(chosen(part)), 'none')}`"
        for kind, part in (("compressor", bridge.compressor), ("bottleneck", bridge.bottleneck))
    ]
    parts.append(f"readers {', '.join(f'`{name}`' for name in chosen(bridge.reader))}")
    total = sum(about["parameters"].values())
    lines = [
        f"---\n{dumps(front)}---",
        f"# {config.name}",
        f"A bridge of lw_jax: {total:,} parameters that hand "
        f"what `{bases[0]}` reads to {', '.join(f'`{p}`' for p in bases[1:]) or 'nobody'} as a "
        f"few vectors of {bridge.latent_dim}. Both models stay frozen, and are not in here.",
        f"Parts: {'; '.join(parts)}. Stage {about['stage']}, step {about['step']}.",
        "```python\nfrom lw_jax import Bridge\n\n"
        f'bridge = Bridge.load("{out.name}")  # this directory, or the name of its repository\n'
        'message = bridge.encode("A text.")\nbridge.answer(message, "A question about it?")\n```',
        "## Trained on",
        "\n".join(f"* {one}" for one in texts),
        EVALUATED,
        _figures(run_dir),
        "## Limits",
        "It knows texts like those that it was trained on. A message is no encryption: who has "
        "the receiver and this bridge can read it.",
        f"Written by lw_jax {__version__}; the frozen models have to have these fingerprints: "
        + ", ".join(f"{name} `{print_}`" for name, print_ in about["fingerprints"].items())
        + ".",
    ]
    write_text(out / FILE, "\n\n".join(lines) + "\n")


def _figures(run_dir: Path) -> str:
    """The last evaluation's figures as a table; of an exported bridge what its own card says."""
    path, card = run_dir / "metrics.json", run_dir / FILE
    if not path.is_file():
        if not card.is_file():
            return "No figures stand beside what this was exported from."
        text = card.read_text(encoding="utf-8")
        found = re.search(rf"^{EVALUATED}$(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
        if found is not None:
            return found[1].strip()
        lines = [f"> {line}".rstrip() for line in text.strip().splitlines() if line[:2] != "# "]
        return "\n".join(["Its own card says:", "", *lines])
    with shown(path):
        return _table(read_json(path, dict))


def _table(metrics: Mapping[str, Any]) -> str:
    """Figures of an evaluation."""
    rows = ["| receiver | given | exact match | 95 % interval | n |", "|---|---|---|---|---|"]
    for receiver, methods in metrics["receivers"].items():
        for name in _FIGURES:
            if name in methods:
                one = methods[name]
                low, high = one["ci"]["em"]
                ci = f"{low:.3f} to {high:.3f}"
                rows.append(f"| {receiver} | {name} | {one['em']:.3f} | {ci} | {one['n']} |")
    return "\n".join(rows)
