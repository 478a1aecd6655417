"""Whether the wire carries content, in numbers and in words (docs/design.md section 8).

It does when matched - deranged is at least 80 % of matched - none, provided the interval of
matched - none excludes 0. Matched is `latent`; none is `no_message`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from numpy.typing import NDArray

from lw_jax.evaluate import bootstrap
from lw_jax.evaluate.methods.token_budget_kv import PREFIX
from lw_jax.evaluate.summary import Settings
from lw_jax.text.budget import KEPT

SHARE = 0.8
METRIC = "f1"
BUDGETS = (
    "token_budget_first",
    "token_budget_last",
    "token_budget_sentences",
    "token_budget_surprisal",
)
BUDGETS_KV = tuple(f"{PREFIX}{kept}" for kept in KEPT)
BYTES = "token_budget_bytes"
NEAR = "deranged_near"
RAN_ON = 0.05
"""Share of a method's outputs that run into the most tokens from which that is said."""


@dataclass(frozen=True)
class Difference:
    """latent - other in the verdict's metric, over the same rows.

    Attributes:
        other: the other method.
        mean: the difference.
        low, high: its 95 % interval.
    """

    other: str
    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


@dataclass(frozen=True)
class Verdict:
    """Whether a wire carries content.

    Attributes:
        carries: the rule above.
        share: (matched - deranged) / (matched - none); None when the interval of matched - none
            does not exclude 0.
        differences: of the latent and the other methods, by the other's name.
        words: the verdict in sentences.
        metric: the metric that is compared.
    """

    carries: bool
    share: float | None
    differences: dict[str, Difference]
    words: tuple[str, ...]
    metric: str = METRIC

    def to_json(self) -> dict[str, Any]:
        """As it stands in `metrics.json`."""
        return asdict(self)


def judge(
    rows: Mapping[str, NDArray[Any]],
    groups: Sequence[str],
    columns: float,
    settings: Settings,
    metric: str = METRIC,
    rivals: Sequence[str] = (),
    ran_on: Mapping[str, float] | None = None,
    counted: Mapping[str, Sequence[int]] | None = None,
) -> Verdict:
    """The verdict of one receiver.

    Args:
        rows: per method, `metric` row by row [n]; has `latent`, `no_message` and `deranged`.
        groups: n context ids, resampled together.
        columns: receiver columns that the latent's message occupies.
        rivals: methods that are another bridge's.
        ran_on: per method the share of its outputs that neither EOS nor a stop ended; None: the
            metric does not depend on what is written.
        counted: of methods that do not count every row the indices of those that they do.
    """
    some = counted or {}

    def against(other: str) -> Difference:
        kept = some.get(other, range(len(groups)))
        mean, (low, high) = bootstrap.paired(
            rows["latent"][kept],
            rows[other][kept],
            groups=[groups[i] for i in kept],
            seed=settings.seed,
            resamples=settings.resamples,
            bounds=(0, 1),
        )
        return Difference(other, mean, low, high)

    apart = {m: against(m) for m in rows if m != "latent"}
    none, deranged = apart["no_message"], apart["deranged"]
    helps = none.low > 0
    share = deranged.mean / none.mean if helps else None
    carries = share is not None and share >= SHARE
    name = metric.upper() if metric == METRIC else metric
    words = [_content(none, deranged, share, name)]
    budgets = [m for m in BUDGETS if m in rows]
    if budgets:
        best = max(budgets, key=lambda m: float(rows[m].mean()))
        most = "better" if len(budgets) < 3 else "best"
        of = f"the {most} token budget ({best}, {columns:g} columns)"
        words.append(_budget(apart[best], of, name))
    if held := [m for m in BUDGETS_KV if m in rows]:
        best = max(held, key=lambda m: float(rows[m].mean()))
        words.append(_budget(apart[best], f"as many K/V entries of text ({best})", name))
    if BYTES in rows:
        words.append(_budget(apart[BYTES], f"as many bytes of text ({BYTES})", name))
    words += [_budget(apart[m], f"{m}, another bridge", name) for m in rivals]
    if NEAR in rows:
        of = f"the latent of another text of the same article ({NEAR}, {len(some[NEAR])} rows)"
        words.append(_budget(apart[NEAR], of, name))
    compared = ("latent", "text", "no_message", "deranged", *BUDGETS, *BUDGETS_KV, BYTES, *rivals)
    late = {m: s for m, s in (ran_on or {}).items() if m in compared and s > RAN_ON}
    if late:
        of = ", ".join(f"{s:.0%} of the answers of {m}" for m, s in late.items())
        words.append(
            f"Not compared by whole answers: {of} ran into decode.max_new_tokens, so that their "
            f"{name} may be too low."
        )
    return Verdict(carries, share, apart, tuple(words), metric)


def _content(none: Difference, deranged: Difference, share: float | None, name: str) -> str:
    if share is None:
        why = "its interval includes 0" if none.high >= 0 else "the latent does harm"
        return f"The wire carries nothing that shows: latent - no_message is {none} {name}; {why}."
    part = f"latent - deranged is {deranged} {name}, {share:.0%} of latent - no_message {none}"
    if share >= SHARE:
        return f"The wire carries content: {part}."
    if deranged.low <= 0 <= deranged.high:
        return f"The latent helps, but no more than another text's latent: {part}, includes 0."
    return f"The latent helps, but mostly not by its content: {part}, below {SHARE:.0%}."


def _budget(best: Difference, of: str, name: str) -> str:
    if best.low > 0:
        return f"The latent beats {of}: {best} {name}."
    if best.high < 0:
        return f"The latent loses to {of}: {best} {name}."
    return f"The latent and {of} cannot be told apart: {best} {name}."
