"""What the site has besides the pages: every key of a config, from the schema."""

from __future__ import annotations

import re
from html import escape
from typing import Any

from mkdocs.structure.files import File

from lw_jax.config.help import INTRODUCTION, Section, sections

DEEPEST = 4
"""Of a heading."""


def on_files(files: Any, config: Any) -> Any:
    """Adds `reference/config.md`."""
    text = "\n".join(
        [
            "# Every key of a config",
            "",
            *(line for line in INTRODUCTION.replace("'{}'", "`{}`").splitlines()),
            "`lw-jax --help KEY` prints the keys below one, `lw-jax --help all` all of them.",
            "",
            *(line for one in sections(seen={}) for line in _lines(one)),
        ]
    )
    files.append(File.generated(config, "reference/config.md", content=text))
    return files


def _lines(one: Section) -> list[str]:
    """A section in Markdown: heading, meaning, and a table of its keys."""
    level = min(DEEPEST, 2 + one.key.count("."))
    heading = f"`{one.key}` {{#{one.key}}}" if one.key else "At the top {#top}"
    rows = [
        f'<tr><td style="white-space: nowrap"><code>{escape(name)}</code></td>'
        f"<td>{_said(kind)}</td><td>{_said(doc)}</td></tr>"
        for name, kind, doc in one.leaves
    ]
    head = "<tr><th>key</th><th>type = default (bounds)</th><th>meaning</th></tr>"
    table = f"<table><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>" if rows else ""
    return [f"{'#' * level} {heading}", "", f"<p>{_said(one.doc)}</p>", "", table, ""]


def _said(text: str) -> str:
    """Words in HTML, those between backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text, quote=False))
