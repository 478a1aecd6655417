"""The files of a model: in a directory, or fetched one by one from the hub."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lw_jax.errors import UserError, said
from lw_jax.models.arch_keys import shown
from lw_jax.models.encoder_arch import AnyArch, arch_from_hf
from lw_jax.models.gguf import gguf_file, is_gguf, open_gguf
from lw_jax.models.names import parts
from lw_jax.utils import files
from lw_jax.utils.digests import sha256
from lw_jax.utils.hub import HubUnreachableError, ask_once

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
_SMALL_FILES = [
    "config.json",
    "generation_config.json",
    INDEX,
    ADAPTER,
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
    name_or_path: str | Path,
    layers: int | None = None,
    head: bool = True,
    revision: str | None = None,
) -> Checkpoint:
    """Finds (or fetches) the files of a model: of the weights, only those that are needed.

    Args:
        name_or_path: a directory, or a hub name.
        layers: number of layers that are needed, from the first on; None: all.
        head: whether the output head is needed.
        revision: branch, tag or commit of a hub model; None: its main branch.

    Raises:
        UserError: no such directory or hub model, no network, pickled weights, a bad config.
    """
    folder = small_files(name_or_path, revision)
    if is_gguf(folder):
        return Checkpoint(
            folder, read_arch(folder), dict.fromkeys(open_gguf(folder).keys(), folder)
        )
    hub = None if folder == _as_path(name_or_path) else str(name_or_path)
    arch = read_arch(folder)
    # As transformers: of one file and an index that is left beside it, the file counts.
    if (folder / INDEX).is_file() and not (hub is None and (folder / WEIGHTS).is_file()):
        where = _weight_map(folder / INDEX)
        wanted = {part.name for part in parts(arch, layers, head, where)}
        shards = sorted({file for name, file in where.items() if name in wanted})
    else:
        shards, where = [WEIGHTS], {}
    if hub is not None:
        folder = _fetch(hub, shards, revision)
    missing = [file for file in shards if not (folder / file).is_file()]
    if missing or not shards:
        raise UserError(_no_weights(folder, missing))
    files = {name: folder / file for name, file in where.items()}
    return Checkpoint(
        folder, arch, files or dict.fromkeys(_names(folder / WEIGHTS), folder / WEIGHTS)
    )


def small_files(name_or_path: str | Path, revision: str | None = None) -> Path:
    """The directory of a model's files; for a hub name, all but the weights are fetched first.

    A model in GGUF form is one file: that file.

    Args:
        name_or_path: a directory, a GGUF file, or a hub name.
        revision: branch, tag or commit of a hub model; None: its main branch.

    Raises:
        UserError: no such directory or hub model, or no network.
    """
    folder = _as_path(name_or_path)
    if folder is not None and folder.is_dir():
        if revision is not None:
            raise UserError(f"revision: {name_or_path} is a directory here; leave revision out")
        for name in _SMALL_FILES:  # one that is there and cannot be read is not as good as none
            if os.path.lexists(folder / name) and not (folder / name).is_file():
                raise UserError(
                    f"{folder / name} is no file, or a link to one that is gone; put it right, or "
                    "copy it again"
                )
        return gguf_file(folder) or folder
    if folder is not None and folder.exists():
        if is_gguf(folder):
            return folder
        raise UserError(
            f"{name_or_path} is a file; give the model's Hugging Face directory, or a GGUF file"
        )
    if folder is None or str(name_or_path).startswith(("/", ".", "~")):
        raise UserError(f"model {shown(str(name_or_path))}: no such directory here")
    return _fetch(str(name_or_path), _SMALL_FILES, revision)


def read_arch(directory: str | Path) -> AnyArch:
    """The arch of a model directory, from config.json and generation_config.json, or of a GGUF
    file.

    Raises:
        UserError: there is no config.json, or it cannot be read or computed right.
    """
    folder = Path(directory)
    if is_gguf(folder):
        return arch_from_hf(open_gguf(folder).config, None, where=str(folder))
    if not (folder / "config.json").is_file():
        if (folder / ADAPTER).is_file():
            raise UserError(f"{folder}: {_adapter(folder)}")
        raise UserError(f"{folder}: no config.json; a Hugging Face model directory has one")
    if (folder / ADAPTER).is_file() and (folder / WEIGHTS).is_file():
        raise UserError(
            f"{folder}: {_adapter(folder)}; if the weights beside it hold it already, take "
            f"{ADAPTER} away"
        )
    config = read_json(folder / "config.json")
    auto_map = config.get("auto_map")
    if isinstance(auto_map, dict) and not _code_of(auto_map, folder):
        config.pop("auto_map")
    generation = folder / "generation_config.json"
    return arch_from_hf(
        config,
        read_json(generation) if generation.is_file() else None,
        where=str(folder / "config.json"),
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of a model.

    Raises:
        UserError: the file cannot be read, or holds no JSON object.
    """
    try:
        return files.read_json(path, dict, "put it right, or copy it again")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {said(error)}") from error


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
            known[path] = sha256(path)
        digest.update(known[path])
    return digest.hexdigest()[:32]


