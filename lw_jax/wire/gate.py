"""A gate before a receiver: messages unlike those that honest senders sent are refused.

It looks at each slot's norm and at its distance (Mahalanobis 1936) from the slots of honest
messages. What an honest sender makes of a false text passes: a gate tells where a message comes
from as little as a look at it does; for that both ends share a key (`lw_jax.wire.packet`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lw_jax.errors import UserError
from lw_jax.types import Latent
from lw_jax.utils.files import damaged, read_npz, write_npz

Floats = NDArray[np.floating]
FLOOR = 1e-6
"""Of the covariance's eigenvalues, as a share of the largest: directions that hardly vary."""
MEASURES = {
    "largest_norm": "the largest norm of a slot",
    "smallest_norm": "the smallest norm of a slot",
    "farthest": "the largest distance of a slot",
    "distance": "the distance",
}
LOW = ("smallest_norm",)
"""Measures whose bound is the least that passes; of the others it is the most."""


@dataclass(frozen=True, eq=False)
class Gate:
    """What honest messages look like, and how far another may be from that.

    Attributes:
        mean: [d] float64 of honest slots.
        whiten: [d, d] float64; `(slot - mean) @ whiten` has unit covariance over honest slots.
        bounds: the bound of each of `MEASURES`.
        mark: 8 bytes that name the bridge whose messages they are.
    """

    mean: Floats
    whiten: Floats
    bounds: Mapping[str, float]
    mark: bytes

    @classmethod
    def fit(
        cls, seen: Sequence[Floats], held: Sequence[Floats], alarms: float, mark: bytes
    ) -> Gate:
        """A gate that refuses about a share `alarms` of honest messages.

        Args:
            seen: the slots [m, d] of honest messages, whose mean and covariance are taken.
            held: those of others, of whose measures the bounds are quantiles.
            alarms: the share; each of the measures has an equal part of it.
            mark: of the bridge.

        Raises:
            UserError: there are fewer slots than their covariance needs.
        """
        slots = np.concatenate([np.asarray(one, np.float64) for one in seen])
        if len(slots) <= slots.shape[1] or not held:
            raise UserError(
                f"gate: {len(slots)} slots of {len(seen)} messages, where the covariance of "
                f"{slots.shape[1]} channels needs more; fit it on more messages"
            )
        mean = slots.mean(axis=0)
        values, vectors = np.linalg.eigh(np.cov(slots, rowvar=False))
        whiten = vectors / np.sqrt(np.maximum(values, FLOOR * values[-1]))
        bare = cls(mean, whiten, {}, mark)
        found = [bare.measures(one) for one in held]
        part = alarms / len(MEASURES)
        bounds = {
            name: float(np.quantile([one[name] for one in found], part if low else 1 - part))
            for name in MEASURES
            for low in (name in LOW,)
        }
        return cls(mean, whiten, bounds, mark)

    def measures(self, slots: Floats) -> dict[str, float]:
        """What is looked at, of a message's real slots [m, d]; distances are roots of the mean
        square over channels, 1 for a typical honest slot."""
        x = np.asarray(slots, np.float64)
        norms = np.linalg.norm(x, axis=1)
        square = np.mean(((x - self.mean) @ self.whiten) ** 2, axis=1)
        return {
            "largest_norm": float(norms.max()),
            "smallest_norm": float(norms.min()),
            "farthest": float(np.sqrt(square.max())),
            "distance": float(np.sqrt(square.mean())),
        }

    def refusal(self, slots: Floats) -> str | None:
        """Why a message's real slots [m, d] are refused, in words; None: they pass."""
        found = self.measures(slots)
        for name, bound in self.bounds.items():
            low = name in LOW
            if found[name] < bound if low else found[name] > bound:
                return (
                    f"{MEASURES[name]} is {found[name]:.4g}, where honest messages have "
                    f"{'at least' if low else 'at most'} {bound:.4g}"
                )
        return None

    def check(self, latent: Latent) -> None:
        """Checks a message of one row, slots or codes [1, M, d] with their mask.

        Raises:
            UserError: it is refused; says by what.
        """
        slots = np.asarray(latent.slots)[0][np.asarray(latent.mask)[0]]
        if (why := self.refusal(slots)) is not None:
            raise UserError(f"gate: {why}; this message is not like those of an honest sender")

    def save(self, path: Path) -> None:
        """Writes it, whole or not at all."""
        bounds = {f"bound_{name}": np.array(value) for name, value in self.bounds.items()}
        arrays = {"mean": np.asarray(self.mean), "whiten": np.asarray(self.whiten), **bounds}
        write_npz(path, {**arrays, "mark": np.frombuffer(self.mark, np.uint8)})

    @classmethod
    def load(cls, path: Path, mark: bytes) -> Gate:
        """The gate in a file.

        Args:
            path: the file.
            mark: of the bridge at this end.

        Raises:
            UserError: there is none, it is damaged, or it was fitted to another bridge's messages.
        """
        if not path.is_file():
            raise UserError(f"{path}: no gate there; `lw-jax probe hostile RUN` writes one")
        advice = "delete it; `lw-jax probe hostile RUN` writes a gate"
        held = read_npz(path, advice)
        try:
            own, mean, whiten = held["mark"].tobytes(), held["mean"], held["whiten"]
            parts = {name: held[f"bound_{name}"] for name in MEASURES}
        except KeyError as error:
            raise damaged(path, f"no gate: {error} is missing", advice) from None
        numbers = (mean, whiten, *parts.values())
        # of what is no number nothing is further than a bound, so that everything would pass
        if not all(x.dtype == np.float64 and np.isfinite(x).all() for x in numbers):
            raise damaged(path, "no gate: a part of it is no finite float64", advice)
        d = mean.size
        if (
            mean.shape != (d,)
            or whiten.shape != (d, d)
            or not d
            or any(map(np.ndim, parts.values()))
        ):
            raise damaged(path, "no gate: its shapes are wrong", advice)
        bounds = {name: float(value) for name, value in parts.items()}
        if own != mark:
            raise UserError(f"{path}: a gate of another bridge's messages than the one loaded")
        return cls(mean, whiten, bounds, own)
