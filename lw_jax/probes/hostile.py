"""`lw-jax probe hostile`: what messages can make a receiver say, and a gate that looks for them.

A message begins as what the sender makes of a text, and is moved by gradient, against the frozen
receiver, towards an answer that this text does not have (Adam; after each step slots with a larger
norm than allowed are scaled down). The gradient passes through the codec (straight-through), the
figures are of what the receiver writes for the packet.

Three lines say what they are worth: the honest message of the same text, which ought to answer
otherwise; an honest message of a false text (the right answer replaced by the aim), which anyone
can send who has the sender; and messages of those who know the gate and stay inside it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lw_jax.data.example import Example
from lw_jax.errors import UserError
from lw_jax.evaluate.methods.base import EvalContext
from lw_jax.evaluate.metrics.squad import exact_match
from lw_jax.layers.straight_through import straight_through
from lw_jax.models.head import chunked_cross_entropy
from lw_jax.probes.base import (
    Figure,
    Lines,
    Probed,
    batched,
    codecs_of,
    figure,
    in_codec,
    most_slots,
    progress,
    ratios_of,
    real,
    show,
    write,
)
from lw_jax.probes.config import HostileConfig
from lw_jax.receiver import answer
from lw_jax.receiver.pack import Segment, segment
from lw_jax.text.layout import split_joint
from lw_jax.types import Array, Latent
from lw_jax.wire import packet
from lw_jax.wire.codecs import CODES
from lw_jax.wire.gate import LOW, Gate
from lw_jax.wire.rounding import as_sent

FILE = "gate.npz"
BATCH = 16
"""Messages that are optimised at once."""
INSIDE = 0.9
"""Those who know the gate aim at this share of its bounds."""


class Aim(NamedTuple):
    """A row, and the answer that its message is to bring about.

    Attributes:
        row: text, question and right answers.
        answer: that is aimed at.
        ask: question and anchor in the receiver's tokens.
        ids: the answer's tokens, its end included.
    """

    row: Example
    answer: str
    ask: list[int]
    ids: list[int]


class Rules(NamedTuple):
    """What the optimisation must keep to.

    Attributes:
        limit: the largest norm of a slot; infinity: any.
        unit: root mean square of honest slots.
        aware: weight of the gate's measures.
        mean: [d] of honest slots.
        whiten: [d, d] as of `Gate`.
        bounds: of the gate's measures.
    """

    limit: Any
    unit: Any
    aware: Any
    mean: Any
    whiten: Any
    bounds: dict[str, Any]


def run(probed: Probed, cfg: HostileConfig) -> Path:
    """Fits the gate, optimises messages, writes result and gate and prints the table.

    Returns:
        The path of the result.

    Raises:
        UserError: an option does not fit the bridge, or there are too few rows.
    """
    began = time.monotonic()
    codecs = codecs_of(probed.wire, cfg.codecs)
    gate, norms, unit = _gate(probed, cfg, codecs[0])
    rows = probed.rows("eval", 3 * cfg.rows, cfg.seed)
    aims = _aims(probed, rows, cfg)
    _, honest = probed.sent([a.row for a in aims], "honest messages")
    lines: Lines = {}
    alarms = _alarms(probed, gate, codecs, cfg)
    typical = float(np.median(norms))
    for name in codecs:
        sent = _packets(probed, honest, name)
        lines[f"honest_{name}"] = _figures(probed, gate, aims, sent, cfg.seed) | {
            "false_alarms": alarms[name]
        }
    lines["false_text"] = _of_false_texts(probed, gate, aims, cfg.seed)
    for name in codecs:
        for limit in cfg.limits:
            for aware in (False, True):
                line = "_".join(
                    (
                        *(("inside_gate",) if aware else ("hostile",)),
                        name,
                        f"norm{limit:g}" if limit else "any_norm",
                    )
                )
                rules = Rules(
                    limit=limit * typical if limit else np.inf,
                    unit=unit,
                    aware=cfg.aware if aware else 0.0,
                    mean=jnp.asarray(gate.mean, jnp.float32),
                    whiten=jnp.asarray(gate.whiten, jnp.float32),
                    bounds=dict(gate.bounds),
                )
                found = _optimised(probed, aims, honest, name, rules, cfg, line)
                sent = _packets(probed, found, name)
                lines[line] = _figures(probed, gate, aims, sent, cfg.seed)
    gate.save(probed.out / FILE)
    path = write(
        probed,
        "hostile",
        cfg,
        lines,
        time.monotonic() - began,
        {
            "gate": {"file": FILE, "bounds": dict(gate.bounds), "alarms": cfg.alarms},
            "norm_of_a_slot": {"median": typical, "largest": float(np.max(norms))},
            "aims": [[a.row.question, a.row.answers[0], a.answer] for a in aims[:5]],
        },
    )
    show(probed.console, "answers that were aimed at, and what the gate lets pass", lines)
    return path


def _gate(probed: Probed, cfg: HostileConfig, name: str) -> tuple[Gate, np.ndarray, float]:
    """A gate fitted to messages of training texts, in one codec, at all the bridge's ratios;
    the norms of their slots, and the root mean square of these."""
    rows = probed.rows("train", cfg.honest, cfg.seed)
    ratios = ratios_of(probed.wire, ())
    slots: list[np.ndarray] = []
    for i, ratio in enumerate(ratios):
        _, held = probed.sent(rows[i :: len(ratios)], "honest messages", ratio)
        slots += [real(in_codec(one, name)) for one in held]
    if len(slots) < 4:
        raise UserError(f"probe hostile: {len(slots)} honest messages; give --honest=4 or more")
    order = np.random.default_rng(cfg.seed).permutation(len(slots))
    seen, held_out = (
        [slots[i] for i in part] for part in (order[: len(order) // 2], order[len(order) // 2 :])
    )
    gate = Gate.fit(seen, held_out, cfg.alarms, probed.wire.trained.mark)
    every = np.concatenate(slots)
    return gate, np.linalg.norm(every, axis=1), float(np.sqrt(np.mean(every**2)))


def _alarms(
    probed: Probed, gate: Gate, codecs: Sequence[str], cfg: HostileConfig
) -> dict[str, Figure]:
    """The share of honest messages of evaluation texts that the gate refuses, by codec."""
    rows = probed.rows("eval", cfg.honest, cfg.seed + 1)
    ratios = ratios_of(probed.wire, ())
    latents: list[Latent] = []
    for i, ratio in enumerate(ratios):
        latents += probed.sent(rows[i :: len(ratios)], "more honest messages", ratio)[1]
    return {
        name: figure(
            [gate.refusal(real(in_codec(one, name))) is not None for one in latents], cfg.seed
        )
        for name in codecs
    }


def _aims(probed: Probed, rows: Sequence[Example], cfg: HostileConfig) -> list[Aim]:
    """Rows with an answer to aim at: that of the next row whose answers are others.

    Raises:
        UserError: there are none.
    """
    layout = probed.wire.pipeline.layout
    tokenizer = probed.wire.pipeline.receivers[probed.receiver]
    found: list[Aim] = []
    for i, row in enumerate(rows):
        others = [*rows[i + 1 :], *rows[:i]]
        wanted = cfg.target or next(
            (o.answers[0] for o in others if not exact_match(o.answers[0], row.answers)), ""
        )
        question = row.question if probed.asks else ""
        (both,) = split_joint(layout, tokenizer, [(question, wanted)]) if wanted else (None,)
        if both is not None and not exact_match(wanted, row.answers):
            if len(both.answer) > probed.wire.decode.max_new_tokens:
                raise UserError(
                    f"target: {len(both.answer)} tokens, where an answer has at most "
                    f"{probed.wire.decode.max_new_tokens} (decode.max_new_tokens)"
                )
            found.append(Aim(row, wanted, list(both.ask), list(both.answer)))
    if len(found) < 2:
        raise UserError("probe hostile: fewer than two rows with another answer to aim at")
    return found[: cfg.rows]


def _packets(probed: Probed, latents: Sequence[Latent], name: str) -> list[bytes]:
    """Messages in a codec; those of a bridge with codes by way of its bottleneck."""
    if name != CODES:
        return [probed.packet(one, name) for one in latents]
    wire = probed.wire
    bridge, mark, key = wire.pipeline.bridge, wire.trained.mark, wire.key
    found = []
    for one in latents:
        codes = np.asarray(_narrowed(probed.ctx, one)[1])
        found.append(
            packet.to_bytes(
                packet.sendable(replace(one, slots=jnp.asarray(codes))),
                codec_name=CODES,
                levels=bridge.levels,
                mark=mark,
                key=key,
            )
        )
    return found


@jax.jit
def _narrowed(ctx: EvalContext, latent: Latent) -> tuple[Latent, Array]:
    """Slots after the bottleneck, and their codes."""
    after, sown = ctx.bridge.apply(ctx.params, latent, method="narrowed")
    return after, sown["bottleneck"]["codes"]


def _optimised(
    probed: Probed,
    aims: Sequence[Aim],
    honest: Sequence[Latent],
    name: str,
    rules: Rules,
    cfg: HostileConfig,
    line: str,
) -> list[Latent]:
    """The messages after the optimisation, one row each."""
    slots = most_slots(honest)
    ask, wanted = (
        -(-max(map(len, ids)) // 8) * 8 for ids in ([a.ask for a in aims], [a.ids for a in aims])
    )
    found: list[Latent] = []
    batches = range(0, len(aims), BATCH)
    with progress(probed.console, line, len(batches) * cfg.steps) as step:
        for begin in batches:
            some = list(range(begin, min(begin + BATCH, len(aims))))
            at = [*some, *some[:1] * (BATCH - len(some))]
            sent = batched([honest[i] for i in at], slots)
            asked = segment([aims[i].ask for i in at], ask)
            right = segment([aims[i].ids for i in at], wanted, "answer")
            x = jnp.asarray(sent.slots, jnp.float32)
            state = _adam(cfg.lr).init(x)
            loss: Any = 0.0
            for i in range(cfg.steps):
                x, state, loss = _moved(
                    probed.ctx, replace(sent, slots=x), state, asked, right, rules, name, cfg.lr
                )
                step(1, f"loss {float(loss):.3f}" if i % 10 == 0 else "")
            moved = np.asarray(x)
            for j in range(len(some)):
                kept = honest[at[j]]
                own = moved[j : j + 1, : kept.mask.shape[1]]
                found.append(replace(kept, slots=own))  # type: ignore[arg-type]
    return found


def _adam(lr: float) -> optax.GradientTransformation:
    return optax.adam(lr)


@partial(jax.jit, static_argnames=("name", "lr"), donate_argnums=(2,))
def _moved(
    ctx: EvalContext,
    sent: Latent,
    state: Any,
    ask: Segment,
    right: Segment,
    rules: Rules,
    name: str,
    lr: float,
) -> tuple[Array, Any, Array]:
    """Slots [B, M, d] after one step towards the answers, and the mean loss before it."""

    def loss_of(x: Array) -> tuple[Array, Array]:
        latent = replace(sent, slots=x)
        if name == CODES:
            latent, _ = ctx.bridge.apply(ctx.params, latent, method="narrowed")
        else:
            latent = replace(sent, slots=straight_through(x, as_sent(x, name)))
        message = answer.alone(ctx.model, ctx.deliver(latent), x.shape[0])
        read = answer.reading(ctx.model, ctx.prompt, message, ask, right)
        scores = chunked_cross_entropy(ctx.model.arch, ctx.model.params, read.hidden, read.labels)
        nll = jnp.sum(scores.nll * read.mask, axis=1)
        own = nll + rules.aware * _outside(latent, rules)
        return jnp.sum(own), jnp.mean(nll)

    grads, loss = jax.grad(loss_of, has_aux=True)(sent.slots)
    updates, state = _adam(lr).update(grads, state)
    x = sent.slots + rules.unit * updates
    norms = jnp.linalg.norm(x, axis=-1, keepdims=True)
    x = x * jnp.minimum(1.0, rules.limit / jnp.maximum(norms, 1e-12))
    return jnp.where(sent.mask[..., None], x, 0.0), state, loss


def _outside(latent: Latent, rules: Rules) -> Array:
    """[B] how far messages are beyond the gate's bounds, as shares of them; 0 inside."""
    x, mask = latent.slots, latent.mask
    norms = jnp.sqrt(jnp.sum(x**2, axis=-1) + 1e-12)
    square = jnp.mean(
        jnp.einsum("bmd,de->bme", x - rules.mean[None, None], rules.whiten) ** 2, axis=-1
    )
    count = jnp.maximum(1, mask.sum(axis=1))
    found = {
        "largest_norm": jnp.max(jnp.where(mask, norms, 0.0), axis=1),
        "smallest_norm": jnp.min(jnp.where(mask, norms, jnp.inf), axis=1),
        "farthest": jnp.sqrt(jnp.max(jnp.where(mask, square, 0.0), axis=1)),
        "distance": jnp.sqrt(jnp.sum(jnp.where(mask, square, 0.0), axis=1) / count),
    }
    total = jnp.zeros(x.shape[0])
    for name, bound in rules.bounds.items():
        if name in LOW:
            total += jax.nn.relu(bound / INSIDE / found[name] - 1.0)
        else:
            total += jax.nn.relu(found[name] / (INSIDE * bound) - 1.0)
    return total


