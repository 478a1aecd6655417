"""What the site has besides the pages: every key of a config, from the schema."""

from __future__ import annotations

import io
from typing import Any

from mkdocs.structure.files import File
from rich.console import Console

from lw_jax.config.help import print_help

WIDTH = 110


def on_files(files: Any, config: Any) -> Any:
    """Adds `reference/config.md`."""
    held = io.StringIO()
    print_help("", Console(file=held, width=WIDTH))
    lines = [line.rstrip() for line in held.getvalue().splitlines()]
    text = "\n".join(
        [
            "# Every key of a config",
            "",
            "As `lw-jax --help all` prints them; `lw-jax --help KEY` prints those below one.",
            "",
            "```text",
            *lines,
            "```",
            "",
        ]
    )
    files.append(File.generated(config, "reference/config.md", content=text))
    return files
