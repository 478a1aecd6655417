"""Alarms: faults of method, named while they happen (docs/faults.md, kind B).

Each is a pure function of figures of one quick evaluation; nothing is remembered between two, so a
resumed run raises the same ones. An alarm fires at the first quick evaluation at or after the share
of the stage's steps below, and at every later one while it lasts.

| alarm | fault | from | fires when |
|---|---|---|---|
| `loudness` | 7 | step 1 | RMS of the soft tokens above 3 or below 1/3 of real embeddings' |
| `dead_objective` | 8, 9 | step 1 | weighted gradient by the bridge below 1e-4 of the largest, |
| | | | except constraints that are met (`Objective.at_rest`) |
| `saturation` | 10 | step 1 | over a quarter of the entries lie beyond 0.97 of tanh |
| `detached_head` | 14 | step 1 | an objective moves the latent, but nothing a receiver is given |
| `pooled` | 16 | 10 % | slots of a text are alike (cosine above 0.98), or, with every source |
| | | | token replaced by their mean, the latent moves by less than 2 % |
| `collapse` | 17 | 10 % | distinct outputs below a quarter of the distinct answers, or over |
| | | | nine in ten begin alike, and less than half as many answers do |
| `codebook_collapse` | 20 | 10 % | a batch uses few of the codes that it could |
| `ignored_latent` | 15 | 25 % | another text's latent reads as well: to 2 % of NLL or 0.01 nats, |
| | | | whichever is more, and to 0.02 of accuracy |
| `blind_flow` | - | 25 % | the flow's loss is above 0.95 of that under other texts' conditions |

The later ones wait, because a bridge that has learned nothing yet shows the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

FAULTS: Mapping[str, int | None] = {
    "loudness": 7,
    "dead_objective": 8,
    "saturation": 10,
    "detached_head": 14,
    "ignored_latent": 15,
    "pooled": 16,
    "collapse": 17,
    "codebook_collapse": 20,
    "blind_flow": None,
}
"""The fault of docs/faults.md that each alarm names; the flow's has no number."""

EARLY, LATE = 0.1, 0.25
"""Shares of a stage's steps before which some alarms keep still."""
LOUD = 3.0
DEAD = 1e-4
SATURATED = 0.25
DETACHED = 1e-6
IGNORED = 0.02
LEAST_NATS = 0.01
"""Where the answer is copied from elsewhere, 2 % of next to nothing is chance."""
ALIKE = 0.98
POOLED = 0.02
COLLAPSED = 0.25
ONE_WORD = 0.9
FEW_CODES = 0.05
LOW_ENTROPY = 0.25
BLIND = 0.95


@dataclass(frozen=True)
class Alarm:
    """One that fired. text: where, with the figures that raised it."""

    name: str
    text: str

    def __str__(self) -> str:
        fault = FAULTS[self.name]
        which = "" if fault is None else f" (fault {fault})"
        return f"ALARM {self.name}{which}: {self.text}"


def loudness(receiver: str, ratio: float) -> Iterator[Alarm]:
    """ratio: RMS of the soft tokens over that of the receiver's embeddings of real text."""
    if ratio > LOUD or ratio < 1 / LOUD:
        yield Alarm(
            "loudness", f"soft tokens are {ratio:.3g} times as loud as {receiver}'s embeddings"
        )


def saturation(receiver: str, share: float) -> Iterator[Alarm]:
    """share: of a tanh's outputs where next to no gradient comes through."""
    if share > SATURATED:
        yield Alarm(
            "saturation", f"{share:.0%} of what {receiver} is given sits where tanh is flat"
        )


def dead_objectives(norms: Mapping[str, float]) -> Iterator[Alarm]:
    """norms: of each objective's weighted gradient by the bridge; those of weight 0 left out."""
    largest = max(norms.values(), default=0.0)
    for name, norm in norms.items():
        if norm == 0 or norm < DEAD * largest:
            yield Alarm(
                "dead_objective",
                f"{name} has a gradient of norm {norm:.2g}, the largest is {largest:.2g}",
            )


