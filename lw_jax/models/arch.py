"""The architecture of a frozen decoder: what a Hugging Face `config.json` says, and nothing else.

One dataclass covers the Llama, Mistral, Qwen2 and Qwen3 families (docs/design.md section 2). It is
hashable, so it travels as a static argument of jitted functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lw_jax.errors import UserError
from lw_jax.models.arch_keys import (
    FAMILIES,
    check_keys,
    named,
    number,
    shown,
    switch,
    token_ids,
    whole,
)


@dataclass(frozen=True)
class Llama3Scaling:
    """RoPE scaling of Llama 3.1: long wavelengths are slowed, short ones kept.

    Attributes:
        factor: factor by which long wavelengths are slowed.
        low_freq_factor: wavelengths above `original_max_positions / low_freq_factor` are long.
        high_freq_factor: wavelengths below `original_max_positions / high_freq_factor` are short.
        original_max_positions: context length before the scaling.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclass(frozen=True)
class Rope:
    """Rotary positions.

    Attributes:
        theta: base of the frequencies.
        scaling: `llama3` scaling; None: no scaling.
    """

    theta: float
    scaling: Llama3Scaling | None = None


@dataclass(frozen=True)
class Arch:
    """Sizes and switches of one decoder.

    Attributes:
        family: the model_type, one of `FAMILIES`.
        vocab_size: V, entries of the vocabulary.
        width: D, width of the residual stream.
        layers: L, number of layers.
        heads: H, query heads.
        kv_heads: K, key/value heads; it divides H.
        head_dim: h, width of a head.
        mlp_width: F, hidden width of the MLP.
        norm_eps: epsilon of the RMS norms.
        rope: rotary positions.
        window: positions that a query looks back, its own included; None: all.
        qkv_bias: whether queries, keys and values have a bias.
        qk_norm: whether queries and keys are normed.
        tied: whether the output head is the embedding table.
        max_positions: context length that the model was trained with.
        bos_id: token that begins a sequence; None: the model has none.
        eos_ids: all tokens that end a sequence.
        init_std: standard deviation of freshly initialised matrices.
    """

    family: str
    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    norm_eps: float
    rope: Rope
    window: int | None = None
    qkv_bias: bool = False
    qk_norm: bool = False
    tied: bool = False
    max_positions: int = 2048
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    init_std: float = 0.02

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise UserError(
                f"model family {self.family!r} is not supported; choose from {', '.join(FAMILIES)}"
            )
        if self.heads % self.kv_heads:
            raise UserError(
                f"{self.heads} attention heads cannot share {self.kv_heads} key/value heads evenly"
            )
        scaling = self.rope.scaling
        if scaling is not None and scaling.high_freq_factor <= scaling.low_freq_factor:
            raise UserError("llama3 RoPE: high_freq_factor must be greater than low_freq_factor")
        if self.head_dim % 2:
            raise UserError(f"head_dim {self.head_dim} is odd; rotary positions need it even")

    @staticmethod
    def from_hf(
        config: Mapping[str, Any],
        generation_config: Mapping[str, Any] | None = None,
        where: str = "config.json",
    ) -> Arch:
        """Reads a Hugging Face config.

        Both spellings of RoPE are read: `rope_theta` + `rope_scaling` (hub files) and
        `rope_parameters` (transformers 5).

        Args:
            config: contents of config.json.
            generation_config: contents of generation_config.json; its EOS ids come first.
            where: name of the file, for error messages.

        Raises:
            UserError: unknown model_type or RoPE type, or a key that would change the maths.
        """
        family = check_keys(config, where)
        facts = FAMILIES[family]
        width, heads = (
            whole(config, "hidden_size", where),
            whole(config, "num_attention_heads", where),
        )
        layers = whole(config, "num_hidden_layers", where)
        kv_heads, head_dim = facts.kv_heads or heads, facts.head_dim or max(1, width // heads)
        if config.get("num_key_value_heads", kv_heads) is None:
            config, kv_heads = _without(config, "num_key_value_heads"), heads
        if config.get("head_dim", head_dim) is None:
            config, head_dim = _without(config, "head_dim"), max(1, width // heads)
        generation = generation_config or {}
        beside = where.replace("config.json", "generation_config.json")
        own = token_ids(generation, "eos_token_id", beside)
        starts = token_ids(config, "bos_token_id", where)
        starts = starts or token_ids(generation, "bos_token_id", beside)
        return Arch(
            family=family,
            vocab_size=whole(config, "vocab_size", where),
            width=width,
            layers=layers,
            heads=heads,
            kv_heads=whole(config, "num_key_value_heads", where, kv_heads),
            head_dim=whole(config, "head_dim", where, head_dim),
            mlp_width=whole(config, "intermediate_size", where),
            norm_eps=number(config, "rms_norm_eps", where, 1e-6, least=0.0, most=1.0),
            rope=_rope(config, where),
            window=_window(config, family, layers, where),
            qkv_bias=facts.qkv_bias,
            qk_norm=facts.qk_norm,
            tied=switch(config, "tie_word_embeddings", where),
            max_positions=whole(config, "max_position_embeddings", where, facts.max_positions),
            bos_id=starts[0] if starts else None,
            eos_ids=own or token_ids(config, "eos_token_id", where),
            init_std=number(config, "initializer_range", where, 0.02, least=0.0),
        )

    def to_hf(self) -> dict[str, Any]:
        """An ordinary `config.json`, in the hub's spelling, that transformers 4 and 5 both read."""
        scaling = self.rope.scaling
        config: dict[str, Any] = {
            "architectures": [FAMILIES[self.family].architecture],
            "model_type": self.family,
            "vocab_size": self.vocab_size,
            "hidden_size": self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.mlp_width,
            "hidden_act": "silu",
            "rms_norm_eps": self.norm_eps,
            "rope_theta": self.rope.theta,
            "rope_scaling": None
            if scaling is None
            else {
                "rope_type": "llama3",
                "factor": scaling.factor,
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original_max_positions,
            },
            "max_position_embeddings": self.max_positions,
            "tie_word_embeddings": self.tied,
            "initializer_range": self.init_std,
            "attention_dropout": 0.0,
            "use_cache": True,
            "bos_token_id": self.bos_id,
            "eos_token_id": _unwrap(self.eos_ids),
            "torch_dtype": "bfloat16",
        }
        if self.family == "llama":
            config |= {"attention_bias": False, "mlp_bias": False, "pretraining_tp": 1}
        elif self.family == "mistral":
            config |= {"sliding_window": self.window}
        else:
            config |= {
                "use_sliding_window": self.window is not None,
                "sliding_window": self.window,
                "max_window_layers": self.layers if self.window is None else 0,
            }
        return config

    def generation_config(self) -> dict[str, Any]:
        """The `generation_config.json` that belongs to `to_hf()`: BOS and EOS ids."""
        return {"bos_token_id": self.bos_id, "eos_token_id": _unwrap(self.eos_ids)}


def _rope(config: Mapping[str, Any], where: str) -> Rope:
    """RoPE from either spelling; a missing base is the families' common default, 10000."""
    spelled = [config[k] for k in ("rope_scaling", "rope_parameters") if config.get(k) is not None]
    if any(not isinstance(given, Mapping) for given in spelled):
        raise UserError(
            f"{where}: rope_scaling and rope_parameters must be JSON objects, "
            f"found {shown(next(x for x in spelled if not isinstance(x, Mapping)))}"
        )
    full = [given for given in spelled if given]
    theta, stated = 10000.0, config.get("rope_theta") is not None
    if stated:
        theta = number(config, "rope_theta", where)
    for given in full:
        if given.get("rope_theta") is not None:
            inner = number(given, "rope_theta", f"{where}, rope")
            if stated and inner != theta:
                raise UserError(
                    f"{where}: rope_theta is {theta} but its rope parameters say {inner}"
                )
            theta = inner
    if theta <= 0:
        raise UserError(f"{where}: rope_theta must be greater than 0, found {theta}")
    if len(full) == 2 and dict(full[0]) != dict(full[1]):
        raise UserError(f"{where}: rope_scaling and rope_parameters disagree; keep one of them")
    given = full[0] if full else {}
    nested = sorted(key for key, value in given.items() if isinstance(value, (Mapping, list)))
    nested = [key for key in nested if key != "mrope_section"]
    if nested:
        raise UserError(
            f"{where}: rope parameters of their own for {shown(nested[0])} are not supported; "
            "all layers must share them"
        )
    kind = given.get("rope_type", given.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise UserError(
            f"{where}: rope type {shown(kind)} is not supported; known: default, llama3"
        )
    if given.get("partial_rotary_factor") is not None and (
        number(given, "partial_rotary_factor", f"{where}, rope") != 1.0
    ):
        raise UserError(f"{where}: partial_rotary_factor must be 1.0 (whole heads are rotated)")
    known = {"rope_theta", "rope_type", "type", "partial_rotary_factor"}
    if kind == "default":
        return Rope(theta)
    fields = ("factor", "low_freq_factor", "high_freq_factor")
    positions = "original_max_position_embeddings"
    unknown = sorted(set(given) - known - {*fields, positions})
    if unknown:
        names = ", ".join(named(name) for name in unknown[:5])
        raise UserError(f"{where}: rope parameters {names} are not known for llama3")
    factor, low, high = (number(given, key, f"{where}, rope") for key in fields)
    if min(factor, low, high) <= 0:
        raise UserError(f"{where}: the factors of llama3's rope parameters must be greater than 0")
    # As in transformers: the config's own key, then the rope's, then the context length.
    sources = [x for x in (config, given) if x.get(positions) is not None]
    if sources:
        return Rope(theta, Llama3Scaling(factor, low, high, whole(sources[0], positions, where)))
    longest = whole(config, "max_position_embeddings", where, 2048)
    return Rope(theta, Llama3Scaling(factor, low, high, longest))


def _window(config: Mapping[str, Any], family: str, layers: int, where: str) -> int | None:
    """The sliding window, if all layers have the same; a mixture of layers is refused.

    A missing key is the family's default, null is no window. Llama has none, whatever the key says.
    """
    facts = FAMILIES[family]
    missing = "sliding_window" not in config
    window = facts.window if missing else config["sliding_window"]
    if window is not None:
        window = whole({"sliding_window": window}, "sliding_window", where)
    on = switch(config, "use_sliding_window", where)
    first = int(number(config, "max_window_layers", where, 28, least=0))
    if family == "llama":
        window = None
    if family.startswith("qwen") and not on:
        window = None
    sliding = [window is not None] * layers
    if family.startswith("qwen"):
        sliding = [window is not None and i >= first for i in range(layers)]
    if kinds := config.get("layer_types"):
        if not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds):
            raise UserError(f"{where}: layer_types must be a list of names, found {shown(kinds)}")
        unknown = sorted(set(kinds) - {"full_attention", "sliding_attention"})
        if unknown:
            raise UserError(f"{where}: layer_types {shown(unknown[0])} are not supported")
        if len(kinds) != layers:
            raise UserError(f"{where}: layer_types names {len(kinds)} layers of {layers}")
        named = [kind == "sliding_attention" for kind in kinds]
        if all(named) and window is None:
            raise UserError(
                f"{where}: layer_types has sliding_attention, but no sliding_window is switched on"
            )
        if family == "mistral" and len(set(named)) == 1 and named != sliding:
            raise UserError(f"{where}: layer_types and sliding_window disagree")
        sliding = named
    if any(sliding) != all(sliding):
        raise UserError(f"{where}: some layers have a sliding window and some none; all must agree")
    return window if all(sliding) else None


def _without(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name != key}


def _unwrap(ids: tuple[int, ...]) -> int | list[int] | None:
    return None if not ids else ids[0] if len(ids) == 1 else list(ids)
