"""What the frozen models say of a batch, kept by its content so that later epochs do not ask again.

Kept are the sender's taps of every text, and the states of a receiver that reads the text, by
itself or as a tuned teacher, where it predicts each answer token (before its final norm: every
temperature and the whole vocabulary can be had from them). A record's key is a digest of the tokens
that the model sees, and its place depends on all else that its numbers depend on: weights, number
format, attention, the prompt, and what a tuned teacher is given besides.

A batch of which one row is not there is asked whole, by the same programs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lw_jax.bridge.bridge import Bridge, kept_taps
from lw_jax.data.load import sample
from lw_jax.models.frozen import FrozenModels
from lw_jax.objectives.common.context import KEPT, TUNED, kept_states
from lw_jax.text.buckets import lengths_of
from lw_jax.text.collate import Batch, Collate
from lw_jax.train.config import Reuse
from lw_jax.train.plan import Plan, all_terms, context_of
from lw_jax.types import Array, PyTree
from lw_jax.utils.kept import Kept, Room

GB = 10**9
SAMPLED = 256
"""Contexts whose lengths tell how many bytes all take."""


class Reused:
    """What is kept in a stage.

    Args:
        cfg: how much is kept, and where.
        bridge: the bridge.
        prints: for the sender and each receiver by name what their numbers depend on.
        folder: for the files.
        say: is told in one line of damage.
        shared_text: whether a teacher reads a text once for all of its questions.
        with_taps: what a sender on other devices says of a batch, added to it.
    """

    def __init__(
        self,
        cfg: Reuse,
        bridge: Bridge,
        prints: Mapping[str, Mapping[str, Any]],
        folder: Path,
        say: Callable[[str], None],
        shared_text: bool = False,
        with_taps: Callable[[dict[str, Any]], dict[str, Any]] = dict,
    ) -> None:
        self.with_taps = with_taps
        self.cfg, self.bridge, self.shared_text = cfg, bridge, shared_text
        self.prints, self.folder, self.say = prints, folder, say
        self.room = Room(int(cfg.memory_gb * GB), int(cfg.disk_gb * GB))
        self._kept: dict[Path, Kept] = {}
        self._pending: list[tuple[Kept, list[bytes], np.ndarray, Array]] = []

    def wanted(
        self, plan: Plan, params: PyTree, frozen: FrozenModels, batch: Any
    ) -> frozenset[str]:
        """The keys in a batch of what the objectives of a plan ask of the frozen models.

        Args:
            plan: the step's objectives.
            params: the parameters, or what stands for them.
            frozen: the frozen models.
            batch: a batch, or what stands for one.
        """
        found: set[str] = set()
        if self.cfg.sender:
            views = self.bridge.config.views
            found |= {
                kept_taps(self.bridge.config.batch_key(name))
                for name, source in views.items()
                if source.reads_sender or source.reads_receiver is not None
            }
        if self.cfg.teacher:

            def look(params: PyTree, frozen: FrozenModels, batch: Any) -> Array:
                rng = jax.random.key(0)
                context = context_of(self.bridge, params["bridge"], frozen, batch, rng, True)
                all_terms(plan, context, params["heads"])
                found.update(
                    kept_states(name, asked) for name, asked in context.readings if asked in KEPT
                )
                return jnp.zeros(())

            jax.eval_shape(look, params, frozen, batch)
        return frozenset(found)

    def fill(
        self,
        wanted: frozenset[str],
        frozen: FrozenModels,
        host: Batch,
        batch: dict[str, Any],
        before: Callable[[], None] = lambda: None,
    ) -> tuple[dict[str, Any], bool]:
        """A batch with what the frozen models say of it, and whether they were asked.

        Args:
            wanted: the keys of what is wanted.
            frozen: the frozen models.
            host: the batch on the host.
            batch: the same on the mesh.
            before: called before they are asked.
        """
        self.settle()
        where = batch["valid"].sharding
        made: dict[str, Any] = {}
        missing: dict[str, tuple[Kept, list[bytes]]] = {}
        for name in sorted(wanted):
            kept, keys = self._kept_of(name, frozen), self._keys(name, host)
            rows = [row for key in keys if (row := kept.get(key)) is not None]
            if len(rows) < len(keys):
                missing[name] = kept, keys
                continue
            size = host[f"{read_by(name)}/ids"].shape[1]
            shape = len(rows), *rows[0].shape[:-2], size, rows[0].shape[-1]
            whole = np.zeros(shape, rows[0].dtype)
            for place, row in zip(whole, rows, strict=True):
                place[..., : row.shape[-2], :] = row
            made[name] = jax.device_put(whole, where)
        if missing:
            before()
            asked = says(self.bridge, wanted, self.shared_text, frozen, self.with_taps(batch))
            for name, (kept, keys) in missing.items():
                asked[name].copy_to_host_async()
                lengths = host[f"{read_by(name)}/lengths"]
                self._pending.append((kept, keys, lengths, asked[name]))
            made |= {name: jax.device_put(states, where) for name, states in asked.items()}
        return batch | made, bool(missing)

    def settle(self) -> None:
        """Keeps what was asked last."""
        for kept, keys, lengths, states in self._pending:
            rows = np.asarray(states)
            for key, length, row in zip(keys, lengths, rows, strict=True):
                kept.put(key, np.ascontiguousarray(row[..., :length, :]))
            kept.commit()
        self._pending.clear()

    def close(self) -> None:
        """Keeps what was asked last, and closes the files."""
        self.settle()
        for kept in self._kept.values():
            kept.close()

    def _kept_of(self, name: str, frozen: FrozenModels) -> Kept:
        """Where an array of the batch is kept."""
        owner = name.partition("/")[0]
        on: dict[str, Any] = {"format": 1, "name": name, **self.prints.get(owner, {})}
        if owner in frozen.receivers:
            on["head"] = list(frozen.prompt(owner).head)
            if name == kept_states(owner, TUNED):
                on["tuned"] = frozen.teachers[owner].digest
        digest = hashlib.sha256(json.dumps(on, sort_keys=True).encode()).hexdigest()
        path = self.folder / f"{name.replace('/', '-')}-{digest[:16]}.sqlite"
        if path not in self._kept:
            self._kept[path] = Kept(path, self.room, self.say)
        return self._kept[path]

    def _keys(self, name: str, host: Batch) -> list[bytes]:
        """Digests of the tokens that a model sees of every row."""
        read, repeat = read_by(name), 1
        parts = [f"{read}"]
        if name != kept_taps(read):
            owner = name.partition("/")[0]
            parts = [f"{owner}/context", f"{owner}/ask", f"{owner}/answer"]
            repeat = len(host["valid"]) // len(host[f"{owner}/context/lengths"])
        found = []
        for i in range(len(host[f"{read}/lengths"])):
            digest = hashlib.sha256()
            for part in parts:
                row = i // repeat if part.endswith("/context") else i
                length = int(host[f"{part}/lengths"][row])
                digest.update(length.to_bytes(8, "little"))
                digest.update(host[f"{part}/ids"][row, :length].tobytes())
            found.append(digest.digest())
        return found


def read_by(name: str) -> str:
    """The part of a batch whose tokens an array has states of."""
    owner, _, what = name.rpartition("/")
    return owner if what == "taps" else f"{owner}/answer"


def expected(states: Mapping[str, Any], collate: Collate, rows: Any) -> int:
    """About how many bytes all rows take.

    Args:
        states: what `says` gives, or what stands for it.
        collate: of the rows.
        rows: the contexts (`lw_jax.data.example.Rows`).
    """
    groups = sample(rows, SAMPLED)
    lengths = lengths_of(collate, groups)
    questions = sum(len(group) for group in groups) / len(groups)
    total = 0.0
    for name, of in states.items():
        token = of.dtype.itemsize * of.size / (of.shape[0] * of.shape[-2])
        times = 1 if name.endswith("/taps") else questions
        total += token * float(lengths[read_by(name)].mean()) * len(rows) * times
    return int(total)


@partial(jax.jit, static_argnums=(0, 1, 2))
def says(
    bridge: Bridge,
    names: frozenset[str],
    shared_text: bool,
    frozen: FrozenModels,
    batch: dict[str, Array],
) -> dict[str, Array]:
    """What the frozen models say of a batch, zero beyond each row's length.

    Args:
        bridge: the bridge.
        names: what is wanted.
        shared_text: whether a teacher reads a text once for all of its questions.
        frozen: the frozen models.
        batch: the batch.

    Returns:
        By name the taps [B, n, T, D] of a source, or the states [N, A, D] of a receiver.
    """
    rng = jax.random.key(0)
    context = context_of(bridge, None, frozen, batch, rng, False, shared_text=shared_text)
    found = {}
    for view, taps in context.views.items():
        name = kept_taps(bridge.config.batch_key(view))
        if name in names:
            found[name] = jnp.moveaxis(taps.states, 0, 1)
    for receiver in frozen.receivers:
        for asked in KEPT:
            if (name := kept_states(receiver, asked)) in names:
                found[name] = context.reading(receiver, asked).hidden

    def cut(name: str, states: Array) -> Array:
        lengths = batch[f"{read_by(name)}/lengths"]
        real = jnp.arange(states.shape[-2])[None] < lengths[:, None]
        real = jnp.expand_dims(real, (*range(1, states.ndim - 2), -1))
        return jnp.where(real, states, jnp.zeros((), states.dtype))

    return {name: cut(name, states) for name, states in found.items()}
