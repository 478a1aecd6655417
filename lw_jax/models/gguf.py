"""A frozen model in one GGUF file, the format of llama.cpp.

The format is described in github.com/ggml-org/ggml, docs/gguf.md.

The file is read as transformers reads it: what its metadata says is put into the keys of a
config.json, its tensors into the names and the order of a Hugging Face checkpoint, in float32, one
at a time, and its tokenizer is built by transformers. The package `gguf` is an extra:
`pip install "lw_jax[gguf]"`.
"""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lw_jax import errors
from lw_jax.errors import UserError
from lw_jax.models.arch_keys import number, shown

SUFFIX = ".gguf"
_FAMILIES = {"llama": "llama", "mistral": "mistral", "qwen2": "qwen2", "qwen3": "qwen3"}
"""model_type by `general.architecture`; llama.cpp writes Mistral's models as llama."""
_CONFIG = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "embedding_length": "hidden_size",
    "rope.freq_base": "rope_theta",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim",
    "vocab_size": "vocab_size",
}
"""Keys of config.json by metadata key, after the architecture's own prefix."""
_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "attn_q.bias": "self_attn.q_proj.bias",
    "attn_k.bias": "self_attn.k_proj.bias",
    "attn_v.bias": "self_attn.v_proj.bias",
    "attn_q_norm.weight": "self_attn.q_norm.weight",
    "attn_k_norm.weight": "self_attn.k_norm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}
_ROPE_FACTORS = "rope_freqs.weight"
_SPECIAL = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
_TOKENIZER = {
    "model": "tokenizer_type",
    "pre": "pre_tokenizer_type",
    "tokens": "tokens",
    "scores": "scores",
    "token_type": "token_type",
    "merges": "merges",
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "unknown_token_id": "unk_token_id",
    "padding_token_id": "pad_token_id",
    "add_space_prefix": "add_prefix_space",
}
"""What transformers calls the metadata under `tokenizer.ggml.`."""


AT_ONCE = 2**19
"""Bytes of a quantised tensor that become floats together."""


class Slice(NamedTuple):
    """What a file's header says of a tensor, in the form of safetensors' slices.

    Attributes:
        shape: its shape in a Hugging Face checkpoint.
        dtype: of what `get_tensor` gives.
    """

    shape: tuple[int, ...]
    dtype: str = "F32"

    def get_shape(self) -> list[int]:
        """The shape."""
        return list(self.shape)

    def get_dtype(self) -> str:
        """The dtype, as safetensors spells it."""
        return self.dtype


