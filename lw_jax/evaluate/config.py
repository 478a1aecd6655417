"""The config of decoding and of the stage that compares methods."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Le, MaxLen, MinLen

from lw_jax.data.config import DataConfig
from lw_jax.errors import UserError
from lw_jax.evaluate.methods import (
    controls,
    default_methods,
    in_order,
    is_method,
    method,
)
from lw_jax.text.layout_config import LayoutConfig
from lw_jax.utils.bounds import (
    FEW,
    BatchSize,
    Checked,
    LayersOrNone,
    Location,
    Name,
    Names,
    Probability,
    Ratio,
    RowsOrNone,
    Seed,
    Tokens,
    TokensOrNone,
    Words,
)
from lw_jax.utils.checks import distinct


def _check_stop(stop: Sequence[str]) -> None:
    """Raises UserError if a stop would end every answer before it begins."""
    for text in stop:
        if not text.strip(" "):
            raise UserError(
                f"stop: {text!r} would end every answer before it begins (a space comes first); "
                r'give strings such as "\n", or [] for none'
            )


@dataclass(frozen=True)
class DecodeConfig(Checked):
    """Decoding (docs/design.md section 8, decode controls). Greedy unless a temperature is given.

    `max_new_tokens`, `stop`, `temperature` and `top_p` are of every method. All others are meant
    for the wire: they act on what is read over a bridge (`latent`, `latent_<codec>`, `rivals`) and
    on the controls that it is held against (`no_message`, `zero`, `mean`, `deranged`), which are
    decoded as the latent is; never on `text`, token budgets, `pca`, `relay` or a text's replayed
    embeddings.

    Args:
        max_new_tokens: tokens decoded at most.
        stop: strings at the first of which an answer ends, as it does at EOS; null: by the task (a
            line break where answers are short; none where a text is read back or continued, a
            problem solved, or the question written before the answer); []: none.
        min_new_tokens: neither EOS nor a token that holds a stop before so many.
        eos_ban_steps: steps from the start in which EOS is forbidden.
        temperature, top_p: sampling; temperature 0 is greedy.
        first_token_temperature, first_token_top_p: the same, for the first token alone; null: as
            for the others.
        first_token_stop_list: strings whose tokens cannot come first.
        prefix_gain: gain on what is delivered, per decode step; the last one holds.
    """

    max_new_tokens: Tokens = 12
    stop: Words | None = None
    min_new_tokens: TokensOrNone = 0
    eos_ban_steps: TokensOrNone = 0
    temperature: Annotated[float, Ge(0), Le(100)] = 0.0
    top_p: Probability = 1.0
    first_token_temperature: Annotated[float, Ge(0), Le(100)] | None = None
    first_token_top_p: Probability | None = None
    first_token_stop_list: Words = ()
    prefix_gain: Annotated[tuple[Annotated[float, Ge(0), Le(1000)], ...], MinLen(1), FEW] = (1.0,)

    def __post_init__(self) -> None:
        if self.min_new_tokens > self.max_new_tokens:
            raise UserError(
                f"min_new_tokens: {self.min_new_tokens} is above max_new_tokens "
                f"{self.max_new_tokens}"
            )
        _check_stop(self.stop or ())


@dataclass(frozen=True)
class ProbeConfig(Checked):
    """Linear probes of the frozen models: the label read off the mean hidden state of a text.

    Layer and regularisation are chosen on a fifth of the training rows, held out; the probe is then
    fitted on all of them.

    Args:
        rows: training rows (questions) that a probe is fitted on.
        layers: tried, as the number of layers run before them (0: the embeddings); empty for all
            that are loaded.
        l2: regularisation strengths tried.
    """

    rows: Annotated[int, Ge(10), Le(10**7)] = 2000
    layers: Annotated[tuple[LayersOrNone, ...], FEW] = ()
    l2: Annotated[tuple[Annotated[float, Ge(0), Le(10**6)], ...], MinLen(1), FEW] = (
        0.001,
        0.01,
        0.1,
    )


@dataclass(frozen=True)
class RelayConfig(Checked):
    """What the sender is asked for in the method `relay`: the receiver then reads what it wrote.

    Args:
        prompt: literal after the text, no trailing space: `Repeat:` for a copy, `Summary:`, ...
        with_question: the sender is shown the question before it; with the prompt `Answer:` it
            answers, and the receiver has the answer for a text.
        max_new_tokens: written at most; null: as many as the longest text has.
        stop: strings at the first of which its text ends, as it does at EOS; []: none. (What the
            receiver then writes ends as `decode.stop` says.)
    """

    prompt: Annotated[str, MinLen(1), MaxLen(100_000)] = "\nRepeat:"
    with_question: bool = False
    max_new_tokens: Tokens | None = None
    stop: Words = ()

    def __post_init__(self) -> None:
        if self.prompt != self.prompt.rstrip():
            raise UserError(
                f"prompt: expected a literal without trailing space; got {self.prompt!r}"
            )
        _check_stop(self.stop)


@dataclass(frozen=True)
class NormalisedConfig(Checked):
    """The two ends of the teacher-normalised score (docs/design.md section 8).

    Args:
        text: lines whose receiver is given the text (names of `rivals` that were tuned for it, or
            methods); the one with the best F1 is the end where the score is 1.
        nothing: the line whose receiver is given nothing, where it is 0: a tuned one of `rivals`,
            or `no_message`.
    """

    text: Annotated[tuple[Name, ...], MinLen(1), FEW]
    nothing: Name

    def __post_init__(self) -> None:
        distinct(self, "text")
        if self.nothing in self.text:
            raise UserError(f"nothing: {self.nothing!r} is a line of text as well; name another")


@dataclass(frozen=True)
class EvaluateConfig(Checked):
    """A stage that compares methods on the same held-out rows (docs/design.md section 8).

    Args:
        methods: methods to run; the controls are always run with `latent`. All but `relay` and
            `token_budget_surprisal`, which load the whole sender, `token_budget_bytes`,
            `token_budget_sentences`, `token_budget_kv_<what>`, `pca` and `deranged_near` unless
            they are named.
        wire: codecs (float16, int8, int6, int4, ...) in which the latent is sent as well, whatever
            the bridge was trained for: methods `latent_float16`, ...
        replay: changes of the text's own embeddings that are read as well: methods
            `embedding_replay_rms`, ... (`rms`, `batch`, `scale_0.5`, `nearest_4`, `offset_0.5`,
            `codebook_0.1`; see `lw_jax/evaluate/methods/embedding_replay.py`).
        rows: rows (questions) evaluated; 0 for all.
        batch_size: rows at once.
        checkpoint: `last` or `best` of the stage before.
        init_from: run directory of another run, or exported bridge, that is evaluated; null: the
            bridge of this run.
        rivals: finished runs, or exported bridges, between the same receivers, by the names of
            their lines: each reads the same rows over its own bridge, from its own source, in its
            own layout (a rival that is trained, or another bridge).
        layout: another receiver's sequence than that of training, which is then said beside the
            figures; null: training's.
        ratio: source tokens a slot, of a bridge trained for several; null: as its config says.
        view: the view of the text that latents are made from, of a bridge that makes them from one
            of several (`compressor.interlingua`); null: as its config says.
        decode: decoding.
        data: other rows than the config's; null for the config's.
        seed: seed of the rows' order and of the bootstrap.
        bootstrap: resamples for the 95 % intervals; of fewer than 40 none lies beyond an end.
        relay: what the sender writes in the method `relay`.
        normalised: lines that every other one is measured between, as a share of what the text is
            worth; null: none.
        probe: linear probes of the sender and the receivers, where answers are a few labels.
        candidates: the answers that a receiver chooses from, by their log-probability after its
            message (`choice`, beside what it writes); null: the labels of data that has a few
            (`topics`, `classification`); []: nothing is chosen.
    """

    methods: Annotated[tuple[Name, ...], MinLen(1), FEW] = field(default_factory=default_methods)
    wire: Names = ()
    replay: Names = ()
    rows: RowsOrNone = 1000
    batch_size: BatchSize = 64
    checkpoint: Literal["last", "best"] = "last"
    init_from: Location | None = None
    rivals: Annotated[dict[Name, Location], FEW] = field(default_factory=dict)
    layout: LayoutConfig | None = None
    ratio: Ratio | None = None
    view: Name | None = None
    decode: DecodeConfig = DecodeConfig()
    data: DataConfig | None = None
    seed: Seed = 12345
    bootstrap: Annotated[int, Ge(40), Le(10**6)] = 2000
    relay: RelayConfig = RelayConfig()
    normalised: NormalisedConfig | None = None
    probe: ProbeConfig | None = None
    candidates: Words | None = None

    def __post_init__(self) -> None:
        distinct(self, "methods", "wire", "replay")
        for name in (*self.methods, *self.changed):
            method(name)
        for name in self.rivals:
            if is_method(name) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
                raise UserError(
                    f"rivals.{name}: a line's name has letters, digits, - and _ only, and is no "
                    "method's"
                )
        whole = [name for name in self.all_methods if method(name).latent != "near"]
        lines = [*whole, *self.rivals]
        ends = () if self.normalised is None else (*self.normalised.text, self.normalised.nothing)
        for name in ends:
            if name not in lines:
                raise UserError(
                    f"normalised: {name!r} is no line of all rows of this evaluation; there are "
                    f"{', '.join(lines)}"
                )
        words = [word.strip() for word in self.candidates or ()]
        if self.candidates and (len(set(words)) < max(2, len(words)) or not all(words)):
            raise UserError(
                f"candidates: expected two or more different answers; got {list(words)}"
            )

    @property
    def of_whole_sender(self) -> tuple[str, ...]:
        """The methods that need the complete sender, with its head."""
        named = {name: method(name) for name in self.methods}
        return tuple(name for name, one in named.items() if one.relayed or one.surprisal)

    @property
    def of_articles(self) -> tuple[str, ...]:
        """The methods that need contexts of the same article."""
        return tuple(name for name in self.all_methods if method(name).latent == "near")

    @property
    def changed(self) -> tuple[str, ...]:
        """The methods that `wire` and `replay` ask for."""
        sent = (f"latent_{codec}" for codec in self.wire)
        return (*sent, *(f"embedding_replay_{change}" for change in self.replay))

    @property
    def all_methods(self) -> tuple[str, ...]:
        """The methods to run, in the order of the table; the controls come with `latent`."""
        always = controls() if "latent" in self.methods else ()
        return tuple(in_order((*self.methods, *always, *self.changed)))
