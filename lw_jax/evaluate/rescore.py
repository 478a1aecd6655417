"""Joint rescoring: the receivers of one latent choose an answer together.

See docs/design.md section 8.

Each receiver's answer is a candidate. Every receiver scores every candidate as the string that it
would have to write after its own message, its EOS included; log-probabilities are added up over the
receivers and divided by the candidate's bytes, so that neither tokenizers nor lengths decide.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lw_jax.evaluate.compare import Comparison
from lw_jax.evaluate.methods import latent
from lw_jax.evaluate.methods.base import EvalContext
from lw_jax.evaluate.predict import rate
from lw_jax.mesh import fetch, put_batch
from lw_jax.text.stop import stop_of

Candidates = Mapping[str, Sequence[str]]
"""Per receiver its answer to every row."""


def together(
    compared: Comparison, ctxs: Mapping[str, EvalContext], candidates: Candidates
) -> list[str] | None:
    """Row by row the answer that the receivers choose; None where there is nothing to choose: one
    receiver, or one that writes more than an answer (`layout.target`).

    Raises:
        SystemExit: code 143 after SIGTERM, 130 after Ctrl-C.
    """
    if len(candidates) < 2 or compared.pipeline.layout.target != "answer":
        return None
    rows, texts = _answering(compared, candidates), list(candidates.values())
    scores = sum(log_probabilities(rows, ctx, texts) for ctx in ctxs.values())
    return pick(texts, np.asarray(scores))


def pick(candidates: Sequence[Sequence[str]], scores: NDArray[np.float64]) -> list[str]:
    """Of every row the candidate with the most nats a byte; the first of those alike.

    candidates: [c][n] strings; scores: [c, n] nats, minus infinity where one cannot be written.
    """
    sizes = np.array([[max(1, len(text.encode())) for text in texts] for texts in candidates])
    best = np.argmax(scores / sizes, axis=0)
    return [candidates[c][n] for n, c in enumerate(best)]


def log_probabilities(
    rows: Sequence[Comparison], ctx: EvalContext, candidates: Sequence[Sequence[str]]
) -> NDArray[np.float64]:
    """[c, n] nats that one receiver gives c answers to each row, EOS included.

    rows: c times the same rows, with these answers for gold; their message is made once. Minus
    infinity for an empty answer, and where no token ends between question and answer.
    """
    found: list[list[float]] = [[] for _ in rows]
    # They change no log-probability: with them the evaluation's program can be used again.
    stops = stop_of(rows[0].pipeline.receivers[ctx.receiver], rows[0].stop).clean
    for batches in zip(*(one.batches for one in rows), strict=True):
        placed = [put_batch(rows[0].pipeline.mesh, batch) for _, batch in batches]
        sent = rows[0].received(latent.METHOD, batches[0][0])
        raw = fetch(rate(latent.METHOD.message, ctx, placed, sent, stops))
        for nats, scored, (_, batch) in zip(found, raw, batches, strict=True):
            nats += np.where(batch["valid"], -scored.nll.astype(np.float64), -np.inf).tolist()
        if rows[0].terminated():
            rows[0].say("stopped; run the same command again to go on at the joint rescoring")
            rows[0].terminated.leave()
    said = np.array([[bool(text.strip()) for text in texts] for texts in candidates])
    return np.where(said, np.array(found)[:, : said.shape[1]], -np.inf)


def _answering(compared: Comparison, candidates: Candidates) -> list[Comparison]:
    """The same rows with each receiver's answers for gold, all in the same shapes."""
    answering = [
        [
            replace(e, answers=(text.strip() or "-",))
            for e, text in zip(compared.examples, texts, strict=True)
        ]
        for texts in candidates.values()
    ]
    collate = compared.pipeline.collate([(e,) for examples in answering for e in examples])
    return [replace(compared, examples=examples, collate=collate) for examples in answering]
