"""The mixture of text tasks that the small models are pretrained on.

facts       a context, some questions on it, the anchor "Answer:"
facts_copy  a context, the anchor "Repeat:", the context
gsm8k_copy  a GSM8K problem with other names and numbers, "Repeat:", the problem
gsm8k_solve a GSM8K problem with other names, "Answer:", its worked solution
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from lw_jax.data import gsm8k
from lw_jax.data.augment import Piece, excerpt, pieces, proper_names, rewrite
from lw_jax.data.example import Example, Remark, check_split, rng_of
from lw_jax.data.facts import FactsRows
from lw_jax.errors import UserError
from lw_jax.utils.checks import at_least

ANSWER = "\nAnswer:"
REPEAT = "\nRepeat:"


@dataclass(frozen=True, slots=True)
class TextTask:
    """One text to learn from.

    Attributes:
        example: context, question or "", and the answer `answers[0]`.
        anchor: literal before the answer.
    """

    example: Example
    anchor: str


@dataclass(frozen=True)
class Shares:
    """How often each task comes, relative to the others.

    Attributes:
        facts: questions on facts.
        facts_copy: facts to copy.
        gsm8k_copy: GSM8K problems to copy.
        gsm8k_solve: GSM8K problems to solve.
    """

    facts: float = 0.6
    facts_copy: float = 0.1
    gsm8k_copy: float = 0.2
    gsm8k_solve: float = 0.1

    def __post_init__(self) -> None:
        names = [field.name for field in fields(self)]
        at_least(self, 0, *names)
        if not any(getattr(self, name) for name in names):
            raise UserError(f"facts: at least one share must be above 0 of {', '.join(names)}")


def mixture(
    shares: Shares,
    split: str,
    seed: int,
    *,
    problems: gsm8k.Config | None = None,
    levels: Sequence[int] = (1, 2, 4, 6, 6, 6),
    questions: int = 4,
    shared: float = 0.0,
    size: int = 100_000_000,
) -> MixtureRows:
    """The mixture's rows.

    Args:
        shares: how often each task comes.
        split: the split.
        seed: seed of the draws.
        problems: GSM8K; needed only if one of its shares is above 0.
        levels: numbers of sentences in a context of facts.
        questions: number of questions on a context of facts.
        shared: see `draw_facts`.
        size: number of rows.

    Raises:
        UserError: GSM8K is missing, or what `gsm8k.rows` raises.
    """
    named = check_split(split)
    texts: list[tuple[str, str]] = []
    malformed: Sequence[str] = ()
    remarks: Sequence[Remark] = ()
    if shares.gsm8k_copy or shares.gsm8k_solve:
        if problems is None:
            raise UserError("gsm8k_train: missing; gsm8k_copy and gsm8k_solve need its rows")
        read = replace(problems, task="solve").rows(named, seed)
        texts = [(group[0].context, group[0].answers[0]) for group in read.groups]
        malformed, remarks = read.malformed, read.remarks
    facts = FactsRows(named, seed, levels, size, questions, shared=shared)
    return MixtureRows(shares, facts, texts, malformed, remarks)


class MixtureRows:
    """`rows[i]` -> the texts of one context; a pure function of i, the seed and the split."""

    def __init__(
        self,
        shares: Shares,
        facts: FactsRows,
        problems: Sequence[tuple[str, str]],
        malformed: Sequence[str] = (),
        remarks: Sequence[Remark] = (),
    ) -> None:
        self.facts = facts
        self.copied = FactsRows(facts.split, facts.seed, facts.levels, facts.size, task="readback")
        self.malformed = malformed
        self.remarks = tuple(remarks)
        self.tasks = [(f.name, getattr(shares, f.name)) for f in fields(shares)]
        self.total = sum(share for _, share in self.tasks)
        names = proper_names(text for pair in problems for text in pair)
        known = frozenset(names)
        self.names = tuple(names)
        self.problems: list[tuple[tuple[Piece, ...], tuple[Piece, ...]]] = [
            (pieces(problem, known), pieces(solution, known)) for problem, solution in problems
        ]

    def __len__(self) -> int:
        return self.facts.size

    def __getitem__(self, index: int, /) -> tuple[TextTask, ...]:
        name = f"pretraining-{self.facts.split}-{self.facts.seed}-{index}"
        rng = rng_of(name)
        task = self._task(rng.random() * self.total)
        if task == "facts":
            return tuple(TextTask(example, ANSWER) for example in self.facts[index])
        if task == "facts_copy":
            return tuple(TextTask(example, REPEAT) for example in self.copied[index])
        problem, solution = self.problems[int(rng.random() * len(self.problems))]
        mapping: dict[str, str] = {}
        context = rewrite(problem, mapping, self.names, rng, numbers=task == "gsm8k_copy")
        if task == "gsm8k_copy":
            if rng.random() < 0.3:
                context = excerpt(context, rng)
            return (TextTask(Example(f"{name}/{task}", name, context, "", (context,)), REPEAT),)
        answer = rewrite(solution, mapping, self.names, rng, numbers=False)
        return (TextTask(Example(f"{name}/{task}", name, context, "", (answer,)), ANSWER),)

    def _task(self, place: float) -> str:
        for name, share in self.tasks:
            if place < share:
                return name
            place -= share
        return name
