"""The files of a model: in a directory, or fetched one by one from the hub."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lw_jax.errors import UserError
from lw_jax.models.encoder_arch import AnyArch, arch_from_hf
from lw_jax.models.gguf import SUFFIX, gguf_file, open_gguf
from lw_jax.models.names import parts

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_SMALL_FILES = [
    "config.json",
    "generation_config.json",
    INDEX,
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk.

    Attributes:
        directory: the directory of its files.
        arch: what its config says.
        files: the file of each tensor by name.
    """

    directory: Path
    arch: AnyArch
    files: Mapping[str, Path]


def open_checkpoint(
    name_or_path: str | Path, layers: int | None = None, head: bool = True
) -> Checkpoint:
    """Finds (or fetches) the files of a model: of the weights, only those that are needed.

    Args:
        name_or_path: a directory, or a hub name.
        layers: number of layers that are needed, from the first on; None: all.
        head: whether the output head is needed.

    Raises:
        UserError: no such directory or hub model, no network, pickled weights, a bad config.
    """
    folder = small_files(name_or_path)
    if folder.suffix == SUFFIX:
        return Checkpoint(folder, read_arch(folder), dict.fromkeys(open_gguf(folder).keys(), folder))
    hub = None if Path(name_or_path).expanduser().is_dir() else str(name_or_path)
    arch = read_arch(folder)
    if (folder / INDEX).is_file():
        where = dict(read_json(folder / INDEX).get("weight_map", {}))
        wanted = {part.name for part in parts(arch, layers, head, where)}
        shards = sorted({file for name, file in where.items() if name in wanted})
        if any(Path(file).name != file for file in shards):
            raise UserError(f"{folder / INDEX}: a weight file lies outside the model directory")
    else:
        shards, where = [WEIGHTS], {}
    if hub is not None:
        folder = _fetch(hub, shards)
    missing = [file for file in shards if not (folder / file).is_file()]
    if missing or not shards:
        raise UserError(_no_weights(folder, missing))
    files = {name: folder / file for name, file in where.items()}
    return Checkpoint(
        folder, arch, files or dict.fromkeys(_names(folder / WEIGHTS), folder / WEIGHTS)
    )


def small_files(name_or_path: str | Path) -> Path:
    """The directory of a model's files; for a hub name, all but the weights are fetched first.

    A model in GGUF form is one file: that file.

    Raises:
        UserError: no such directory or hub model, or no network.
    """
    found = gguf_file(name_or_path)
    if found is not None:
        return found
    folder = Path(name_or_path).expanduser()
    return folder if folder.is_dir() else _fetch(str(name_or_path), _SMALL_FILES)


def read_arch(directory: str | Path) -> AnyArch:
    """The arch of a model directory, from config.json and generation_config.json, or of a GGUF file."""
    folder = Path(directory)
    if folder.suffix == SUFFIX:
        return arch_from_hf(open_gguf(folder).config(), None, where=str(folder))
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no config.json; a Hugging Face model directory has one")
    generation = folder / "generation_config.json"
    return arch_from_hf(
        read_json(folder / "config.json"),
        read_json(generation) if generation.is_file() else None,
        where=str(folder / "config.json"),
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        UserError: the file holds no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: must be a JSON object, found a {type(value).__name__}")
    return value


def fingerprint(
    arch: AnyArch, files: Iterable[Path], known: MutableMapping[Path, bytes] | None = None
) -> str:
    """32 hex digits that change with the arch or any byte of the weight files.

    Args:
        arch: what the config says.
        files: the weight files.
        known: digests of files that were read before; digests of the others are added to it.
    """
    known = {} if known is None else known
    digest = hashlib.sha256(json.dumps(asdict(arch), sort_keys=True).encode())
    for path in sorted(set(files)):
        if path not in known:
            with path.open("rb") as file:
                known[path] = hashlib.file_digest(file, "sha256").digest()
        digest.update(known[path])
    return digest.hexdigest()[:32]


def _fetch(name: str, files: list[str]) -> Path:
    """The hub's snapshot directory with those of `files` that exist there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=files))
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UserError(
            f"model {name!r}: no such directory here, and no such model on the hub (or no access)"
        ) from error
    except Exception as error:  # a missing network shows in many forms
        raise UserError(
            f"model {name!r}: no such directory here, and the hub cannot be reached "
            f"({type(error).__name__}); give a local model directory"
        ) from error


def _names(path: Path) -> list[str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: is no readable safetensors file: {error}") from error


def _no_weights(folder: Path, missing: list[str]) -> str:
    if list(folder.glob("*.bin")) or list(folder.glob("*.pt*")):
        return f"{folder}: only pickled weights; never loaded: convert them to {WEIGHTS}"
    return f"{folder}: weight files missing: {', '.join(missing) or WEIGHTS}"
