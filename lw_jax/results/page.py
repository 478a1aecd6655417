"""`results.md` from `results.yaml` and the records beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lw_jax.config.yaml_files import load
from lw_jax.errors import UserError
from lw_jax.results.columns import COLUMNS, Column
from lw_jax.results.picture import draw
from lw_jax.results.record import read_records
from lw_jax.results.row import Row, read_row

Records = Mapping[str, Mapping[str, Any]]
"""By the runs' names."""
NOTE = (
    "<!-- Written by `python -m lw_jax.results write {spec}`; change that file, not this one. -->"
)


def write_page(spec_path: Path) -> list[Path]:
    """Write the page and its pictures; the paths written.

    Raises:
        UserError: the file is not as it should be, or a record is missing.
    """
    spec = load(spec_path)
    home = spec_path.parent
    page = home / spec.get("page", "results.md")
    records = read_records(home / spec.get("records", "records"))
    text = render(spec, records, spec_path)
    written = [page]
    for section in spec["sections"]:
        if picture := section.get("picture"):
            path = home / picture["file"]
            lines = {
                name: [_row(records, row) for row in rows]
                for name, rows in picture["lines"].items()
            }
            draw(path, picture, lines)
            written.append(path)
    page.write_text(text, encoding="utf-8")
    return written


def render(spec: Mapping[str, Any], records: Records, spec_path: Path) -> str:
    """The page's text."""
    parts = [NOTE.format(spec=spec_path.as_posix()), f"# {spec['title']}"]
    if spec.get("text"):
        parts.append(spec["text"].strip())
    for section in spec["sections"]:
        parts.append(f"## {section['title']}")
        if section.get("text"):
            parts.append(section["text"].strip())
        if section.get("rows"):
            parts.append("\n".join(table(section, records)))
        if picture := section.get("picture"):
            parts.append(f"![{picture['alt']}]({picture['file']})")
    return "\n\n".join(parts) + "\n"


def table(section: Mapping[str, Any], records: Records) -> Iterator[str]:
    """A section's table in Markdown, line by line."""
    columns = [_column(section["title"], name) for name in section["columns"]]
    yield "| " + " | ".join([section.get("what", "run"), *(c.heading for c in columns)]) + " |"
    yield "|" + "---|" * (len(columns) + 1)
    for one in section["rows"]:
        row = _row(records, one)
        yield "| " + " | ".join([row.label, *(c.text(row) for c in columns)]) + " |"


def _column(title: str, name: str) -> Column:
    """A column by its name; `facts/latent` is `latent` of what a row has beside it as `facts`."""
    beside, _, plain = name.rpartition("/")
    if plain not in COLUMNS:
        raise UserError(f"{title}: unknown column {plain!r}; one of {', '.join(COLUMNS)}")
    column = COLUMNS[plain]
    if not beside:
        return column

    def cell(row: Row) -> str:
        if beside not in row.beside:
            raise UserError(f"{title}: {row.label} has nothing beside it called {beside!r}")
        return column.text(row.beside[beside])

    return Column(f"{beside}: {column.heading}", cell, training=True)


def _row(records: Records, one: Mapping[str, Any] | str) -> Row:
    return read_row(records, {"record": one} if isinstance(one, str) else one)
