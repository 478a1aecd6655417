"""A run's diagnostics as TensorBoard events (tensorboardX, an optional extra).

Written from `diagnostics.jsonl`, so it can be done at any time, again, and after any resume.
"""

from __future__ import annotations

from pathlib import Path

from lw_jax.errors import UserError
from lw_jax.utils.files import DIAGNOSTICS_LINE, read_lines


def write_events(run_dir: Path) -> Path:
    """Write `<run_dir>/tensorboard/<stage>` anew; the folder.

    Raises:
        UserError: no diagnostics there, or tensorboardX is not installed.
    """
    source = run_dir / "diagnostics.jsonl"
    if not source.is_file():
        raise UserError(f"{run_dir}: no diagnostics.jsonl there, so it is no run directory")
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise UserError("tensorboard: pip install 'lw_jax[tensorboard]' first") from error
    folder = run_dir / "tensorboard"
    for old in folder.glob("*/events.*"):
        old.unlink()
    writers: dict[str, SummaryWriter] = {}
    for line in read_lines(source, DIAGNOSTICS_LINE)[0]:
        stage, step, kind = line.pop("stage"), line.pop("step"), line.pop("kind")
        if stage not in writers:
            writers[stage] = SummaryWriter(str(folder / stage))
        for key, value in line.items():
            if isinstance(value, (int, float)):
                writers[stage].add_scalar(f"{kind}/{key}", value, step)
    for writer in writers.values():
        writer.close()
    return folder
