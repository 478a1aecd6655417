"""`python -m lw_jax.runs.export RUN_DIR OUT_DIR`: the trained bridge of a finished run."""

from __future__ import annotations

import sys
from pathlib import Path

from lw_jax.config.parse import to_dict
from lw_jax.errors import UserError
from lw_jax.mesh import make_mesh
from lw_jax.runs import receiver_rms
from lw_jax.runs.directory import read_config
from lw_jax.runs.exported import save_bridge
from lw_jax.runs.session import open_pipeline
from lw_jax.runs.trained import load_trained


def main(argv: list[str]) -> int:
    """Exports the bridge of a finished run."""

    if len(argv) != 2:
        print("usage: python -m lw_jax.runs.export RUN_DIR OUT_DIR", file=sys.stderr)
        return 2
    run_dir, out = Path(argv[0]), Path(argv[1])
    try:
        config = read_config(run_dir)
        pipeline = open_pipeline(config, make_mesh(config.mesh), run_dir, rows=False)
        trained = load_trained(config, run_dir, pipeline)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    about = {
        "step": trained.step,
        "stage": trained.stage,
        "fingerprints": pipeline.fingerprints,
        "config": to_dict(config),
    }
    save_bridge(out, trained.params, about)
    receiver_rms.save(out, pipeline.bridge.dims.receivers, pipeline.fingerprints)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