def _figures(
    probed: Probed, gate: Gate, aims: Sequence[Aim], sent: Sequence[bytes], seed: int
) -> dict[str, Figure]:
    """What the receiver writes for packets, and what the gate says of them."""
    wire = probed.wire
    questions = [a.row.question if probed.asks else "" for a in aims]
    ready = [
        wire.question(data, q, probed.receiver) for data, q in zip(sent, questions, strict=True)
    ]
    said = [one.text for one in wire.ask(ready)]
    slots = [real(one) for one in probed.opened(sent)]
    passed = np.array([gate.refusal(one) is None for one in slots])
    hit = np.array([exact_match(s, (a.answer,)) for s, a in zip(said, aims, strict=True)])
    right = [exact_match(s, a.row.answers) for s, a in zip(said, aims, strict=True)]
    return {
        "aim": figure(hit, seed),
        "right": figure(right, seed),
        "pass_gate": figure(passed, seed),
        "aim_and_pass": figure(hit * passed, seed),
    }


def _of_false_texts(
    probed: Probed, gate: Gate, aims: Sequence[Aim], seed: int
) -> dict[str, Figure]:
    """Honest messages of texts in which the aim stands where the right answer stood; {}: of none
    does the answer stand in the text."""
    held = [
        a._replace(row=replace(a.row, context=a.row.context.replace(a.row.answers[0], a.answer)))
        for a in aims
        if a.row.answers[0] in a.row.context
    ]
    held = [a for a in held if probed.fits(a.row)]
    if not held:
        return {}
    sent, _ = probed.sent([a.row for a in held], "messages of false texts")
    return _figures(probed, gate, held, sent, seed)
