"""Exported bridges on a Hugging Face hub: put there, and found there by name."""

from __future__ import annotations

import re
from pathlib import Path

from lw_jax.errors import UserError, said
from lw_jax.runs.exported import ABOUT, WEIGHTS, is_exported
from lw_jax.runs.receiver_rms import FILE as RECEIVERS
from lw_jax.utils import shipped
from lw_jax.utils.hub import HubUnreachableError, ask_once

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FILES = (ABOUT, WEIGHTS, RECEIVERS, "README.md")


def bridge_at(name_or_path: str | Path) -> Path:
    """The directory of a run or bridge; of a hub name that of its snapshot, fetched once.

    Raises:
        UserError: it looks like a hub name, and there is no such bridge or no network.
    """
    path = Path(shipped.found(str(name_or_path)))
    if path.exists() or not _NAME.fullmatch(str(name_or_path)):
        return path
    return ask_once(f"bridge {name_or_path}", lambda offline: _fetch(str(name_or_path), offline))


def _fetch(name: str, offline: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        found = snapshot_download(name, allow_patterns=list(_FILES), local_files_only=offline)
    except LocalEntryNotFoundError:
        raise HubUnreachableError(
            f"{name}: no such directory here, and the hub cannot be reached and has not been "
            "asked for it before"
        ) from None
    except (HfHubHTTPError, OSError) as error:
        raise UserError(
            f"{name}: no such directory here, and no such bridge on the hub (or no access): "
            f"{said(error, 120)}"
        ) from None
    if not is_exported(Path(found)):
        raise UserError(f"{name}: on the hub, but no bridge: {ABOUT} is missing")
    return Path(found)


def repository(name: str) -> None:
    """Checks the name of a repository.

    Raises:
        UserError: it is none.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UserError(f"push: {name!r} is no name of a repository; give USER/NAME")


def push(directory: Path, name: str, private: bool = True) -> str:
    """Puts an exported bridge on the hub; the address of its page.

    Args:
        directory: of the exported bridge.
        name: of the repository, `user/name`; made if it is not there.
        private: whether a new repository is private.

    Raises:
        UserError: it is no exported bridge, or the hub does not take it.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    if not is_exported(directory):
        raise UserError(f"{directory}: no exported bridge; export it first")
    repository(name)
    api = HfApi()
    try:
        api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=name,
            folder_path=directory,
            allow_patterns=list(_FILES),
            commit_message="A bridge of lw_jax",
        )
    except (HfHubHTTPError, OSError) as error:
        raise UserError(f"push: the hub does not take {name}: {said(error, 160)}") from None
    return f"{api.endpoint}/{name}"