class GGUF:
    """An open GGUF file.

    Attributes:
        path: the file.
        metadata: its metadata by key; arrays are read when they are asked for (`array`).
        family: the model_type.
    """

    def __init__(self, path: Path) -> None:
        """Reads the header of a file.

        Raises:
            UserError: no GGUF file, a family that is not known, or no `gguf` package.
        """
        self.path = path
        self._reader = _read(path)
        with _read_of(path):
            self.metadata = {
                key: field.contents()
                for key, field in self._reader.fields.items()
                if not _is_long(key, field)
            }
        name = self.metadata.get("general.architecture")
        if not isinstance(name, str) or name not in _FAMILIES:
            raise UserError(
                f"{path}: models of architecture {name!r} are not supported; known: "
                f"{', '.join(_FAMILIES)}"
            )
        self.family = _FAMILIES[name]
        self._prefix = f"{name}."
        self._tensors = {self._name(tensor.name): tensor for tensor in self._reader.tensors}
        self._tensors.pop(_ROPE_FACTORS, None)

    def array(self, key: str) -> list[Any]:
        """An array of the metadata; empty if there is none."""
        from lw_jax.models.gguf_reader import values

        field = self._reader.fields.get(key)
        with _read_of(self.path):
            return [] if field is None else values(field)

    @property
    def stored(self) -> str:
        """How the weights are stored, e.g. `gguf Q4_1, Q8_0`."""
        kinds = {_kind(tensor) for tensor in self._tensors.values()}
        return f"gguf {', '.join(sorted(kinds - {'F32'}) or ['F32'])}"

    # Config

    @cached_property
    def config(self) -> dict[str, Any]:
        """What a config.json of this model says; not to be changed.

        Raises:
            UserError: a key that is missing, or one that would change the maths and is not known.
        """
        own = {
            key.removeprefix(self._prefix): value
            for key, value in self.metadata.items()
            if key.startswith(self._prefix)
        }
        config: dict[str, Any] = {
            "model_type": self.family,
            "tie_word_embeddings": "lm_head.weight" not in self._tensors,
        }
        config |= {new: own.pop(old) for old, new in _CONFIG.items() if old in own}
        if "vocab_size" not in config:
            tokens = self._reader.fields.get("tokenizer.ggml.tokens")
            config["vocab_size"] = 0 if tokens is None else len(tokens.data)
        for name in ("bos_token_id", "eos_token_id"):
            config[name] = self.metadata.get(f"tokenizer.ggml.{name}")
        self._check_rest(config, own)
        factors = self._rope_factors()
        if factors is not None:
            config["rope_scaling"] = self._llama3(config, factors)
        return config

    def _check_rest(self, config: Mapping[str, Any], rest: dict[str, Any]) -> None:
        """Refuses metadata that would change the maths."""
        sizes = config.get("hidden_size"), config.get("num_attention_heads")
        whole = [x for x in sizes if isinstance(x, int) and x > 0]
        head = config.get("head_dim", whole[0] // whole[1] if len(whole) == len(sizes) else None)
        same = {"rope.dimension_count": head, "attention.value_length": head}
        same |= {"rope.scaling.type": "none", "expert_count": 0, "expert_used_count": 0}
        for key, value in rest.items():
            if key not in same or value != same[key]:
                raise UserError(
                    f"{self.path}: {self._prefix}{key} = {value!r} would change the model in a "
                    "way that is not supported"
                )

    def _rope_factors(self) -> NDArray | None:
        """What every frequency of RoPE is divided by; None: nothing is said."""
        found = [t for t in self._reader.tensors if t.name == _ROPE_FACTORS]
        return np.asarray(found[0].data, np.float32).reshape(-1) if found else None

    def _llama3(self, config: Mapping[str, Any], factors: NDArray) -> dict[str, Any]:
        """Llama 3's scaling of RoPE, whose factors llama.cpp writes out one by one.

        The published models differ in `factor` alone.

        Raises:
            UserError: the factors are not those of a Llama 3 model.
        """
        scaling: dict[str, Any] = {
            "rope_type": "llama3",
            "factor": float(factors.max(initial=1.0)),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
        theta = number(config, "rope_theta", str(self.path), 10000.0, least=1e-30)
        steps = np.arange(len(factors), dtype=np.float64)
        length = 2 * np.pi * theta ** (steps / len(factors))
        original, low, high = (
            scaling["original_max_position_embeddings"],
            scaling["low_freq_factor"],
            scaling["high_freq_factor"],
        )
        smooth = np.clip((original / length - low) / (high - low), 0, 1)
        expected = 1 / ((1 - smooth) / scaling["factor"] + smooth)
        if not np.allclose(factors, expected, rtol=1e-3):
            raise UserError(
                f"{self.path}: {_ROPE_FACTORS} are not the factors of a Llama 3 model, and no "
                "others are supported"
            )
        return scaling

    # Tensors, as an open safetensors file gives them

    def __enter__(self) -> GGUF:
        return self

    def __exit__(self, *_: object) -> None:
        """The file is mapped into memory; nothing is to be closed."""

    def keys(self) -> Iterable[str]:
        """The names of the tensors in a Hugging Face checkpoint."""
        return self._tensors.keys()

    def get_slice(self, name: str) -> Slice:
        """Shape and dtype of a tensor.

        Raises:
            UserError: it is stored in a form that the `gguf` package cannot read.
        """
        from gguf import quants

        tensor = self._tensors[name]
        kind = tensor.tensor_type
        plain = _kind(tensor) in ("F32", "F16")
        if not plain and kind not in quants._type_traits:  # the package has no public list
            raise UserError(f"{self.path}: {name} is stored as {_kind(tensor)}, which is not read")
        return Slice(tuple(int(size) for size in reversed(tensor.shape)))

    def get_tensor(self, name: str, look: Callable[[NDArray], None] | None = None) -> NDArray:
        """A tensor in float32, in the layout of a Hugging Face checkpoint; several threads may ask.

        Args:
            name: of the tensor.
            look: is called with all of its numbers, some at a time, in any order; what it raises
                ends the reading.
        """
        values = _floats(self._tensors[name], look).reshape(self.get_slice(name).shape)
        if self.family in ("llama", "mistral"):
            heads = int(self.config["num_attention_heads"])
            if name.endswith("self_attn.q_proj.weight"):
                return _halves_apart(values, heads)
            if name.endswith("self_attn.k_proj.weight"):
                return _halves_apart(values, int(self.config.get("num_key_value_heads", heads)))
        return values

    @staticmethod
    def _name(name: str) -> str:
        """A tensor's name in a Hugging Face checkpoint; one that is not known stays as it is."""
        found = re.fullmatch(r"blk\.(\d+)\.(.+)", name)
        if found and found[2] in _LAYER:
            return f"model.layers.{found[1]}.{_LAYER[found[2]]}"
        return _TOP.get(name, name)

    # Tokenizer

    def tokenizer(self) -> Any:
        """The fast tokenizer that the metadata describes, with the file's chat template.

        Raises:
            UserError: transformers cannot build it.
        """
        # Imported here: it takes seconds.
        from transformers import PreTrainedTokenizerFast

        convert = _converter()

        said: dict[str, Any] = {}
        for key, name in _TOKENIZER.items():
            full = f"tokenizer.ggml.{key}"
            if full in self.metadata:
                said[name] = self.metadata[full]
            elif values := self.array(full):
                said[name] = values
        if not said.get("tokens"):
            raise UserError(f"{self.path}: has no tokenizer.ggml.tokens, so no tokenizer")
        special = {}
        for name, key in _SPECIAL.items():
            token = self.metadata.get(f"tokenizer.ggml.{key}")
            if token is None:
                continue
            if not isinstance(token, int) or not 0 <= token < len(said["tokens"]):
                raise UserError(
                    f"{self.path}: tokenizer.ggml.{key} = {shown(token)} is no token's id; there "
                    f"are {len(said['tokens'])} tokens"
                )
            special[name] = said["tokens"][token]
        added = {
            name: self.metadata[f"tokenizer.ggml.{name}"]
            for name in ("add_bos_token", "add_eos_token")
            if f"tokenizer.ggml.{name}" in self.metadata
        }
        if said.get("tokenizer_type") == "llama":
            added.setdefault("add_bos_token", True)  # as llama.cpp does where nothing is said
        try:
            backend, more = convert(self.metadata["general.architecture"], said)
            return PreTrainedTokenizerFast(
                tokenizer_object=backend,
                chat_template=self.metadata.get("tokenizer.chat_template"),
                **{**more, **special, **added},
            )
        except Exception as error:  # transformers raises many kinds
            line = f"{'no ' * isinstance(error, KeyError)}{errors.said(error)}"
            raise UserError(f"{self.path}: the tokenizer cannot be read: {line}") from error


def _converter() -> Any:
    """transformers' own function, which has moved between its versions.

    Raises:
        UserError: the installed version has none.
    """
    package = "transformers.integrations"
    for name in (f"{package}.gguf", f"{package}.ggml", package):
        with contextlib.suppress(ModuleNotFoundError):
            if found := getattr(importlib.import_module(name), "convert_gguf_tokenizer", None):
                return found
    raise UserError("this version of transformers reads no tokenizers of GGUF files: install 5.23")


def is_gguf(path: Path) -> bool:
    """Whether a path is a GGUF file, by its name or by its first bytes."""
    if not path.is_file():
        return False
    if path.suffix.lower() == SUFFIX:
        return True
    try:
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError:
        return False


def gguf_file(folder: Path) -> Path | None:
    """The GGUF file of a directory without a config.json; None: there is none.

    Raises:
        UserError: there are several.
    """
    if (folder / "config.json").exists():
        return None
    found = sorted(file for file in folder.iterdir() if file.suffix.lower() == SUFFIX)
    if len(found) > 1:
        names = ", ".join(file.name for file in found[:3])
        raise UserError(f"{folder}: has {len(found)} GGUF files ({names}); name one of them")
    return found[0] if found else None


def open_gguf(path: Path) -> GGUF:
    """A GGUF file; its header is read once as long as the file does not change.

    Raises:
        UserError: no GGUF file, a family that is not known, or no `gguf` package.
    """
    seen = path.stat()
    return _opened(path, seen.st_mtime_ns, seen.st_size)


@lru_cache(maxsize=4)
def _opened(path: Path, changed: int, size: int) -> GGUF:
    del changed, size  # a file that was written anew is read anew
    return GGUF(path)


def _read(path: Path) -> Any:
    """The `gguf` package's view of a file."""
    try:
        import gguf  # noqa: F401

        from lw_jax.models.gguf_reader import Reader
    except ImportError:
        raise UserError(
            f'{path}: GGUF files need the package gguf: pip install "lw_jax[gguf]"'
        ) from None
    with _read_of(path):
        return Reader(path)


@contextlib.contextmanager
def _read_of(path: Path) -> Iterator[None]:
    """While inside, something of a file is read.

    Raises:
        UserError: instead of what went wrong, of which there are many kinds in a garbled file.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        line = "it is cut short" if isinstance(error, IndexError) else errors.said(error)
        raise UserError(f"{path}: is no readable GGUF file: {line}") from error


def _is_long(key: str, field: Any) -> bool:
    """Whether a field is the vocabulary, or another list as long."""
    return key.startswith("tokenizer.") and len(field.data) > 1


def _kind(tensor: Any) -> str:
    """How a tensor is stored, e.g. Q4_K."""
    return str(tensor.tensor_type.name)


def _floats(tensor: Any, look: Callable[[NDArray], None] | None = None) -> NDArray:
    """A tensor's numbers in float32, as the package has them, `AT_ONCE` bytes at a time: it takes
    sixteen rows, and most of the time goes into taking them."""
    look = look or (lambda _: None)
    from gguf import quants

    stored = quants._type_traits.get(tensor.tensor_type)
    if stored is None:
        plain: NDArray = quants.dequantize(np.asarray(tensor.data), tensor.tensor_type)
        plain = np.ascontiguousarray(plain, np.float32)
        look(plain)
        return plain
    stored.init_grid()
    rows = np.asarray(tensor.data)
    rows = rows.reshape(-1, rows.shape[-1])
    shape = quants.quant_shape_from_byte_shape(rows.shape, tensor.tensor_type)
    found, many = np.empty(shape, np.float32), max(1, AT_ONCE // rows.shape[1])
    for begin in range(0, len(rows), many):
        found[begin : begin + many] = stored.dequantize_rows(rows[begin : begin + many])
        look(found[begin : begin + many])
    return found


def _halves_apart(values: NDArray, heads: int) -> NDArray:
    """Undoes llama.cpp's order of queries and keys, which pairs the two that rotate together.

    Args:
        values: [heads * head_dim, width].
        heads: number of heads.
    """
    pairs = values.reshape(heads, -1, 2, values.shape[-1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(values.shape)
