"""`python -m lw_jax.runs.export RUN_DIR OUT_DIR`: the trained bridge of a finished run."""

from __future__ import annotations

import sys
from pathlib import Path

from lw_jax.config.parse import to_dict
from lw_jax.config.schema import Config
from lw_jax.data.load import load_rows, sample
from lw_jax.errors import UserError
from lw_jax.mesh import make_mesh
from lw_jax.pipeline import Pipeline
from lw_jax.runs import receiver_rms
from lw_jax.runs.directory import read_config
from lw_jax.runs.exported import LONGEST, save_bridge
from lw_jax.runs.places import located
from lw_jax.runs.session import MEASURED_ROWS, open_pipeline
from lw_jax.runs.trained import load_trained
from lw_jax.text.collate import by_key


def main(argv: list[str]) -> int:
    """Exports the bridge of a finished run."""

    if len(argv) != 2:
        print("usage: python -m lw_jax.runs.export RUN_DIR OUT_DIR", file=sys.stderr)
        return 2
    run_dir, out = Path(argv[0]), Path(argv[1])
    try:
        config = read_config(run_dir)
        here = located(config, run_dir)
        pipeline = open_pipeline(here, make_mesh(config.mesh), run_dir, rows=False)
        trained = load_trained(config, run_dir, pipeline)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    about = {
        "step": trained.step,
        "stage": trained.stage,
        "fingerprints": pipeline.fingerprints,
        LONGEST: trained_lengths(config, pipeline),
        "config": to_dict(config),
    }
    save_bridge(out, trained.params, about)
    receiver_rms.save(out, pipeline.bridge.dims.receivers, pipeline.fingerprints)
    return 0


def trained_lengths(config: Config, pipeline: Pipeline) -> dict[str, int]:
    """Most tokens of what the last train stage was given, by part: texts of the sources, and what
    each receiver was asked; {} if its rows are no longer there.

    Args:
        config: config of the run.
        pipeline: its pipeline.
    """
    stage = [s.train for s in config.stages.values() if s.train is not None][-1]
    level = max((p.level for p in stage.curriculum if p.level is not None), default=None)
    try:
        rows = load_rows(stage.data or config.data, "train", config.seed, level)
        sizes = pipeline.lengths(sample(rows, MEASURED_ROWS), stage.layout).sizes
    except UserError:
        return {}
    parts = by_key(pipeline.sources)
    return {key: n for key, n in sizes.items() if key in parts or key.endswith("/ask")}


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
