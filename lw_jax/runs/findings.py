"""What is found out about a config before it is run, a line each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from lw_jax.config.schema import Config
from lw_jax.data.example import Rows
from lw_jax.errors import UserError
from lw_jax.models.spec import FrozenSpec
from lw_jax.runs.opened import Session


@dataclass(frozen=True)
class Finding:
    """One finding about a config.

    Attributes:
        level: whether the run can go on.
        key: key of the config.
        text: what was found.
    """

    level: Literal["ok", "warning", "error"]
    key: str
    text: str


@dataclass
class Examination:
    """Everything that is found out about a config on the way.

    Attributes:
        config: the config.
        session: opens its models.
        files: whether the models' weight files have to be there.
        findings: findings so far.
        specs: the models that could be opened, by name.
        groups: rows of the stages: training rows, if there are any.
        asked: rows of every evaluate stage.
        loaded: all rows that were read, by stage, with the key of the data and what they are for.
        sizes: static lengths that hold the rows, as `lw_jax.text.collate.measure` gives them.
    """

    config: Config
    session: Session
    files: bool = True
    findings: list[Finding] = field(default_factory=list)
    specs: dict[str, FrozenSpec] = field(default_factory=dict)
    groups: list[Any] = field(default_factory=list)
    asked: dict[str, list[Any]] = field(default_factory=dict)
    loaded: list[tuple[str, str, str, Rows]] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)

    def note(self, level: Literal["ok", "warning", "error"], key: str, text: str) -> None:
        """Adds a finding, once: several stages may find the same."""
        text = text.removeprefix(f"{key}: ")
        if Finding(level, key, text) not in self.findings:
            self.findings.append(Finding(level, key, text))

    @contextmanager
    def trying(self, key: str) -> Iterator[None]:
        """Turns a UserError inside into a finding."""
        try:
            yield
        except UserError as error:
            self.note("error", key, str(error))

    @property
    def sound(self) -> bool:
        """Whether no error has been found."""
        return all(f.level != "error" for f in self.findings)
