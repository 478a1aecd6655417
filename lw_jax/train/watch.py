"""The quick evaluation during training: matched against deranged, samples, the collapse alarm.

"All answer tokens are the argmax under teacher forcing" is exactly "greedy decoding writes the
answer", so one scoring pass gives the exact match without decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lw_jax import bridge
from lw_jax.bridge import deliver
from lw_jax.data.example import Example
from lw_jax.errors import UserError
from lw_jax.mesh import put_batch
from lw_jax.models.generate import DecodeOptions
from lw_jax.models.head import chunked_cross_entropy
from lw_jax.objectives.base import answer_reading, segments
from lw_jax.party import Parties
from lw_jax.receiver.read import decode, expand
from lw_jax.stages.setting import Setting
from lw_jax.train.loop import Evaluation
from lw_jax.train.state import TrainState
from lw_jax.types import Array, Latent, PyTree

COLLAPSED = 0.25
"""Fewer distinct predictions than this share of the distinct answers raise the alarm (fault 17)."""
SAMPLES = 4
FIRST_TOKENS = 5


@dataclass(frozen=True)
class Scores:
    """Per row of a batch: exact [N] bool, nll [N] mean nats, first [N] int32, marks [N] int32."""

    exact: Array
    nll: Array
    first: Array
    marks: Array


jax.tree_util.register_dataclass(Scores, ["exact", "nll", "first", "marks"], [])


@dataclass(frozen=True)
class Watch:
    """Watches a stage on a fixed set of validation rows, one question a context."""

    setting: Setting
    groups: Sequence[Sequence[Example]]
    max_new: int = 16

    def __post_init__(self) -> None:
        contexts = [group[0].context_id for group in self.groups]
        if len(contexts) < 2 or len(set(contexts)) < len(contexts):
            raise UserError("eval_rows: the quick evaluation needs two or more different contexts")

    @cached_property
    def batch(self) -> Any:
        """The rows on the mesh, the contexts cut to a number that its data axis divides."""
        ways = dict(self.setting.mesh.shape)["data"]
        groups = self.groups[: max(1, len(self.groups) // ways) * ways]
        one = [group[:1] for group in groups]
        return put_batch(self.setting.mesh, self.setting.collate(one)(one))

    def _latent(self, params: PyTree, parties: Parties, batch: Any) -> Latent:
        s = self.setting
        taps = bridge.extract(s.bridge, parties.sender, batch, params["bridge"])
        return bridge.encode(s.bridge, s.dims, params["bridge"], taps)

    @cached_property
    def _score(self) -> Any:
        @partial(jax.jit, static_argnames="name")
        def score(params: PyTree, parties: Parties, batch: Any, shift: Array, name: str) -> Scores:
            latent = self._latent(params, parties, batch)
            # Contexts are all different, so the neighbour's latent is another context's.
            order = (jnp.arange(latent.slots.shape[0]) + shift) % latent.slots.shape[0]
            latent = jax.tree.map(lambda x: x[order], latent)
            given = deliver(self.setting.bridge, self.setting.dims, params["bridge"], name, latent)
            reading = answer_reading(parties, batch, name, "latent", given, 1)
            party = parties.receivers[name]
            scored = chunked_cross_entropy(party.arch, party.params, reading.hidden, reading.labels)
            right = scored.correct(reading.labels) | ~reading.mask
            tokens = jnp.maximum(1, reading.mask.sum(axis=1))
            nll = jnp.sum(scored.nll * reading.mask, axis=1) / tokens
            # A number that tells predictions apart, whatever their length.
            primes = jnp.asarray(_odd_numbers(reading.labels.shape[1]), jnp.int32)
            marks = jnp.sum((scored.argmax + 1) * primes[None] * reading.mask, axis=1)
            return Scores(right.all(axis=1), nll, scored.argmax[:, 0], marks)

        return score

    @cached_property
    def _sample(self) -> Any:
        @partial(jax.jit, static_argnames="name")
        def sample(params: PyTree, parties: Parties, batch: Any, name: str) -> Array:
            latent = self._latent(params, parties, batch)
            given = deliver(self.setting.bridge, self.setting.dims, params["bridge"], name, latent)
            laid = segments(parties, batch, name, "latent", expand(given, 1), 1, answer=False)
            party = parties.receivers[name]
            options = DecodeOptions(max_new=self.max_new, eos_ids=party.arch.eos_ids)
            out = decode(
                party.arch,
                party.params,
                laid,
                given,
                options,
                jax.random.key(0),
                attention=party.attention,
            )
            return out.ids[:SAMPLES], out.lengths[:SAMPLES]  # type: ignore[return-value]

        return sample

    def __call__(self, state: TrainState, step: int) -> Evaluation:
        """Accuracy, NLL and diversity per receiver; the score is the mean accuracy."""
        params, parties, batch = state.evaluated(), self.setting.parties, self.batch
        valid = np.asarray(batch["valid"])
        metrics: dict[str, Any] = {}
        lines: list[str] = []
        for name in self.setting.dims.receivers:
            matched, other = (
                jax.device_get(self._score(params, parties, batch, np.int32(shift), name=name))
                for shift in (0, 1)
            )
            found = {
                "accuracy": float(matched.exact[valid].mean()),
                "deranged_accuracy": float(other.exact[valid].mean()),
                "nll": float(matched.nll[valid].mean()),
                "deranged_nll": float(other.nll[valid].mean()),
                "distinct": len(set(matched.marks[valid].tolist())) / max(1, int(valid.sum())),
            }
            found["matched_minus_deranged"] = found["accuracy"] - found["deranged_accuracy"]
            metrics |= {f"{name}/{key}": value for key, value in found.items()}
            metrics[f"{name}/first_tokens"] = self._first_tokens(name, matched.first[valid])
            lines.append(_line(step, name, found))
            answers = {g[0].answers[0] for g in self.groups}
            if found["distinct"] < COLLAPSED * len(answers) / len(self.groups):
                metrics[f"{name}/alarm/collapse"] = 1
                lines.append(
                    f"ALARM collapse: {name} gives {found['distinct']:.0%} distinct predictions"
                )
            lines += self._samples(params, batch, name)
        scores = [metrics[f"{name}/accuracy"] for name in self.setting.dims.receivers]
        return Evaluation(metrics, float(np.mean(scores)), tuple(lines))

    def _first_tokens(self, name: str, first: np.ndarray) -> list[list[Any]]:
        ids, counts = np.unique(first, return_counts=True)
        top = sorted(zip(counts.tolist(), ids.tolist(), strict=True), reverse=True)[:FIRST_TOKENS]
        decode_ids = self.setting.receivers[name].tokenizer.decode
        return [[decode_ids([i], skip_special_tokens=False), c / len(first)] for c, i in top]

    def _samples(self, params: PyTree, batch: Any, name: str) -> list[str]:
        ids, lengths = jax.device_get(self._sample(params, self.setting.parties, batch, name=name))
        lines = []
        for row, length, group in zip(ids, lengths, self.groups, strict=False):
            text = self.setting.receivers[name].tokenizer.decode(row[:length].tolist())
            asked = group[0].question or "(read back)"
            lines.append(f"  {asked} -> {text.strip()!r} ({group[0].answers[0][:80]!r})")
        return lines


def _odd_numbers(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 2**15, count) * 2 + 1


def _line(step: int, name: str, found: dict[str, float]) -> str:
    return (
        f"step {step} {name}: accuracy {found['accuracy']:.3f} "
        f"(deranged {found['deranged_accuracy']:.3f}), nll {found['nll']:.3f} "
        f"(deranged {found['deranged_nll']:.3f}), distinct {found['distinct']:.2f}"
    )