def detached_heads(latent: Mapping[str, float], delivered: Mapping[str, float]) -> Iterator[Alarm]:
    """Gradient norms of each objective by the latent, and by what the receivers are given."""
    for name, norm in latent.items():
        if norm > 0 and delivered[name] <= DETACHED * norm:
            yield Alarm(
                "detached_head",
                f"{name} moves the latent (gradient {norm:.2g}) but nothing that a receiver is "
                f"given ({delivered[name]:.2g})",
            )


def ignored_latent(
    receiver: str, nll: tuple[float, float], accuracy: tuple[float, float], progress: float
) -> Iterator[Alarm]:
    """nll, accuracy: (with the row's own latent, with another row's); progress: share of steps."""
    further = nll[1] - nll[0] > max(IGNORED * nll[0], LEAST_NATS)
    apart = further or accuracy[0] - accuracy[1] > IGNORED
    if progress >= LATE and not apart:
        yield Alarm(
            "ignored_latent",
            f"{receiver} reads another text's latent as well: nll {nll[0]:.3f} and {nll[1]:.3f}, "
            f"accuracy {accuracy[0]:.3f} and {accuracy[1]:.3f}",
        )


def pooled(
    receiver: str, within_cosine: float, slots: float, moved: float, progress: float
) -> Iterator[Alarm]:
    """within_cosine: of the `slots` of a text; moved: by how much of its length the latent changes
    when every source token is replaced by their mean."""
    if progress < EARLY:
        return
    if slots >= 2 and within_cosine > ALIKE:
        yield Alarm(
            "pooled", f"the slots of a text for {receiver} are alike: cosine {within_cosine:.3f}"
        )
    elif moved < POOLED:
        yield Alarm(
            "pooled", f"the mean of the source says it all: the latent moves by {moved:.2%}"
        )


def collapse(
    receiver: str, distinct: tuple[float, float], begins: tuple[float, float], progress: float
) -> Iterator[Alarm]:
    """Of (what is written, the gold answers): distinct: different ones over rows; begins: the share
    of rows whose first token (no space) is the most frequent one."""
    if progress < EARLY:
        return
    if distinct[0] < COLLAPSED * distinct[1]:
        yield Alarm(
            "collapse", f"{receiver} gives {distinct[0]:.0%} distinct outputs for {distinct[1]:.0%}"
        )
    elif begins[0] > ONE_WORD and begins[1] < begins[0] / 2:
        yield Alarm(
            "collapse",
            f"{receiver} begins {begins[0]:.0%} of its outputs alike; {begins[1]:.0%} of the "
            "answers do",
        )


def codebook_collapse(
    usage: Mapping[str, float],
    levels: Sequence[int],
    rows: int,
    slots: float,
    progress: float,
) -> Iterator[Alarm]:
    """usage: of `lw_jax.bottlenecks.codes.usage`; levels: values of each code; rows x slots: of the
    batch."""
    if progress < EARLY or not usage or not levels:
        return
    total = rows * slots
    most = min(max(levels), total)
    even = math.log(usage["perplexity"]) / math.log(most) if most > 1 else 1.0
    used = usage["distinct"] * total / min(math.prod(levels), total)
    # The same slots in every row are 1 / rows of all.
    if even < LOW_ENTROPY or used < max(FEW_CODES, 1.5 / rows):
        yield Alarm(
            "codebook_collapse",
            f"perplexity {usage['perplexity']:.2f} of a code's {max(levels)} values, "
            f"{usage['distinct'] * total:.0f} different codes in {total:.0f} slots",
        )


def blind_flow(receiver: str, flow: float, shuffled: float, progress: float) -> Iterator[Alarm]:
    """flow: the loss; shuffled: the same under other texts' conditions."""
    if progress >= LATE and flow > BLIND * shuffled:
        yield Alarm(
            "blind_flow",
            f"the flow for {receiver} does not see its condition: loss {flow:.4f}, under another "
            f"text's {shuffled:.4f}",
        )