def _as_path(name_or_path: str | Path) -> Path | None:
    """The path that is meant; None: it can be none here (too long, or a strange character)."""
    try:
        path = Path(name_or_path).expanduser()
        path.exists()
    except (OSError, ValueError, RuntimeError):
        return None
    return path if "\0" not in str(path) else None


def _adapter(folder: Path) -> str:
    """What to do with a PEFT adapter."""
    base = read_json(folder / ADAPTER).get("base_model_name_or_path")
    named = f" ({shown(base)})" if base else ""
    return f"a PEFT adapter; merge it into its base model{named} first (peft: merge_and_unload)"


def _code_of(auto_map: Mapping[str, Any], folder: Path) -> bool:
    """Whether the code that an `auto_map` names could be there: in the directory, or elsewhere."""
    values = [x for v in auto_map.values() for x in (v if isinstance(v, list) else [v])]
    if any(not isinstance(value, str) or "--" in value for value in values if value is not None):
        return True
    return any(folder.glob("*.py"))


def _weight_map(index: Path) -> dict[str, str]:
    """The file of each tensor, as the index of a sharded checkpoint says.

    Raises:
        UserError: it says something else.
    """
    found = read_json(index).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise UserError(
            f"{index}: weight_map must name the file of each tensor, found {shown(found)}"
        )
    for name, file in found.items():
        if not isinstance(file, str):
            raise UserError(
                f"{index}: weight_map: {shown(name)} must name a file, found {shown(file)}"
            )
        if Path(file).name != file:
            raise UserError(
                f"{index}: weight_map: {shown(file)}: a weight file lies outside the model "
                "directory"
            )
        if not file.endswith(".safetensors") or len(file) > 200 or not file.isprintable():
            raise UserError(f"{index}: weight_map: {shown(file)} is no safetensors file's name")
    return found


def _fetch(name: str, files: list[str], revision: str | None) -> Path:
    """The hub's snapshot directory with those of `files` that exist there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    def ask(offline: bool) -> Path:
        try:
            found = snapshot_download(
                name, revision=revision, allow_patterns=files, local_files_only=offline
            )
        except RevisionNotFoundError as error:
            raise UserError(
                f"model {name!r}: the hub has no revision {revision!r} of it"
            ) from error
        except (RepositoryNotFoundError, HFValidationError) as error:
            raise UserError(
                f"model {shown(name)}: no such directory here, and no such model on the hub "
                "(or no access)"
            ) from error
        except Exception as error:  # a missing network shows in many forms
            raise HubUnreachableError(
                f"model {shown(name)}: no such directory here, and the hub cannot be reached "
                f"({type(error).__name__}); give a local model directory"
            ) from error
        return Path(found)

    return ask_once(f"model {name} @{revision} {' '.join(files)}", ask)


def _names(path: Path) -> list[str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: is no readable safetensors file: {said(error)}") from error


def _no_weights(folder: Path, missing: list[str]) -> str:
    if list(folder.glob("*.bin")) or list(folder.glob("*.pt*")):
        return (
            f"{folder}: only pickled weights; never loaded: convert them to {WEIGHTS}, where torch "
            f'is, with python -c "from transformers import AutoModelForCausalLM as M; '
            f"M.from_pretrained('{folder}').save_pretrained('{folder}')\""
        )
    if (folder / ADAPTER).is_file():
        return f"{folder}: {_adapter(folder)}"
    return f"{folder}: weight files missing: {', '.join(missing) or WEIGHTS}"
