"""The Python API: a text to bytes on one machine, bytes and a question to an answer on another.

bridge = Bridge.load("runs/quickstart")
sent = bridge.encode("Ada keeps 7 goats in the barn.")
bridge.answer(sent, "How many goats does Ada keep?")
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import jax

from lw_jax.config.schema import Config
from lw_jax.data.example import Example
from lw_jax.data.load import data_set
from lw_jax.errors import UserError
from lw_jax.evaluate import packets
from lw_jax.evaluate.config import DecodeConfig
from lw_jax.evaluate.methods.base import EvalContext
from lw_jax.evaluate.predict import options_of
from lw_jax.mesh import MeshConfig, make_mesh
from lw_jax.pipeline import Pipeline
from lw_jax.receiver import answer
from lw_jax.receiver.answer import Message
from lw_jax.runs.exported import is_exported
from lw_jax.runs.session import open_pipeline
from lw_jax.runs.trained import Trained, config_at, load_trained
from lw_jax.text.collate import MULTIPLE, Collate, Sources, by_key, measure
from lw_jax.text.layout_config import LayoutConfig
from lw_jax.text.stop import stop_of, stop_strings
from lw_jax.types import Latent
from lw_jax.wire.codecs import codec as check


@dataclass(frozen=True)
class Bridge:
    """A trained bridge with its frozen models. Make one with `Bridge.load`.

    Attributes:
        pipeline: the frozen models, their tokenizers and the bridge.
        trained: the bridge's parameters, and where they come from.
        decode: how answers are decoded.
    """

    pipeline: Pipeline
    trained: Trained
    decode: DecodeConfig

    @classmethod
    def load(cls, run_dir: str | Path, checkpoint: Literal["last", "best"] = "last") -> Bridge:
        """The bridge of a run, decoding as its last evaluation did. The run's rows are not needed.

        Args:
            run_dir: of a run, or of an exported bridge (as those in `zoo/bridges` are).
            checkpoint: of a run.

        Raises:
            UserError: neither there, nothing trained yet, its receiver needs the text as well, or
                the frozen models are not to be had.
        """
        home = Path(run_dir)
        config = config_at(home)
        if config.layout.with_text:
            raise UserError(
                f"{run_dir}: its receiver reads the text beside what is delivered "
                "(layout.with_text), so there is no wire to send over"
            )
        # One text at a time: rows cannot be spread over devices.
        mesh = make_mesh(MeshConfig(data=1, model=config.mesh.model))
        pipeline = open_pipeline(config, mesh, home, rows=False)
        origin = str(home) if is_exported(home) else None
        trained = load_trained(config, home, pipeline, checkpoint, init_from=origin)
        return cls(pipeline, trained, _decoding(config))

    def encode(
        self,
        text: str,
        question: str | None = None,
        codec: str | None = None,
        ratio: float | None = None,
    ) -> bytes:
        """One text as the bytes that cross the wire.

        Args:
            question: needed where the question travels in the latent, and only there.
            codec: of the slots, one of `lw_jax.wire.codecs.CODECS`; None: the one that holds
                exactly what this bridge sends.
            ratio: source tokens a slot, of a bridge trained for several; None: as its config says.

        Raises:
            UserError: a question is missing or of no use, the text is too long, the codec is
                unknown or cannot hold the slots, or the bridge has one number of slots only.
        """
        layout, sources = self.pipeline.layout, self.pipeline.sources
        inside = layout.question_in == "latent"
        if inside != (question is not None):
            raise UserError(
                "encode: this bridge carries the question in the latent; give it to encode"
                if inside
                else "encode: this bridge's receiver is asked the question; give it to answer"
            )
        row = (Example("", "", text, question or "", ("",)),)
        lengths = measure(layout, sources, {}, [row], layout.max_tokens)
        batch = Collate(layout, sources, {}, lengths)([row])
        if not batch["valid"].all():
            raise UserError(f"encode: the text is longer than {_longest(layout, sources)}")
        name = codec or self.pipeline.bridge.codec
        check(name, self.pipeline.bridge.levels)
        ctx = self._context(next(iter(self.pipeline.receivers)))
        if ratio is not None:
            ctx = replace(ctx, bridge=ctx.bridge.at_ratio(ratio))
        sent = jax.device_get(packets.encode(ctx, batch))
        (data,) = packets.to_packets(ctx.bridge, sent, name, self.trained.mark)
        return data

    def answer(self, data: bytes, question: str, receiver: str | None = None) -> str:
        """A receiver's answer to a question about the text behind the bytes.

        Args:
            question: "" where the question travels in the latent.
            receiver: its name; may be left out where there is one.

        Raises:
            UserError: the bytes are no latent of this bridge, or the receiver is unknown.
        """
        name = self._receiver(receiver)
        ctx, tokenizer = self._context(name), self.pipeline.receivers[name]
        sent = packets.opened(ctx.bridge, data, self.trained.mark)
        message = _deliver(ctx, packets.filled([sent], _multiple(sent.mask.shape[1])))
        options = options_of(self.decode, ctx.model.arch, tokenizer)
        ask = answer.question(self.pipeline.layout, tokenizer, question)
        said = answer.write(ctx.model, ctx.prompt, message, ask, jax.random.key(0), options)
        length, stopped = int(said.lengths[0]), bool(said.stopped[0])
        stop = stop_of(tokenizer, self.decode.stop or ())
        return stop.text(tokenizer, said.ids[0].tolist(), length, stopped)

    def _context(self, receiver: str) -> EvalContext:
        s = self.pipeline
        return EvalContext(s.frozen, self.trained.params, None, s.bridge, receiver)

    def _receiver(self, name: str | None) -> str:
        known = list(self.pipeline.receivers)
        if name is None and len(known) == 1:
            return known[0]
        if name not in known:
            raise UserError(f"answer: receiver {name!r} is not one of {', '.join(known)}")
        return name


@jax.jit
def _deliver(ctx: EvalContext, sent: Latent) -> Message:
    latent = ctx.received(sent)
    return answer.alone(ctx.model, ctx.deliver(latent), latent.mask.shape[0])


def _longest(layout: LayoutConfig, sources: Sources) -> str:
    """Which limit a text that does not fit is beyond."""
    found = by_key(sources).values()
    limits = [one.limit for one in found if one.limit is not None]
    if limits:
        return f"max_bytes {min(limits)}"
    room = min((one.positions for one in found if one.positions is not None), default=None)
    if room is not None and room <= (layout.max_tokens or room):
        return f"the encoder's {room} positions"
    return f"layout.max_tokens {layout.max_tokens}"


def _multiple(count: int) -> int:
    return max(1, -(-count // MULTIPLE)) * MULTIPLE


def _decoding(config: Config) -> DecodeConfig:
    """As the last evaluation decodes; where it leaves stops to the task, with the task's."""
    found = [s.evaluate for s in config.stages.values() if s.evaluate is not None]
    decode, data = DecodeConfig(), config.data
    if found:
        decode, data = found[-1].decode, found[-1].data or data
    return replace(decode, stop=stop_strings(decode.stop, data_set(data), config.layout))
