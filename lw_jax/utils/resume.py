"""What a resumed run may change."""

from __future__ import annotations

FREE = frozenset(
    "log_every eval_every eval_rows save_every keep workers run_dir out name mesh plugins".split()
)
"""Config keys that may differ between the run that saved and the run that resumes."""


def free(key: str) -> bool:
    """Whether a dotted config key may change when a run is resumed."""
    return not FREE.isdisjoint(key.split("."))
