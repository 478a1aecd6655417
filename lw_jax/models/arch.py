"""The architecture of a frozen decoder: what a Hugging Face `config.json` says, and nothing else.

One dataclass covers the Llama, Mistral, Qwen2 and Qwen3 families (docs/design.md section 2). It is
hashable, so it travels as a static argument of jitted functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lw_jax.errors import UserError
from lw_jax.models.arch_keys import FAMILIES, check_keys, number, whole


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
        generation = generation_config or {}
        return Arch(
            family=family,
            vocab_size=whole(config, "vocab_size", where),
            width=width,
            layers=layers,
            heads=heads,
            kv_heads=whole(config, "num_key_value_heads", where, facts.kv_heads or heads),
            head_dim=whole(config, "head_dim", where, facts.head_dim or width // heads),
            mlp_width=whole(config, "intermediate_size", where),
            norm_eps=number(config, "rms_norm_eps", where, 1e-6),
            rope=_rope(config, where),
            window=_window(config, family, layers, where),
            qkv_bias=facts.qkv_bias,
            qk_norm=facts.qk_norm,
            tied=bool(config.get("tie_word_embeddings") or False),
            max_positions=whole(config, "max_position_embeddings", where, 2048),
            bos_id=_first(config.get("bos_token_id"), generation.get("bos_token_id")),
            eos_ids=_ids(_first(generation.get("eos_token_id"), config.get("eos_token_id"))),
            init_std=number(config, "initializer_range", where, 0.02),
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
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    top, inner = config.get("rope_theta"), given.get("rope_theta")
    if top is not None and inner is not None and float(top) != float(inner):
        raise UserError(f"{where}: rope_theta is {top} but its rope parameters say {inner}")
    theta = float(_first(inner, top, 10000.0))
    kind = given.get("rope_type", given.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise UserError(f"{where}: rope type {kind!r} is not supported; known: default, llama3")
    if float(given.get("partial_rotary_factor") or 1.0) != 1.0:
        raise UserError(f"{where}: partial_rotary_factor must be 1.0 (whole heads are rotated)")
    known = {"rope_theta", "rope_type", "type", "partial_rotary_factor"}
    if kind == "default":
        return Rope(theta)
    fields = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    unknown = sorted(set(given) - known - set(fields))
    if unknown:
        raise UserError(f"{where}: rope parameters {', '.join(unknown)} are not known for llama3")
    factor, low, high, original = (number(given, key, f"{where}, rope") for key in fields)
    return Rope(theta, Llama3Scaling(factor, low, high, int(original)))


def _window(config: Mapping[str, Any], family: str, layers: int, where: str) -> int | None:
    """The sliding window, if all layers have the same; a mixture of layers is refused."""
    window = config.get("sliding_window")
    sliding = [window is not None and family == "mistral"] * layers
    if family.startswith("qwen"):
        on = bool(config.get("use_sliding_window")) and window is not None
        first = int(config.get("max_window_layers", 28))
        sliding = [on and i >= first for i in range(layers)]
    if config.get("layer_types"):
        unknown = set(config["layer_types"]) - {"full_attention", "sliding_attention"}
        if unknown:
            raise UserError(f"{where}: layer_types {', '.join(sorted(unknown))} are not supported")
        sliding = [kind == "sliding_attention" for kind in config["layer_types"]]
    if any(sliding) != all(sliding):
        raise UserError(f"{where}: some layers have a sliding window and some none; all must agree")
    if sliding and all(sliding) and window is None:
        raise UserError(f"{where}: layers are of sliding_attention but sliding_window is missing")
    return int(window) if window is not None and all(sliding) else None


def _first(*values: Any) -> Any:
    """The first value that is not None."""
    return next((value for value in values if value is not None), None)


def _ids(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(int(i) for i in value) if isinstance(value, (list, tuple)) else (int(value),)


def _unwrap(ids: tuple[int, ...]) -> int | list[int] | None:
    return None if not ids else ids[0] if len(ids) == 1 else list(ids)
