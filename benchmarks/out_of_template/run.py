"""The bridges that ship on texts unlike those of training: rows, runs, records and pages.

    python benchmarks/out_of_template/run.py [--runs runs]

Writes `rows/` (`rows.py`; `hand.jsonl` is written by hand), evaluates `zoo/bridges/facts` and
`zoo/bridges/facts_any_ratio` on each set, and puts the figures into `docs/records` and
`docs/results`. On 2 CPU cores it takes about 40 minutes; a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
BRIDGES = ("facts", "facts_any_ratio")


def main() -> None:
    """Do all of it, in the tree's root."""
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    runs = parser.parse_args().runs
    root = HERE.parents[1]
    commands = [["benchmarks/out_of_template/rows.py"]]
    for bridge in BRIDGES:
        over = f"benchmarks/out_of_template/{bridge}.yaml"
        run = runs / f"out_of_template_{bridge}"
        configs = ["--config", f"configs/{bridge}.yaml", "--config", over]
        commands.append(["-m", "lw_jax.launch", *configs, f"--run_dir={run}"])
        record = "docs/records/out_of_template.jsonl"
        commands.append(["-m", "lw_jax.results", "record", str(run), record])
    commands.append(["-m", "lw_jax.results", "write", "docs/results"])
    for command in commands:
        subprocess.run([sys.executable, *command], cwd=root, check=True)


if __name__ == "__main__":
    main()
