"""A wire between two tiny random models, far from any training: enough to check bookkeeping."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lw_jax.bridge.bridge import Bridge
from lw_jax.bridge.bridge import fresh as initial
from lw_jax.bridge.config import BridgeConfig, CompressorConfig, ReaderConfig, SourceConfig
from lw_jax.compressors import perceiver
from lw_jax.data.example import Example
from lw_jax.data.facts import FactsRows
from lw_jax.evaluate import packets
from lw_jax.evaluate.methods.base import EvalContext, Method
from lw_jax.models.dims import BridgeDims, ModelDims
from lw_jax.models.frozen import FrozenDecoder, FrozenModels
from lw_jax.models.params import init
from lw_jax.pretrain.tokenizer import special_ids, train_bpe
from lw_jax.readers import deep_prefix, soft_tokens
from lw_jax.sources import hidden_states
from lw_jax.text.collate import Collate, measure
from lw_jax.text.layout import prompts_of
from lw_jax.text.layout_config import LayoutConfig
from lw_jax.text.tokenizer import Tokenizer
from lw_jax.types import Latent
from tests.tiny.arch import decoder

LAYOUT = LayoutConfig()
SLOTS, WIDTH, PREFIX = 4, 12, 6
RECEIVER = "reader"
MARK = b"01234567"


@dataclass(frozen=True)
class World:
    """Examples about as many contexts, and everything that carries them."""

    examples: list[Example]
    others: list[Example]
    sender: Tokenizer
    tokenizer: Tokenizer
    collate: Collate
    ctx: EvalContext

    def batch(self, start: int, size: int) -> dict[str, np.ndarray]:
        return self.collate([(e,) for e in self.examples[start : start + size]])

    def other(self, start: int, size: int) -> dict[str, np.ndarray]:
        return self.collate([(e,) for e in self.others[start : start + size]])

    def with_reader(self, **readers: Any) -> World:
        """The same world with other readers, freshly initialised."""
        return self.with_parts(5, reader=ReaderConfig(**readers))

    def with_parts(self, seed: int, **parts: Any) -> World:
        """The same world with other parts of the bridge, all of it freshly initialised."""
        bridge = replace(self.ctx.bridge, config=replace(self.ctx.bridge.config, **parts))
        return replace(self, ctx=self.ctx.replace(bridge=bridge, params=fresh(bridge, seed)))

    def with_layout(self, layout: LayoutConfig) -> World:
        """The same world with another receiver's sequence."""
        groups = [(e,) for e in [*self.examples, *self.others]]
        readers = {RECEIVER: self.tokenizer}
        collate = Collate(
            layout, self.sender, readers, measure(layout, self.sender, readers, groups)
        )
        frozen = self.ctx.frozen
        frozen_models = FrozenModels.of(
            frozen.sender, frozen.receivers, prompts_of(layout, {RECEIVER: self.tokenizer})
        )
        return replace(self, collate=collate, ctx=self.ctx.replace(frozen=frozen_models))


def received(ctx: EvalContext, how: Method, batch: dict[str, np.ndarray]) -> Latent | None:
    """What a method is given of a batch: the latents as their bytes say them."""
    if how.latent is None:
        return None
    sent = jax.device_get(packets.encode(ctx, batch))
    rows = packets.to_packets(ctx.bridge, sent, how.codec, MARK, fit=True)
    opened = [packets.opened(ctx.bridge, data, MARK) for data in rows]
    return packets.filled(opened, sent.latent.mask.shape[1])


def fresh(bridge: Bridge, seed: int) -> Any:
    """Random parameters of a bridge."""
    return draw(initial.eval_shape(bridge, jax.random.key(0)), seed, 0.3)


def draw(shapes: Any, seed: int, std: float) -> Any:
    """Normal draws in these shapes, norms' weights 1; numpy's, so that nothing is compiled."""
    rng = np.random.default_rng(seed)

    def leaf(path: Any, s: Any) -> Any:
        one = "norm" in jax.tree_util.keystr(path)
        value = np.ones(s.shape) if one else rng.normal(0, std, s.shape)
        return jnp.asarray(value.astype(s.dtype), s.dtype)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def make_party(
    family: str, vocab: int, seed: int, texts: Sequence[str]
) -> tuple[FrozenDecoder, Tokenizer]:
    """A random model whose logits are far apart, with a good share of tokens that end an answer.

    Its pad, EOS and id 0 are the same, so that padding known by id would be noticed.
    """
    hf_tokenizer = train_bpe(texts, vocab, family=family, single_digits=family == "mistral")
    bos = special_ids(hf_tokenizer, family)["bos_token_id"]
    arch = decoder(
        family=family,
        vocab_size=vocab,
        width=24,
        layers=2,
        heads=4,
        kv_heads=2,
        head_dim=6,
        mlp_width=32,
        bos_id=bos,
        eos_ids=(0, *range(vocab - 24, vocab)),
        init_std=0.35,
    )
    params = draw(jax.eval_shape(lambda: init(arch, jax.random.key(0))), seed, arch.init_std)
    tokenizer = Tokenizer(family, hf_tokenizer, bos, 0)
    return FrozenDecoder(params, arch), tokenizer


def make_world(rows: int, level: int = 1, slots: int = SLOTS, prefix: int = PREFIX) -> World:
    """Contexts of `level` facts, one question each; read as soft tokens and a deep prefix."""
    facts = FactsRows("eval", 0, level, rows + 1)
    examples = [facts[i][0] for i in range(rows)]
    others = [facts[i + 1][0] for i in range(rows)]
    texts = [e.context for e in examples]
    sender, says = make_party("llama", 300, 0, texts)
    receiver, reads = make_party("mistral", 290, 1, texts)
    config = BridgeConfig(
        latent_dim=WIDTH,
        source=SourceConfig(hidden_states=hidden_states.Config(layers=(1,))),
        compressor=CompressorConfig(
            perceiver=perceiver.Config(slots=slots, width=16, heads=2, depth=1)
        ),
        reader=ReaderConfig(
            soft_tokens=soft_tokens.Config(),
            deep_prefix=deep_prefix.Config(length=prefix, heads=2, mlp_ratio=0),
        ),
    )
    dims = BridgeDims(
        sender.arch.width,
        1,
        WIDTH,
        {
            RECEIVER: ModelDims(
                width=receiver.arch.width,
                layers=receiver.arch.layers,
                kv_heads=receiver.arch.kv_heads,
                head_dim=receiver.arch.head_dim,
                embed_rms=0.35,
                heads=receiver.arch.heads,
            )
        },
    )
    groups = [(e,) for e in [*examples, *others]]
    lengths = measure(LAYOUT, says, {RECEIVER: reads}, groups)
    bridge = Bridge(config, dims)
    ctx = EvalContext(
        frozen=FrozenModels.of(sender, {RECEIVER: receiver}, prompts_of(LAYOUT, {RECEIVER: reads})),
        params=fresh(bridge, 2),
        mean=jnp.asarray(np.random.default_rng(0).normal(size=(slots + 1, WIDTH)), jnp.float32),
        bridge=bridge,
        receiver=RECEIVER,
    )
    collate = Collate(LAYOUT, says, {RECEIVER: reads}, lengths)
    return World(examples, others, says, reads, collate, ctx)
