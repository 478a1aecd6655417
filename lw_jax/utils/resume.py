"""Config keys that a resumed run may change."""

from __future__ import annotations

from typing import Any

FREE = frozenset(
    "log_every eval_every eval_rows save_every keep workers max_bad_steps run_dir out name mesh "
    "hosts plugins attention decoding remat unroll tensorboard device watch_every eval_tokens "
    "fingerprint deterministic".split()
)
"""Config keys that may differ between the run that saved and the run that resumes."""

ADDED = {"film_from": "mean", "start": "normal", "use": "expanded"}
"""Config keys that came later, with the value for what was done before, where that is not "off"."""


def free(key: str) -> bool:
    """Whether a dotted config key may change when a run is resumed."""
    return not FREE.isdisjoint(key.split("."))


def as_before(key: str, value: Any) -> bool:
    """Whether a key that a saved run does not know yet has the value for what was done then."""
    return not value or ADDED.get(key) == value


def raised(key: str, old: Any, new: Any) -> bool:
    """Whether a difference is a train stage's number of steps, and it is larger than before.

    Args:
        key: dotted key, `stages.fit.train.steps`.
        old: value with which the run was made.
        new: value now.
    """
    of_stage = key.split(".")[-4:-3] == ["stages"] and key.endswith(
        (".train.steps", ".pretrain.steps")
    )
    numbers = isinstance(old, int) and isinstance(new, int)
    return of_stage and numbers and new > old
