"""The quick evaluation during training: matched against deranged, slots, gradients, alarms.

What runs on the devices is in `evaluate/latents.py` and `train/gradients.py`; here its figures
become metrics, lines and alarms.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from lw_jax.data.example import Example
from lw_jax.errors import UserError
from lw_jax.evaluate import latents
from lw_jax.evaluate.metrics import entity_transfer, solved, squad
from lw_jax.evaluate.metrics.base import Prediction, Rows
from lw_jax.evaluate.slots import NEAREST, ranked, spelled
from lw_jax.mesh import fetch, put_batch, ways
from lw_jax.pipeline import Pipeline
from lw_jax.text.layout import written as to_write
from lw_jax.text.stop import Stop, stop_of
from lw_jax.train import alarms
from lw_jax.train.alarms import Alarm
from lw_jax.train.gradients import objective_gradients
from lw_jax.train.loop import Evaluation
from lw_jax.train.plan import Plan, plan_at
from lw_jax.train.state import TrainState
from lw_jax.types import PyTree
from lw_jax.utils.compile import Behind

SAMPLES = 4
FIRST_TOKENS = 5
PULLED, SCORED = 0.03, 0.02
"""Shares of the time between two looks that one may take, for gradients and for first tokens."""


@dataclass(frozen=True)
class QuickEvaluation:
    """Watches a stage on a fixed set of validation rows, one question a context.

    Attributes:
        pipeline: the frozen models and the bridge.
        groups: the rows.
        objectives: the stage's; None: only what is written matters.
        steps: of the stage.
        microbatch: number of contexts that the gradients of each objective are taken on.
        max_new: number of tokens that are written.
        stop: strings at which an answer ends.
        watch_every: steps between two looks (`watch`).
        contexts: contexts in a step.
        ends_in_number: whether answers are solutions that end in their number.
    """

    pipeline: Pipeline
    groups: Sequence[Sequence[Example]]
    objectives: Any = None
    steps: int = 1
    microbatch: int = 8
    max_new: int = 16
    stop: tuple[str, ...] = ()
    watch_every: int = 0
    contexts: int = 1
    ends_in_number: bool = False

    def __post_init__(self) -> None:
        contexts = [group[0].context_id for group in self.groups]
        if len(contexts) < 2 or len(set(contexts)) < len(contexts):
            raise UserError("eval_rows: the quick evaluation needs two or more different contexts")

    @cached_property
    def batch(self) -> Any:
        """The rows on the mesh, the contexts cut to a number that its data axis divides; fewer than
        that are filled up with rows that do not count."""
        parts, own = ways(self.pipeline.mesh, "rows"), list(self.groups)
        groups = own[: max(1, len(own) // parts) * parts]
        filled = [groups[i % len(groups)][:1] for i in range(max(len(groups), parts))]
        host = self.pipeline.collate(filled)(filled)
        host["valid"] = host["valid"] & (np.arange(len(filled)) < len(groups))
        return put_batch(self.pipeline.mesh, host)

    @cached_property
    def _few(self) -> Any:
        """The first rows of the batch, as many as a training step takes at once."""
        parts = ways(self.pipeline.mesh, "rows")
        rows = max(1, min(self.microbatch, self.batch["valid"].shape[0]) // parts) * parts
        few = {key: fetch(x)[:rows] for key, x in self.batch.items()}
        return put_batch(self.pipeline.mesh, few)

    @cached_property
    def _starts(self) -> dict[str, np.ndarray]:
        """Per receiver [N]: the index of the first gold token that is no space."""
        return {name: fetch(self.batch[f"{name}/answer/start"]) for name in self.pipeline.receivers}

    def __call__(self, state: TrainState, step: int) -> Evaluation:
        """Accuracy, NLL, diversity and slots per receiver, gradients per objective; the score is
        the mean accuracy."""
        params = state.evaluated()["bridge"]
        metrics: dict[str, Any] = {}
        lines: list[str] = []
        raised: list[Alarm] = []
        rows = self.pipeline.with_taps(self.batch)
        for name in self.pipeline.bridge.dims.receivers:
            found, first = self._scores(params, name, rows)
            written = self._written(params, name, rows)
            found["distinct"] = len(set(written)) / max(1, len(written))
            found |= self._of_written(name, written)
            slots_of, more, spelled_as = self._slots(params, name, rows)
            metrics |= {f"{name}/{key}": value for key, value in (found | slots_of | more).items()}
            metrics[f"{name}/first_tokens"] = self._first_tokens(name, first)
            lines += _lines(step, name, found, slots_of)
            raised += self._raised(name, found, slots_of, more, step / self.steps)
            lines += self._samples(name, written)
            if spelled_as:
                metrics[f"{name}/slots/spelled"] = spelled_as
                lines.append(f"  nearest tokens: {spelled_as[0]!r}")
        if self.objectives is not None:
            seen, alarmed = self._gradients(state, step)
            metrics |= seen
            raised += alarmed
        metrics |= {f"alarm/{alarm.name}": 1 for alarm in raised}
        if raised:
            metrics["alarms"] = [str(alarm) for alarm in raised]
        scores = [metrics[f"{name}/accuracy"] for name in self.pipeline.bridge.dims.receivers]
        shown = (*lines, *(str(alarm) for alarm in raised))
        return Evaluation(metrics, float(np.mean(scores)), shown)

    def add_programs(
        self, programs: Behind, state: TrainState, steps: Iterable[int]
    ) -> list[Hashable]:
        """Adds what evaluations after these steps will run, and gives its keys."""
        keys = []
        params, frozen, pipeline = state.evaluated()["bridge"], self.pipeline.frozen, self.pipeline
        rows = pipeline.shapes_with_taps(self.batch)
        for name in pipeline.bridge.dims.receivers:
            given: tuple[Any, ...] = (self.pipeline.bridge, name, params, frozen, rows)
            stop = self._stop(name)
            scored = *given, np.int32(0), self._starts[name], stop.clean
            written = *given[:2], self.max_new, *given[2:], stop.ids
            keys.append(programs.add(latents.quick_scores, *scored))
            keys.append(programs.add(latents.inspect, *given))
            keys.append(programs.add(latents.quick_answers, *written))
        if self.objectives is not None:
            few = pipeline.shapes_with_taps(self._few)
            for plan in {plan_at(self.objectives, step - 1) for step in steps}:
                of = pipeline.bridge, plan, state.params, frozen, few, np.int32(0)
                keys.append(programs.add(objective_gradients, *of))
        return keys

    def _scores(self, params: PyTree, name: str, batch: Any) -> tuple[dict[str, float], np.ndarray]:
        """Figures of what a receiver reads, and the first tokens [N] that it would write."""
        bridge, frozen = self.pipeline.bridge, self.pipeline.frozen
        start, stops = self._starts[name], self._stop(name).clean
        valid = fetch(batch["valid"])
        matched, other = (
            fetch(
                latents.quick_scores(
                    bridge, name, params, frozen, batch, np.int32(shift), start, stops
                )
            )
            for shift in (0, 1)
        )
        found = {
            "accuracy": float(matched.exact[valid].mean()),
            "deranged_accuracy": float(other.exact[valid].mean()),
            "nll": float(matched.nll[valid].mean()),
            "deranged_nll": float(other.nll[valid].mean()),
            **_of_first(matched, valid),
        }
        found["matched_minus_deranged"] = found["accuracy"] - found["deranged_accuracy"]
        return found, matched.first[valid]

    def _slots(
        self, params: PyTree, name: str, batch: Any
    ) -> tuple[dict[str, float], dict[str, float], list[str]]:
        """`slots/...`: their statistics; what else is seen of the latent without reading it; what
        the nearest rows of the vocabulary spell for the first texts."""
        bridge, frozen = self.pipeline.bridge, self.pipeline.frozen
        seen = ranked(fetch(latents.inspect(bridge, name, params, frozen, batch)))
        more = {f"codes/{key}": float(value) for key, value in seen.pop("codes").items()}
        more["moved_by_mean"] = float(seen.pop("moved"))
        if "saturation" in seen:
            more["saturation"] = float(seen.pop("saturation"))
        said: list[str] = []
        if NEAREST in seen:
            ids = seen.pop(NEAREST)[fetch(self.batch["valid"])][:SAMPLES]
            said = spelled(ids, self.pipeline.receivers[name])
        return {f"slots/{key}": float(value) for key, value in seen.items()}, more, said

    def _of_written(self, name: str, written: Sequence[tuple[int, ...]]) -> dict[str, float]:
        """Of what is written: SQuAD's F1, the share that is empty; final numbers and entities where
        the task has them (`lw_jax.evaluate.metrics`), of as many tokens as are written."""
        texts = [self._text(name, ids) for ids in written]
        asked = [to_write(self.pipeline.layout, group[0]) for group in self._valid()]
        pairs = zip(texts, asked, strict=True)
        found = {
            "f1": float(np.mean([squad.f1(text, e.answers) for text, e in pairs])),
            "empty": float(np.mean([not text.strip() for text in texts])) if texts else 0.0,
        }
        said = [Prediction(text, 0.0, 0, 0, False, None, 0, 0) for text in texts]
        rows = Rows(asked, said, self.ends_in_number)
        for metric in (*solved.METRICS, *entity_transfer.METRICS) if said else ():
            if metric.of(rows) and metric.per_row is not None:
                total, count = metric.per_row(rows)
                found[metric.name] = float(np.sum(total) / max(1.0, float(np.sum(count))))
        return found

    def _text(self, name: str, ids: Sequence[int]) -> str:
        """What tokens say, up to the first stop."""
        decode = self.pipeline.receivers[name].backend.decode
        return self._stop(name).cut(decode(list(ids)))

    def _raised(
        self,
        name: str,
        found: Mapping[str, float],
        slots_of: Mapping[str, float],
        more: Mapping[str, float],
        progress: float,
    ) -> Iterator[Alarm]:
        """The alarms of one receiver."""
        if "slots/rms_ratio" in slots_of:
            yield from alarms.loudness(name, slots_of["slots/rms_ratio"])
        yield from alarms.saturation(name, more.get("saturation", 0.0))
        yield from alarms.ignored_latent(
            name,
            (found["nll"], found["deranged_nll"]),
            (found["accuracy"], found["deranged_accuracy"]),
            progress,
        )
        within, count = slots_of["slots/within_cosine"], slots_of["slots/count"]
        yield from alarms.pooled(name, within, count, more["moved_by_mean"], progress)
        answers = {group[0].answers[0] for group in self.groups}
        distinct = found["distinct"], len(answers) / len(self.groups)
        begins = found["first_top_share"], self._gold_top_share(name)
        yield from alarms.collapse(name, distinct, begins, progress)
        usage = {k.removeprefix("codes/"): v for k, v in more.items() if k.startswith("codes/")}
        rows, levels = self.batch["valid"].shape[0], self.pipeline.bridge.levels
        yield from alarms.codebook_collapse(usage, levels, rows, count, progress)

    def _gradients(self, state: TrainState, step: int) -> tuple[dict[str, float], list[Alarm]]:
        """Gradient norms per objective, as weighted in the step just taken."""
        s, plan = self.pipeline, plan_at(self.objectives, step - 1)
        norms = self._norms(state, step, plan, self._few)
        weights = {
            name: float(config.weight * config.schedule(step - 1, self.steps))
            for name, config in plan.objectives
        }
        # An objective that waits for a gate, or has no weight yet, moves nothing by design.
        live = {n for n, c in plan.objectives if weights[n] != 0 and not c.schedule.by_cosine}
        # Nor does a constraint that is met.
        losses = zip(plan.objectives, norms["loss"], strict=True)
        live -= {n for (n, c), loss in losses if loss <= c.at_rest}
        by = {
            what: {name: float(norms[what][i]) for i, (name, _) in enumerate(plan.objectives)}
            for what in ("bridge", "latent", "delivered")
        }
        weighted = {name: abs(weights[name]) * norm for name, norm in by["bridge"].items()}
        raised = list(alarms.dead_objectives({n: v for n, v in weighted.items() if n in live}))
        raised += alarms.detached_heads(by["latent"], by["delivered"])
        seen = norms["seen"]
        for name in s.bridge.dims.receivers:
            for own in (f"{name}/{objective}" for objective, _ in plan.objectives):
                if f"{own}/shuffled" in seen:
                    loss, shuffled = float(seen[own]), float(seen[f"{own}/shuffled"])
                    raised += alarms.blind_flow(name, loss, shuffled, step / self.steps)
        return {f"grad_norm/objective/{n}": v for n, v in weighted.items()}, raised

    def _norms(self, state: TrainState, step: int, plan: Plan, rows: Any) -> dict[str, Any]:
        """What `objective_gradients` gives of some rows: of the parameters that are trained, not
        of their average."""
        s, at = self.pipeline, np.int32(step - 1)
        rows = s.with_taps(rows)
        return dict(fetch(objective_gradients(s.bridge, plan, state.params, s.frozen, rows, at)))

    def watch(self, state: TrainState, step: int) -> dict[str, Any]:
        """What a look between quick evaluations sees of first tokens and gradients, on a few rows:
        top-1 and top-5, entropy, margin, the histogram and the share of different ones; the norm of
        each objective's gradient by the bridge, as weighted in the step just taken."""
        params, found = state.params["bridge"], dict[str, Any]()
        plan = plan_at(self.objectives, step - 1)
        for name in self.pipeline.bridge.dims.receivers:
            scores, first = self._first(params, name, self._scored_rows)
            found |= {f"{name}/{key}": value for key, value in scores.items()}
            found[f"{name}/first_tokens"] = self._first_tokens(name, first)
            found[f"{name}/first_distinct"] = len(set(first.tolist())) / max(1, len(first))
        norms = self._norms(state, step, plan, self._pulled_rows(len(plan.objectives)))
        for i, (name, config) in enumerate(plan.objectives):
            weight = float(config.weight * config.schedule(step - 1, self.steps))
            found[f"grad_norm/objective/{name}"] = abs(weight) * float(norms["bridge"][i])
        return found

    def _pulled_rows(self, objectives: int) -> Any:
        """The rows whose gradients a look takes: a pass forward, and one back for each objective,
        take about `PULLED` of the steps between two looks."""
        return self._some(PULLED * self.watch_every * self.contexts / (objectives + 2))

    @cached_property
    def _scored_rows(self) -> Any:
        """The rows whose first tokens a look scores, forward alone, which is a third of a step."""
        receivers = len(self.pipeline.bridge.dims.receivers)
        return self._some(3 * SCORED * self.watch_every * self.contexts / receivers)

    def _some(self, count: float) -> Any:
        """The first rows of the batch: so many, one for each part of the data axis at least."""
        parts = ways(self.pipeline.mesh, "rows")
        most = self.batch["valid"].shape[0]
        rows = max(1, min(int(count), most) // parts) * parts
        few = {key: fetch(x)[:rows] for key, x in self.batch.items()}
        return put_batch(self.pipeline.mesh, few)

    def add_watching(
        self, programs: Behind, state: TrainState, steps: Iterable[int]
    ) -> list[Hashable]:
        """Adds what looks after these steps will run, and gives its keys."""
        keys = []
        params, frozen, bridge = state.params, self.pipeline.frozen, self.pipeline.bridge
        for plan in {plan_at(self.objectives, step - 1) for step in steps}:
            rows = self.pipeline.shapes_with_taps(self._pulled_rows(len(plan.objectives)))
            of = bridge, plan, params, frozen, rows, np.int32(0)
            keys.append(programs.add(objective_gradients, *of))
        for name in bridge.dims.receivers:
            start = fetch(self._scored_rows[f"{name}/answer/start"])
            rows = self.pipeline.shapes_with_taps(self._scored_rows)
            given = bridge, name, params["bridge"], frozen, rows, np.int32(0), start
            keys.append(programs.add(latents.quick_scores, *given, self._stop(name).clean))
        return keys

    def _first(self, params: PyTree, name: str, rows: Any) -> tuple[dict[str, float], np.ndarray]:
        """Figures of the first answer tokens of some rows, and the tokens [n] themselves."""
        bridge, frozen, stops = self.pipeline.bridge, self.pipeline.frozen, self._stop(name).clean
        start, valid = (fetch(rows[key]) for key in (f"{name}/answer/start", "valid"))
        rows = self.pipeline.with_taps(rows)
        scored = latents.quick_scores(bridge, name, params, frozen, rows, np.int32(0), start, stops)
        held = fetch(scored)
        if not valid.any():
            return {}, held.first[valid]
        return _of_first(held, valid), held.first[valid]

    def _gold_top_share(self, name: str) -> float:
        """Share of the rows whose gold answer begins with the most frequent first token."""
        ids = fetch(self.batch[f"{name}/answer/ids"])
        first = ids[np.arange(len(ids)), self._starts[name]]
        return _top_share(first[fetch(self.batch["valid"])])

    def _stop(self, name: str) -> Stop:
        """Where a receiver's answers end, as in an evaluation."""
        return stop_of(self.pipeline.receivers[name], self.stop)

    def _first_tokens(self, name: str, first: np.ndarray) -> list[list[Any]]:
        ids, counts = np.unique(first, return_counts=True)
        top = sorted(zip(counts.tolist(), ids.tolist(), strict=True), reverse=True)[:FIRST_TOKENS]
        decode_ids = self.pipeline.receivers[name].backend.decode
        return [[decode_ids([i], skip_special_tokens=False), c / len(first)] for c, i in top]

    def _written(self, params: PyTree, name: str, batch: Any) -> list[tuple[int, ...]]:
        """What a receiver writes after each valid row's latent: the first `max_new` tokens.

        Not the argmaxes along the gold answer: their number tells rows apart that write the same.
        """
        bridge, frozen, stops = self.pipeline.bridge, self.pipeline.frozen, self._stop(name).ids
        ids, lengths = fetch(
            latents.quick_answers(bridge, name, self.max_new, params, frozen, batch, stops)
        )
        rows = zip(ids, lengths, fetch(self.batch["valid"]), strict=True)
        return [tuple(row[:length].tolist()) for row, length, valid in rows if valid]

    def _valid(self) -> list[Sequence[Example]]:
        """The groups of the valid rows."""
        valid = fetch(self.batch["valid"])
        return [group for group, counts in zip(self.groups, valid, strict=False) if counts]

    def _samples(self, name: str, written: Sequence[tuple[int, ...]]) -> list[str]:
        lines = []
        for ids, group in zip(written[:SAMPLES], self._valid(), strict=False):
            text = self._text(name, ids)
            asked = group[0].question or "(read back)"
            lines.append(f"  {asked} -> {text.strip()!r} ({group[0].answers[0][:80]!r})")
        return lines


def _of_first(scored: latents.QuickScores, valid: np.ndarray) -> dict[str, float]:
    """Figures of the first answer token that is no space, over the rows of `valid` [N]."""
    rank = np.asarray(scored.rank)[valid]
    return {
        "first_top1": float((rank < 1).mean()),
        "first_top5": float((rank < 5).mean()),
        "first_entropy": float(np.asarray(scored.entropy)[valid].mean()),
        "first_margin": float(np.asarray(scored.margin)[valid].mean()),
        "first_top_share": _top_share(np.asarray(scored.first)[valid]),
    }


def _top_share(ids: np.ndarray) -> float:
    """How many of the ids are the most frequent one, over all of them."""
    return float(np.unique(ids, return_counts=True)[1].max() / len(ids))


def _lines(
    step: int, name: str, found: Mapping[str, float], slots_of: Mapping[str, float]
) -> list[str]:
    of = {key.removeprefix("slots/"): value for key, value in slots_of.items()}
    lines = [
        f"step {step} {name}: accuracy {found['accuracy']:.3f} "
        f"(deranged {found['deranged_accuracy']:.3f}), F1 {found['f1']:.3f}, "
        f"nll {found['nll']:.3f} (deranged {found['deranged_nll']:.3f}), "
        f"distinct {found['distinct']:.2f}, first token top-1 {found['first_top1']:.3f} "
        f"top-5 {found['first_top5']:.3f}"
    ]
    text = (
        f"  {of['count']:.1f} slots: cosine within a text {of['within_cosine']:.2f}, between texts "
        f"{of['between_cosine']:.2f}, effective rank {of['within_rank']:.1f}"
    )
    if "rms_ratio" in of:
        text += (
            f", loudness {of['rms_ratio']:.3g}, cosine to the nearest token "
            f"{of['nearest_cosine']:.2f}"
        )
    return [*lines, text]
