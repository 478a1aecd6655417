"""What the objectives of a step see, each part computed once and only if it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import jax
import jax.numpy as jnp

from lw_jax.bridge.bridge import Bridge
from lw_jax.errors import UserError
from lw_jax.layers.intermediates import Intermediates
from lw_jax.models.dims import BridgeDims
from lw_jax.models.frozen import FrozenModels
from lw_jax.models.head import TokenScores, chunked_cross_entropy, chunked_scores_and_kl
from lw_jax.receiver import answer
from lw_jax.receiver.read import Reading, expand
from lw_jax.receiver.transform import transformed
from lw_jax.types import Array, Delivery, Edits, Latent, Lora, PyTree, Taps

_DROPOUT, _SAMPLING = 63, 62
"""Keys of latent dropout and of scheduled sampling (see `Context.apply`)."""


@dataclass(frozen=True)
class Pass:
    """One run of a receiver that objectives ask for; each is computed once a step.

    Attributes:
        message: what stands in the message's place; `teacher` is the text as a tuned receiver reads
            it (`FrozenModels.teachers`).
        gradient: whether it is differentiated.
        adapted: whether a receiver that is given no latent has its trained LoRA (with a latent it
            always has).
    """

    message: Literal["latent", "text", "none", "teacher"]
    gradient: bool = True
    adapted: bool = False


TEACHER = Pass("text", gradient=False)
"""What a teacher says: it depends on the frozen receiver and the row alone, so it may be kept."""
TUNED = Pass("teacher", gradient=False)
"""What a tuned teacher says: it depends on what the receiver is given for every text as well."""
KEPT = {TEACHER: "teacher", TUNED: "tuned"}
"""The readings that may be kept, with their names in a batch."""


def kept_states(receiver: str, asked: Pass = TEACHER) -> str:
    """The key in a batch of a teacher's states [N, A, D] at the answers, where they are kept;
    `asked` is one of `KEPT`."""
    return f"{receiver}/{KEPT[asked]}"


@dataclass(frozen=True, eq=False)
class Context:
    """What the objectives of one microbatch see; built inside the step's trace.

    What nobody asks for is not computed: a flow's step makes no latent.

    Attributes:
        bridge: the bridge.
        params: its parameters.
        frozen: the frozen models.
        batch: of `lw_jax.text.collate`.
        views: the frozen part of every view of the source.
        rng: the objectives'.
        train: whether dropout is on.
        heads: parameters of the heads of the objective that looks.
        latent_keep: probability of every slot not to be zeroed (latent dropout); None: all stay.
        scheduled_sampling: probability of every gold answer token to give way to the receiver's
            own; None: all stay.
        step: of the stage, from 0 on; None: not a step of training.
        shared_text: whether a teacher reads a text once for all of its questions.
        together: tokens that the questions of a context have behind one copy of the message; None:
            each question has a row of its own. Those that find no room are not `valid`.
        tau: temperature at which an objective of the step compares the answers with the receiver's
            on the text; None: none does.
        readings: what receivers have read so far, by receiver and pass.
        computed: what was made so far, by name. All objectives of a step share both.
    """

    bridge: Bridge
    params: PyTree
    frozen: FrozenModels
    batch: dict[str, Array]
    views: dict[str, Taps]
    rng: Array
    train: bool = True
    heads: PyTree = None
    latent_keep: Array | None = None
    scheduled_sampling: Array | None = None
    step: Array | None = None
    shared_text: bool = False
    together: int | None = None
    tau: float | None = None
    readings: dict[tuple[str, Pass], Reading] = field(default_factory=dict)
    computed: dict[str, Any] = field(default_factory=dict)

    def with_heads(self, heads: PyTree) -> Self:
        """The same as another objective sees it: what is computed for one is there for all."""
        return replace(self, heads=heads)

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self.computed:
            self.computed[name] = make()
        return self.computed[name]

    @property
    def encoded(self) -> tuple[Latent, Intermediates]:
        """The latent of the B contexts, and what the parts sowed while making it."""
        found: tuple[Latent, Intermediates] = self._once("encoded", self._encode)
        return found

    def _encode(self) -> tuple[Latent, Intermediates]:
        latent, intermediates = self.apply(self.views, method="encode", key=0)
        if self.latent_keep is not None:
            rng = jax.random.fold_in(self.rng, _DROPOUT)
            stays = jax.random.bernoulli(rng, self.latent_keep, latent.mask.shape)
            # Zeroed, not masked: the slots that are left stay where they are.
            latent = latent.replace(slots=latent.slots * stays[..., None])
        return latent, intermediates

    @property
    def latent(self) -> Latent:
        """The latent as it leaves the wire."""
        return self.encoded[0]

    @property
    def intermediates(self) -> Intermediates:
        """What the source, the compressor and the bottleneck sowed."""
        return self.encoded[1]

    @property
    def given(self) -> dict[str, tuple[Delivery, Intermediates]]:
        """What each receiver is given, of the B contexts, and what its readers sowed."""
        found: dict[str, tuple[Delivery, Intermediates]] = self._once("given", self._give)
        return found

    def _give(self) -> dict[str, tuple[Delivery, Intermediates]]:
        found = {}
        for i, name in enumerate(self.dims.receivers):
            given, sown = self.apply(name, self.latent, method="deliver", key=1 + i)
            model, prompt = self.frozen.receivers[name], self.frozen.prompt(name)
            rms = self.dims.receivers[name].embed_rms
            found[name] = transformed(model, prompt, given, rms), sown
        return found

    @property
    def deliveries(self) -> dict[str, Delivery]:
        """What each receiver is given, of the B contexts."""
        return {name: delivery for name, (delivery, _) in self.given.items()}

    def reader_intermediates(self, receiver: str) -> Intermediates:
        """What a receiver's readers sowed, by variant: `["soft_tokens"]["saturation"]`."""
        found: Intermediates = self.given[receiver][1].get("readers", {}).get(receiver, {})
        return found

    @property
    def dims(self) -> BridgeDims:
        """Sizes of the frozen models."""
        return self.bridge.dims

    @property
    def taps(self) -> Taps:
        """The frozen part of the source; of several views, the first."""
        return next(iter(self.views.values()))

    @property
    def made(self) -> bool:
        """Whether something has asked for the latent."""
        return "encoded" in self.computed

    @property
    def delivered(self) -> bool:
        """Whether something has asked for the deliveries."""
        return "given" in self.computed

    def apply(self, *arguments: Any, method: str, key: int) -> tuple[Any, Intermediates]:
        """A method of the bridge, with randomness of its own (`key` 64 and above are free)."""
        rng = jax.random.fold_in(self.rng, key)
        return self.bridge.apply(self.params, *arguments, method=method, train=self.train, rng=rng)

    @property
    def valid(self) -> Array:
        """[N] bool: questions that count."""
        return self.batch["valid"]

    @property
    def valid_contexts(self) -> Array:
        """[B] bool: contexts of which a question counts."""
        return jnp.any(self.valid.reshape(-1, self.questions), axis=1)

    @property
    def questions(self) -> int:
        """Questions per context, Q."""
        return self.valid.shape[0] // self.taps.mask.shape[0]

    def lora(self, receiver: str) -> Lora:
        """The trained edits of a receiver's projections.

        Raises:
            UserError: its readers make none.
        """
        edits = self.deliveries[receiver].edits
        if edits is None or edits.lora is None:
            raise UserError(
                f"bridge.reader: no low-rank edits; nothing that is trained reads the text for "
                f"receiver {receiver!r}: set bridge.reader.lora, or another objective"
            )
        return edits.lora

    def reading(self, receiver: str, asked: Pass) -> Reading:
        """The receiver's states at the answer, for one pass."""
        key = (receiver, asked)
        if key not in self.readings:
            given = self.deliveries[receiver] if asked.message == "latent" else None
            if asked.adapted and asked.message != "latent":
                given = Delivery(edits=Edits(lora=self.lora(receiver)))
            batch, gold = self.batch, self.batch[f"{receiver}/answer/ids"]
            if self.scheduled_sampling is not None and asked.message == "latent" and asked.gradient:
                batch = batch | {f"{receiver}/answer/ids": self._own_tokens(receiver)}
            model, prompt = self.frozen.receivers[receiver], self.frozen.prompt(receiver)
            copies = self.questions if self.together is None else 1
            if asked.message == "teacher":
                teacher = self.frozen.teachers[receiver]
                contexts, prompt = self.taps.mask.shape[0], teacher.prompt
                given = expand(teacher.delivery, contexts)
            kind = "latent" if asked.message == "teacher" else asked.message
            message = answer.message_of(model, prompt, batch, receiver, kind, given, copies)
            segments = answer.asked(batch, receiver)
            reading = answer.reading(model, prompt, message, *segments, together=self.together)
            reading = reading.replace(labels=gold)  # type: ignore[attr-defined]
            if asked in KEPT and (kept := kept_states(receiver, asked)) in batch:
                # What ran above for it is used by nobody, and is left out of the program.
                reading = reading.replace(hidden=batch[kept])
            elif asked == TEACHER and self.shared_text and self.questions > 1:
                ids, lengths = (batch[f"{receiver}/context/{part}"] for part in ("ids", "lengths"))
                rest = answer.asked(batch, receiver)
                hidden = answer.of_shared_text(model, prompt, ids, lengths, *rest)
                reading = reading.replace(hidden=hidden)  # the same
            if not asked.gradient:
                reading = jax.lax.stop_gradient(reading)
            self.readings[key] = reading
        return self.readings[key]

    def taught(self, receiver: str) -> Reading:
        """The receiver's teacher, which reads the text: a tuned one if there is one, else the clean
        receiver itself. No gradient."""
        tuned = receiver in self.frozen.teachers
        return self.reading(receiver, TUNED if tuned else TEACHER)

    def answers(self, receiver: str) -> tuple[TokenScores, Array | None]:
        """Scores [N, A] of the answers' tokens read from the latent, and the divergence [N, A] from
        the receiver on the text at `tau`; None: no objective of the step compares them, or the
        receiver is in float32, where each objective makes a pass of its own."""
        found: tuple[TokenScores, Array | None] = self._once(
            f"answers/{receiver}", lambda: self._scored(receiver)
        )
        return found

    def _scored(self, receiver: str) -> tuple[TokenScores, Array | None]:
        model, read = self.frozen.receivers[receiver], self.reading(receiver, Pass("latent"))
        # In float32 the order in which gradients are added would show: it stays what it was.
        if self.tau is None or read.hidden.dtype == jnp.float32:
            scored = chunked_cross_entropy(
                model.arch, model.params, read.hidden, read.labels, mask=read.mask
            )
            return scored, None
        return chunked_scores_and_kl(
            model.arch,
            model.params,
            read.hidden,
            self.taught(receiver).hidden,
            read.labels,
            self.tau,
            mask=read.mask,
        )

    def scored(self, receiver: str) -> bool:
        """Whether something has asked for `answers`."""
        return f"answers/{receiver}" in self.computed

    def _own_tokens(self, receiver: str) -> Array:
        """[N, A] answer tokens, some of them the receiver's most probable ones."""
        model = self.frozen.receivers[receiver]
        read = self.reading(receiver, Pass("latent", gradient=False))
        own = chunked_cross_entropy(model.arch, model.params, read.hidden, read.labels).argmax
        which = jax.random.fold_in(self.rng, _SAMPLING)
        rng = jax.random.fold_in(which, list(self.dims.receivers).index(receiver))
        assert self.scheduled_sampling is not None
        swapped = jax.random.bernoulli(rng, self.scheduled_sampling, own.shape)
        return jnp.where(swapped & read.mask, own, read.labels)
