"""The config of decoding and of the stage that compares methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lw_jax.config.checks import at_least, between
from lw_jax.config.parts import DataConfig
from lw_jax.errors import UserError

METHODS = (
    "text",
    "latent",
    "token_budget_first",
    "token_budget_last",
    "embedding_replay_raw",
    "no_message",
    "zero",
    "mean",
    "deranged",
)
"""Methods and controls of an evaluation (SPEC section 8), in the order of the table."""

CONTROLS = ("no_message", "zero", "mean", "deranged")
"""Always run: without them a figure for `latent` says nothing."""


@dataclass(frozen=True)
class DecodeConfig:
    """Decoding (SPEC section 8, decode controls). Greedy unless a temperature is given.

    Args:
        max_new_tokens: tokens decoded at most.
        min_new_tokens: EOS is forbidden before so many.
        eos_ban_steps: steps from the start in which EOS is forbidden.
        temperature, top_p: sampling; temperature 0 is greedy.
        first_token_temperature, first_token_top_p: the same, for the first token alone.
        first_token_stop_list: strings whose tokens cannot come first.
        prefix_gain: gain on what is delivered, per decode step; the last one holds.
    """

    max_new_tokens: int = 12
    min_new_tokens: int = 0
    eos_ban_steps: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    first_token_temperature: float = 0.0
    first_token_top_p: float = 1.0
    first_token_stop_list: tuple[str, ...] = ()
    prefix_gain: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        at_least(self, 1, "max_new_tokens")
        at_least(self, 0, "min_new_tokens", "eos_ban_steps")
        at_least(self, 0, "temperature", "first_token_temperature")
        between(self, 0, 1, "top_p", "first_token_top_p")
        if self.min_new_tokens > self.max_new_tokens:
            raise UserError(
                f"min_new_tokens: {self.min_new_tokens} is above max_new_tokens "
                f"{self.max_new_tokens}"
            )
        if not self.prefix_gain:
            raise UserError("prefix_gain: none is given; [1.0] leaves the message as it is")


@dataclass(frozen=True)
class EvaluateConfig:
    """A stage that compares methods on the same held-out rows (SPEC section 8).

    Args:
        methods: methods to run; the controls are always run with `latent`.
        rows: rows (questions) evaluated; 0 for all.
        batch_size: rows at once.
        checkpoint: `last` or `best` of the stage before.
        ratio: source tokens a slot, of a bridge trained for several; null: as its config says.
        decode: decoding.
        data: other rows than the config's; null for the config's.
        seed: seed of the rows' order and of the bootstrap.
        bootstrap: resamples for the 95 % intervals.
    """

    methods: tuple[str, ...] = METHODS
    rows: int = 1000
    batch_size: int = 64
    checkpoint: Literal["last", "best"] = "last"
    ratio: float | None = None
    decode: DecodeConfig = DecodeConfig()
    data: DataConfig | None = None  # type: ignore[valid-type]
    seed: int = 12345
    bootstrap: int = 2000

    def __post_init__(self) -> None:
        at_least(self, 0, "rows")
        at_least(self, 1, "batch_size", "bootstrap", "ratio")
        if not self.methods:
            raise UserError(f"methods: none is given; name some of {', '.join(METHODS)}")
        unknown = [m for m in self.methods if m not in METHODS]
        if unknown:
            raise UserError(f"methods: unknown {unknown[0]!r}; one of {', '.join(METHODS)}")
