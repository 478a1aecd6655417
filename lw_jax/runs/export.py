"""`python -m lw_jax.runs.export RUN_DIR OUT_DIR`: the trained bridge of a finished run.

RUN_DIR may be an exported bridge: then its parameters are copied byte by byte, and written anew is
what belongs to them, in today's format. (A bridge of format 1 gets digests and the fingerprints of
its models' tokenizers so. Use it where the models are known to be the right ones.)
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from lw_jax.config.parse import to_dict
from lw_jax.config.schema import Config
from lw_jax.data.load import load_rows, sample
from lw_jax.errors import UserError
from lw_jax.mesh import make_mesh
from lw_jax.pipeline import Pipeline
from lw_jax.runs import receiver_rms
from lw_jax.runs.card import write_card
from lw_jax.runs.exported import LONGEST, WEIGHTS, about_bridge, is_exported, save_bridge, seal
from lw_jax.runs.places import located
from lw_jax.runs.session import MEASURED_ROWS, open_pipeline
from lw_jax.runs.trained import config_at, load_trained
from lw_jax.text.collate import by_key
from lw_jax.utils.output import never_fails_to_encode


def main(argv: list[str]) -> int:
    """Exports the bridge of a finished run, or an exported one again."""

    if len(argv) != 2:
        print("usage: python -m lw_jax.runs.export RUN_DIR OUT_DIR", file=sys.stderr)
        return 2
    run_dir, out = Path(argv[0]), Path(argv[1])
    try:
        export(run_dir, out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def export(run_dir: Path, out: Path, card: bool = False, licence: str | None = None) -> None:
    """Writes the bridge of a finished run, or an exported one again.

    Args:
        run_dir: of the run, or of the exported bridge.
        out: where the files go.
        card: whether a model card is written as well.
        licence: that the card names.

    Raises:
        UserError: nothing was trained yet, or the run is damaged.
    """
    _write(run_dir, out)
    if card:
        write_card(out, config_at(out), about_bridge(out), run_dir, licence)


def _write(run_dir: Path, out: Path) -> None:
    config = config_at(run_dir)
    shipped = is_exported(run_dir)
    here = located(config, run_dir)
    pipeline = open_pipeline(here, make_mesh(config.mesh), run_dir, rows=False)
    origin = str(run_dir) if shipped else None
    trained = load_trained(config, run_dir, pipeline, init_from=origin)
    about = {
        "step": trained.step,
        "stage": trained.stage,
        "fingerprints": pipeline.fingerprints,
        "weights": pipeline.weights,
        "models": {} if pipeline.models is None else pipeline.models(),
        LONGEST: trained_lengths(here, pipeline),
        "config": to_dict(config),
    }
    out.mkdir(parents=True, exist_ok=True)
    receiver_rms.write(out, pipeline.bridge.dims.receivers, pipeline.fingerprints)
    if not shipped:
        save_bridge(out, trained.params, about)
        return
    known = about_bridge(run_dir)
    own = {key: known[key] for key in ("parameters", "step", "stage", "config") if key in known}
    if out.resolve() != run_dir.resolve():
        shutil.copyfile(run_dir / WEIGHTS, out / WEIGHTS)
    seal(out, about | own)


def trained_lengths(config: Config, pipeline: Pipeline) -> dict[str, int]:
    """Most tokens of what the last train stage was given (without one, what was fitted on), by
    part: texts of the sources, and what each receiver was asked; {} if its rows are gone.

    Args:
        config: config of the run.
        pipeline: its pipeline.
    """
    trains = [s.train for s in config.stages.values() if s.train is not None]
    level, data, layout = None, config.data, config.layout
    if trains:  # else it was fitted
        last = trains[-1]
        level = max((p.level for p in last.curriculum if p.level is not None), default=None)
        data, layout = last.data or config.data, last.layout or config.layout
    try:
        rows = load_rows(data, "train", config.seed, level)
        sizes = pipeline.lengths(sample(rows, MEASURED_ROWS), layout).sizes
    except UserError:
        return {}
    parts = by_key(pipeline.sources)
    return {key: n for key, n in sizes.items() if key in parts or key.endswith("/ask")}


if __name__ == "__main__":
    never_fails_to_encode()
    raise SystemExit(main(sys.argv[1:]))
