"""Other bridges on the rows of an evaluation, one line each, paired with its own row by row.

So trained rivals (prompt tuning *with* the text, LoRA, a PCA of the embeddings) are in one report
with `latent`, on the same examples (docs/design.md section 8); any other bridge can be, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from lw_jax.data.example import Group
from lw_jax.errors import UserError
from lw_jax.evaluate.compare import Comparison
from lw_jax.pipeline import Pipeline
from lw_jax.runs.ends import open_rival
from lw_jax.runs.opened import Session
from lw_jax.runs.places import located
from lw_jax.runs.trained import Trained, config_at, layout_at, load_trained
from lw_jax.text.collate import Collate


@dataclass(frozen=True)
class Rival:
    """The bridge of another run.

    Attributes:
        name: name of its line.
        pipeline: its own source and layout, with the receivers of the evaluation.
        trained: its parameters.
        collate: makes batches in its own tokens and layout.
    """

    name: str
    pipeline: Pipeline
    trained: Trained
    collate: Collate

    def comparison(self, host: Comparison) -> Comparison:
        """The rows of another comparison, read over this bridge."""
        return replace(host, pipeline=self.pipeline, collate=self.collate, other=self.name)


def load(
    name: str,
    directory: str,
    pipeline: Pipeline,
    groups: Sequence[Group],
    which: Literal["last", "best"],
    session: Session | None = None,
) -> Rival:
    """The bridge in a finished run's directory, or an exported one.

    Args:
        name: name of its line.
        directory: where it is.
        pipeline: pipeline of the evaluation.
        groups: the rows that will be read.
        which: which of its checkpoints.
        session: session of the run that is evaluated, whose sender it may share; None: a new one.

    Raises:
        UserError: it is missing, is between other receivers, or is trained to write something else.
    """
    home = Path(directory)
    config = located(config_at(home), home)
    layout = layout_at(config)
    if layout.target != pipeline.layout.target:
        raise UserError(
            f"rivals.{name}: its receiver writes the {layout.target}, here the "
            f"{pipeline.layout.target}; compare bridges that write the same"
        )
    own = open_rival(pipeline, config, layout, home, session)
    trained = load_trained(config, home, own, which, init_from=directory)
    return Rival(name, own, trained, own.collate(groups))
