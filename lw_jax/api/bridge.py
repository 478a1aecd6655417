"""A trained bridge with its frozen models: texts to packets, packets and questions to answers."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import numpy as np

from lw_jax.api.answering import Answer, Answering, Question, Score
from lw_jax.api.loaded import Role
from lw_jax.api.sending import Sending, Text
from lw_jax.api.shapes import PARTS_RUNG, ROW_RUNGS, SLOTS_RUNG, TEXT_RUNG, rung_of, rungs
from lw_jax.config.schema import Config
from lw_jax.data.load import data_set
from lw_jax.errors import UserError
from lw_jax.evaluate import packets
from lw_jax.evaluate.config import DecodeConfig
from lw_jax.mesh import MeshConfig, make_mesh
from lw_jax.models.checkpoint import read_arch, small_files
from lw_jax.runs import hub
from lw_jax.runs.ends import open_half
from lw_jax.runs.export import export
from lw_jax.runs.exported import LONGEST, about_bridge, is_exported
from lw_jax.runs.hub import bridge_at
from lw_jax.runs.places import located
from lw_jax.runs.session import open_pipeline
from lw_jax.runs.trained import check_frozen, config_at, load_trained, saved_at
from lw_jax.text.stop import stop_strings
from lw_jax.utils import arguments, program_cache
from lw_jax.wire.gate import Gate

__all__ = ["Answer", "Bridge", "Fingerprint", "Question", "Role", "Score", "Text"]

Fingerprint = Literal["exact", "same_model"]


@dataclass(frozen=True, repr=False)
class Bridge(Sending, Answering):
    """A trained bridge with its frozen models. Make one with `Bridge.load`.

    Attributes:
        pipeline: the frozen models, their tokenizers and the bridge.
        trained: the bridge's parameters, and where they come from.
        decode: how answers are decoded.
        key: that both ends share: packets are tagged with it, and others are refused; None: no key.
        role: which ends are loaded.
        longest: most tokens of what it was trained on, by the name of the part (`source`,
            `<receiver>/ask`); those unknown are missing.
        reach: most source tokens that a text can have; None: unknown.
        home: directory of the run or of the exported bridge.
        gate: that refuses messages unlike those of honest senders; None: there is none.
    """

    @classmethod
    def load(
        cls,
        run_dir: str | Path,
        checkpoint: Literal["last", "best"] = "last",
        *,
        role: Role = "both",
        sender: str | Path | None = None,
        receivers: Mapping[str, str | Path] | None = None,
        key: bytes | str | None = None,
        fingerprint: Fingerprint | None = None,
        gate: str | Path | None = None,
        devices: Sequence[int] | None = None,
    ) -> Bridge:
        """The bridge of a run, decoding as its last evaluation did. The run's rows are not needed.

            >>> Bridge.load("zoo/bridges/facts", role="sender")
            <lw_jax.Bridge to mistral: 32 slots of 256 (float16), ..., sending end; on cpu>

        Models are looked up as `lw_jax.runs.places` says: from the current directory, then from
        the bridge's own and those above it. Their fingerprints have to be those of training.

        Args:
            run_dir: of a run, or of an exported bridge (as those in `zoo/bridges` are), or the name
                of one on the Hugging Face hub.
            checkpoint: of a run.
            role: which end this is: "sender" loads no receiver, and "receiver" no sender but for
                its config.json; "both" is both.
            sender: directory or hub name of the sender, if it has moved.
            receivers: the same of receivers by name.
            key: that both ends share, 16 bytes or more: packets carry an HMAC-SHA256, and those
                without the right one are refused. It says that a packet comes from someone who has
                the key, unchanged; it hides nothing.
            fingerprint: `same_model` takes the models of an exported bridge also where they are
                stored otherwise than in training (a GGUF file, other bits, another dtype), with a
                warning; `exact` does not; None: as its config says, which is `exact` by default.
            gate: a file that `lw-jax probe hostile` wrote: messages that it does not let pass are
                refused by all that reads one; None: no gate.
            devices: numbers of the devices (in `jax.devices()`) that hold the models, of which
                `mesh.tensor` are used, so that one process can have its two ends on different ones;
                None: the first.

        Raises:
            UserError: neither there, nothing trained yet, its receiver needs the text as well, or
                the frozen models are not to be had.
        """
        program_cache.use()
        home = bridge_at(arguments.path("run_dir", run_dir))
        arguments.one_of("checkpoint", checkpoint, ("last", "best"))
        arguments.one_of("role", role, ("both", "sender", "receiver"))
        secret = arguments.key("key", key)
        config = config_at(home)
        if config.bridge is None:
            raise UserError(f"{run_dir}: that run has no bridge")
        if config.layout.with_text:
            raise UserError(
                f"{run_dir}: its receiver reads the text beside what is delivered "
                "(layout.with_text), so there is no wire to send over"
            )
        if fingerprint is not None:
            arguments.one_of("fingerprint", fingerprint, get_args(Fingerprint))
            config = replace(config, fingerprint=fingerprint)
        config = located(config, home, sender, receivers)
        # Rows of a call are few: they cannot be spread over devices.
        config = replace(config, mesh=MeshConfig(data=1, tensor=config.mesh.tensor))
        mesh = make_mesh(config.mesh, _devices(devices))
        try:
            if role == "both":
                pipeline = open_pipeline(config, mesh, home, rows=False)
            else:
                pipeline = open_half(config, mesh, home, role, saved_at(home))
        except UserError as error:
            if not str(error).startswith("model "):
                raise
            raise UserError(
                f"{error}; Bridge.load is told where it is by sender= or receivers="
            ) from error
        if sender is not None or receivers:
            check_frozen(saved_at(home), pipeline, home)
        exported = is_exported(home)
        origin = str(home) if exported else None
        trained = load_trained(config, home, pipeline, checkpoint, init_from=origin)
        longest = _whole_numbers(about_bridge(home).get(LONGEST)) if exported else {}
        where = None if gate is None else arguments.path("gate", gate)
        opened = None if where is None else Gate.load(where, trained.mark)
        decode, reach = _decoding(config), _reach(config)
        return cls(pipeline, trained, decode, secret, role, longest, reach, home, opened)

    def __repr__(self) -> str:
        s, bridge = self.pipeline, self.pipeline.bridge
        limits = bridge.limits
        slots = "any number of" if limits.most is None else f"up to {limits.most}"
        if limits.fewest == limits.most:
            slots = f"{limits.fewest}"
        ends = {"both": "", "sender": ", sending end", "receiver": ", receiving end"}[self.role]
        names = ", ".join(bridge.dims.receivers)
        return (
            f"<lw_jax.Bridge to {names}: {slots} slots of {limits.width} ({bridge.codec}), "
            f"{sum(self.trained.counts.values()):,} parameters, stage {self.trained.stage}, "
            f"step {self.trained.step}{', key' if self.key else ''}{ends}; on "
            f"{s.mesh.devices.flat[0].platform}>"
        )

    def push(self, name: str, *, licence: str | None = None, private: bool = True) -> str:
        """Puts the bridge on the Hugging Face hub, as `lw-jax export --push` does; from there
        `Bridge.load(name)` has it. No frozen model goes with it.

        Args:
            name: of the repository, `user/name`; made if it is not there.
            licence: of the bridge's weights, a name that the hub knows, for the model card.
            private: whether a new repository is private.

        Returns:
            The address of its page.

        Raises:
            UserError: the name is none, the hub does not take it, it was loaded with
                `checkpoint="best"`, or its frozen models are not to be had.
        """
        if self.home is None or self.trained.which != "last":
            raise UserError("push: the last checkpoint of a run is pushed; load that")
        hub.repository(name)
        with tempfile.TemporaryDirectory() as folder:
            export(self.home, Path(folder), card=True, licence=licence)
            return hub.push(Path(folder), name, private)

    def warm_up(
        self,
        tokens: int | None = None,
        receiver: str | None = None,
        ratio: float | None = None,
        *,
        question: int | None = None,
        rows: int = 1,
        parts: int = 1,
        words: int = 0,
        talk: bool = False,
    ) -> None:
        """Compiles what calls will need, so that the first of them is as fast as the others.

        Args:
            tokens: of the longest text in the sender's tokens, 1 to 65,536; None: the longest that
                the bridge was trained on, else 128.
            receiver: that will be asked; may be left out where there is one.
            ratio: as in `encode`.
            question: tokens of the longest question, its anchor included; None: the longest that
                the bridge was trained on, else 32.
            rows: texts or questions in a call, at most.
            parts: of a message, at most.
            words: tokens of the longest text that the receiver is given in words.
            talk: whether `answer_stream` and conversations are to be compiled as well.

        Raises:
            UserError: an argument is not what it should be.
        """

        def whole(what: str, value: Any, low: int) -> int:
            if arguments.number(f"warm_up: {what}", value, low, 2**16) % 1:
                raise UserError(f"warm_up: {what}: expected a whole number; got {value}")
            return int(value)

        most = self.longest_text if tokens is None else whole("tokens", tokens, 1)
        counts = [n for n in ROW_RUNGS if n <= rung_of(min(whole("rows", rows, 1), ROW_RUNGS[-1]))]
        if self.role != "receiver":
            ctx = self._context("", None if ratio is None else self._ratio(ratio))
            for size in rungs(TEXT_RUNG, most, None):
                blank = self._blank(size)
                for count in counts:
                    batch = {k: np.repeat(x, count, axis=0) for k, x in blank.items()}
                    jax.block_until_ready(packets.encode(ctx, batch))
        if self.role == "sender":
            return
        name, limits = self._receiver(receiver), self.pipeline.bridge.limits
        slots = rungs(SLOTS_RUNG, most, limits.most)
        if limits.fewest == limits.most:
            slots = [limits.fewest]
        asks = self.longest_question(name) if question is None else whole("question", question, 1)
        for size in rungs(TEXT_RUNG, asks, None):
            ids = [0] * size
            ready = [
                Question(name, tuple(ids), (one,) * n, (), self._size(name, ids, (one,) * n))
                for one in map(self._blank_latent, slots)
                for n in rungs(PARTS_RUNG, whole("parts", parts, 1), None)
            ]
            for n in rungs(TEXT_RUNG, words, None) if whole("words", words, 0) else ():
                long = self._size(name, ids) | {"words": n}
                ready.append(Question(name, tuple(ids), (), (0,) * n, long))
            for one_size in ready:
                for count in counts if one_size.latents else counts[:2]:  # a text and its cut
                    self.ask([one_size] * count)
                if talk and one_size.latents:
                    self._blank_talk(one_size)


def _whole_numbers(value: Any) -> dict[str, int]:
    """The whole numbers in a JSON value, by key."""
    held = value if isinstance(value, dict) else {}
    return {k: n for k, n in held.items() if isinstance(n, int)}


def _reach(config: Config) -> int | None:
    """The most tokens that a text can have for the sources of a config; None: unknown."""
    assert config.bridge is not None
    found = []
    for source in config.bridge.views.values():
        own = None if source.reads_sender else source.tokenizer(None)
        if own is not None and own.limit is not None:
            found.append(own.limit)
        elif config.sender is not None:
            found.append(read_arch(small_files(config.sender.path)).max_positions)
    return max(found, default=None)


def _decoding(config: Config) -> DecodeConfig:
    """As the last evaluation decodes; where it leaves stops to the task, with the task's."""
    found = [s.evaluate for s in config.stages.values() if s.evaluate is not None]
    decode, data = DecodeConfig(), config.data
    if found:
        decode, data = found[-1].decode, found[-1].data or data
    return replace(decode, stop=stop_strings(decode.stop, data_set(data), config.layout))


def _devices(numbers: Sequence[int] | None) -> list[jax.Device] | None:
    """The devices of these numbers; None: none were given.

    Raises:
        UserError: a number is none of a device, or given twice.
    """
    if numbers is None:
        return None
    given, there = list(numbers), jax.devices()
    fits = [n for n in given if isinstance(n, int) and 0 <= n < len(there)]
    if not given or len(fits) < len(given) or len(set(given)) < len(given):
        raise UserError(
            f"devices: expected different numbers from 0 to {len(there) - 1}; got {given!r:.80}"
        )
    return [there[n] for n in given]
