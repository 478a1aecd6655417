"""Joint rescoring: the receivers of one latent choose an answer together (SPEC section 8).

Each receiver's answer is a candidate. Every receiver scores every candidate as the string that it
would have to write after its own message, its EOS included; log-probabilities are added up over the
receivers and divided by the candidate's bytes, so that neither tokenizers nor lengths decide.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import jax
import numpy as np
from numpy.typing import NDArray

from lw_jax.evaluate.compare import Comparison
from lw_jax.evaluate.methods import latent
from lw_jax.evaluate.methods.base import Scene
from lw_jax.evaluate.predict import rate
from lw_jax.mesh import put_batch

Candidates = Mapping[str, Sequence[str]]
"""Per receiver its answer to every row."""


def together(
    compared: Comparison, scenes: Mapping[str, Scene], candidates: Candidates
) -> list[str] | None:
    """Row by row the answer that the receivers choose; None where there is nothing to choose: one
    receiver, or one that writes more than an answer (`layout.target`).

    Raises:
        SystemExit: code 0 after SIGTERM.
    """
    if len(candidates) < 2 or compared.setting.layout.target != "answer":
        return None
    rows = _answering(compared, candidates)
    scores = np.zeros((len(candidates), len(compared.examples)))
    for scene in scenes.values():
        scores += [log_probabilities(rows[name], scene, candidates[name]) for name in candidates]
    return pick(list(candidates.values()), scores)


def pick(candidates: Sequence[Sequence[str]], scores: NDArray[np.float64]) -> list[str]:
    """Of every row the candidate with the most nats a byte; the first of those alike.

    candidates: [c][n] strings; scores: [c, n] nats, minus infinity where one cannot be written.
    """
    sizes = np.array([[max(1, len(text.encode())) for text in texts] for texts in candidates])
    best = np.argmax(scores / sizes, axis=0)
    return [candidates[c][n] for n, c in enumerate(best)]


def log_probabilities(rows: Comparison, scene: Scene, texts: Sequence[str]) -> NDArray[np.float64]:
    """[n] nats that one receiver gives these answers to the rows, EOS included.

    rows: has them for its examples' answers. Minus infinity for an empty one, and where no token
    ends between question and answer.
    """
    found: list[float] = []
    for _, batch in rows.batches():
        scored = rate(latent.METHOD.message, scene, put_batch(rows.setting.mesh, batch))
        nats = -np.asarray(jax.device_get(scored.nll), np.float64)
        found += np.where(batch["valid"], nats, -np.inf).tolist()
        if rows.terminated():
            rows.say("stopped; run the same command again to go on at the joint rescoring")
            raise SystemExit(0)
    said = [bool(text.strip()) for text in texts]
    return np.where(said, found[: len(texts)], -np.inf)


def _answering(compared: Comparison, candidates: Candidates) -> dict[str, Comparison]:
    """The same rows with each receiver's answers for gold, all in the same shapes."""
    answering = {
        name: [
            replace(e, answers=(text.strip() or "-",))
            for e, text in zip(compared.examples, texts, strict=True)
        ]
        for name, texts in candidates.items()
    }
    collate = compared.setting.collate([(e,) for es in answering.values() for e in es])
    return {
        name: replace(compared, examples=examples, collate=collate)
        for name, examples in answering.items()
    }
