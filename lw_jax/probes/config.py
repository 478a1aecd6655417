"""How much is probed; it imports no jax."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, MinLen

from lw_jax.utils.bounds import (
    FEW,
    BatchSize,
    Checked,
    Heads,
    Layers,
    LearningRate,
    Location,
    Names,
    Ratio,
    Rows,
    Seed,
    Steps,
    Text,
    Weight,
    Width,
    Word,
)

AtLeastTwo = Annotated[int, Ge(2), Le(10**6)]


@dataclass(frozen=True)
class LeakConfig(Checked):
    """An inverter that is trained to write the text of a message.

    Args:
        rows: texts that it is trained on.
        eval_rows: other texts, with names and numbers planted that no training text has.
        steps: of each inverter's training.
        batch_size: texts in a step.
        lr: the learning rate at its highest, of Muon; Adam, for all but matrices, has a tenth.
        width: of the inverter.
        depth: its layers.
        heads: attention heads of a layer.
        codecs: in which messages are sent; empty: the bridge's own, int8 and int4.
        ratios: source tokens a slot; empty: those that the bridge was trained for.
        inverters: which are trained, of message, receiver and prior (which sees nothing of what a
            message says); empty: all.
        texts: a file with a text a line, used in place of the run's rows; null: these.
        seed: of the texts, what is planted, and the inverters.
    """

    rows: AtLeastTwo = 2000
    eval_rows: AtLeastTwo = 200
    steps: Steps = 600
    batch_size: BatchSize = 32
    lr: LearningRate = 0.02
    width: Width = 128
    depth: Layers = 2
    heads: Heads = 4
    codecs: Names = ()
    ratios: Annotated[tuple[Ratio, ...], FEW] = ()
    inverters: Names = ()
    texts: Location | None = None
    seed: Seed = 42


@dataclass(frozen=True)
class HostileConfig(Checked):
    """Messages that are optimised against the frozen receiver, and a gate that looks for them.

    Args:
        rows: messages, each with a question and an answer that is not the text's.
        steps: of each message's optimisation (Adam).
        lr: of it, in units of the root mean square of honest slots.
        codecs: in which messages are sent, the gate being fitted to the first; empty: the bridge's
            own, int8 and int4 (of a bridge with codes its codes).
        limits: largest norms of a slot, in units of the median of honest ones; 0: none.
        target: the answer that is aimed at; "": that of another row to a question of its own.
        honest: messages that the gate is fitted to; of as many others its false alarms.
        alarms: share of honest messages that the gate may refuse.
        aware: weight of the gate's measures in the loss of those who know it.
        seed: of the rows.
    """

    rows: AtLeastTwo = 48
    steps: Steps = 60
    lr: LearningRate = 0.1
    codecs: Names = ()
    limits: Annotated[tuple[Annotated[float, Ge(0), Le(10**6)], ...], FEW, MinLen(1)] = (
        1.0,
        2.0,
        0.0,
    )
    target: Text = ""
    honest: AtLeastTwo = 1000
    alarms: Annotated[float, Gt(0), Le(0.5)] = 0.01
    aware: Weight = 10.0
    seed: Seed = 42


@dataclass(frozen=True)
class SkillConfig(Checked):
    """What the receiver still can do with a message before it that it does not need.

    Args:
        rows: texts, and questions about them.
        texts: a file with a text a line, of which perplexity is taken; null: the run's rows.
        instructions: a file of JSON lines with `prompt` and `answer`; null: questions of the run's
            rows, with the text that answers them in words.
        seed: of the rows.
    """

    rows: Rows = 200
    texts: Location | None = None
    instructions: Location | None = None
    seed: Seed = 42


@dataclass(frozen=True)
class OracleConfig(Checked):
    """Soft tokens of each passage that are optimised for the frozen receiver.

    Args:
        passages: how many, spread evenly over the run's evaluation rows.
        ratios: receiver tokens a soft token; where the bridge sends at such a ratio (of its source
            tokens) there are as many as it delivers.
        starts: what the soft tokens begin as: what the `bridge` delivers, the mean of the `words`
            under each, or `random` embeddings; the others are as loud as the bridge's.
        steps: of each optimisation (Adam; the rate falls to nothing in a straight line).
        lr: its first rate, in units of the root mean square of the soft tokens.
        gaps: stretches of the passage with a gap, whose words are asked for beside the passage
            itself; 0: it is read back and nothing else.
        anchor: literal after which the passage is written.
        text: directory of a run whose receiver is tuned for reading the text, for a line of its
            own; null: none.
        batch_size: passages at once.
        seed: of what is drawn.
    """

    passages: AtLeastTwo = 64
    ratios: Annotated[tuple[Ratio, ...], FEW, MinLen(1)] = (2.0, 4.0, 8.0, 16.0)
    starts: Annotated[tuple[Literal["bridge", "words", "random"], ...], FEW, MinLen(1)] = (
        "bridge",
        "random",
    )
    steps: Steps = 200
    lr: LearningRate = 0.1
    gaps: Annotated[int, Ge(0), Le(64)] = 4
    anchor: Word = "\nRepeat:"
    text: Location | None = None
    batch_size: BatchSize = 32
    seed: Seed = 42
