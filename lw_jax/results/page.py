"""Pages `<topic>.md` from their sources `<topic>.yaml` and the records."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from lw_jax.config.yaml_files import load
from lw_jax.errors import UserError, said, short
from lw_jax.results.columns import COLUMNS, Column, column
from lw_jax.results.figures import fill
from lw_jax.results.picture import draw
from lw_jax.results.record import read_records
from lw_jax.results.row import Row, read_row
from lw_jax.utils.files import write_bytes, write_text

Records = Mapping[str, Mapping[str, Any]]
"""By the runs' names."""
CONTENTS = "README.yaml"
"""The source of the page that lists the others."""
RECORDS = "../records"
"""The records' folder, where a source names no other."""
WITHOUT_RECORDS = "No figure of this page has a record."
BEGIN = "<!-- {name}: {note} -->"
END = "<!-- {name}: end -->"
"""Around the part of another file that a source writes (`into`)."""
NOTE = (
    "<!-- Written by `python -m lw_jax.results write {folder}`; change {source}, not this file. -->"
)


def write_pages(folder: Path) -> list[Path]:
    """Writes every page of a folder and its pictures, all or none.

    Returns:
        The paths written.

    Raises:
        UserError: a source has a wrong form, or a record is missing.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give that of the pages' sources (docs/results)")
    sources = {path.name: load(path) for path in sorted(folder.glob("*.yaml"))}
    if not sources:
        raise UserError(f"{folder}: no sources (*.yaml) there")
    texts: dict[Path, str] = {}

    @cache
    def held(place: str) -> Records:
        return read_records(folder / place)

    parts = {name: spec for name, spec in sources.items() if "into" in spec}
    sources = {name: spec for name, spec in sources.items() if name not in parts}
    for name, spec in parts.items():
        with _making(folder / name):
            of, path = held(spec.get("records", RECORDS)), folder / spec["into"]
            texts[path] = _with_part(folder, name, spec, of, texts.get(path))
    drawn: dict[Path, bytes] = {}
    for name, spec in sources.items():
        with _making(folder / name):
            records = held(spec.get("records", RECORDS))
            pages = _listed(spec, sources) if name == CONTENTS else {}
            note = NOTE.format(folder=folder.as_posix(), source=name)
            texts[folder / name.replace(".yaml", ".md")] = render(spec, records, note, pages)
            for picture in (s["picture"] for s in spec["sections"] if s.get("picture")):
                lines = {
                    line: [_row(records, row) for row in rows]
                    for line, rows in picture["lines"].items()
                }
                drawn[folder / picture["file"]] = draw(picture, lines)
    for path, text in texts.items():
        write_text(path, text)
    for path, content in drawn.items():
        write_bytes(path, content)
    return [*texts, *drawn]


@contextmanager
def _making(what: object) -> Iterator[None]:
    """While inside, something is made of a source and records: where one of them has another form
    than is expected, that is bad input.

    Args:
        what: a source, or a row.

    Raises:
        UserError: instead of what went wrong.
    """
    try:
        yield
    except (UserError, OSError, MemoryError):
        raise
    except Exception as error:  # what is raised depends on what is of which type
        raise UserError(
            f"{what}: it, or a record that it names, has another form than is expected "
            f"({type(error).__name__}: {said(error, 200)})"
        ) from error


def _with_part(
    folder: Path, name: str, spec: Mapping[str, Any], records: Records, text: str | None = None
) -> str:
    """The text of another file, with the part between its marks written anew.

    text: of the file, if another part of it has been written anew; None: as it stands.
    """
    path, title = folder / spec["into"], name.removesuffix(".yaml")
    note = f"written by `python -m lw_jax.results write {folder.as_posix()}` of {name}"
    begin, end = (mark.format(name=title, note=note) for mark in (BEGIN, END))
    if not path.is_file():
        raise UserError(f"{path}: no such file; {name} writes a part of it")
    held = path.read_text(encoding="utf-8") if text is None else text
    found = re.fullmatch(f"(.*\n<!-- {title}: )[^\n]*\n.*\n({re.escape(end)}\n.*)", held, re.DOTALL)
    if found is None:
        raise UserError(f"{path}: expected a part between {begin!r} and {end!r}")
    sections = "\n\n".join(_sections(spec, records))
    before = found[1].rpartition("\n")[0]
    return f"{before}\n{begin}\n\n{sections}\n\n{found[2]}"


def _listed(spec: Mapping[str, Any], sources: Mapping[str, Any]) -> dict[str, Any]:
    """The pages in the order of the contents, by name."""
    names = [name.removesuffix(".yaml") for name in sources if name != CONTENTS]
    if sorted(spec["contents"]) != names:
        raise UserError(f"{CONTENTS}: contents must name each page once: {', '.join(names)}")
    return {name: sources[f"{name}.yaml"] for name in spec["contents"]}


def render(spec: Mapping[str, Any], records: Records, note: str, pages: Mapping[str, Any]) -> str:
    """A page's text.

    Args:
        spec: the page's source.
        records: the records by name.
        note: text about how the page was made.
        pages: the other pages, for the page that lists them.
    """
    parts = [note, f"# {spec['title']}", *([WITHOUT_RECORDS] if spec.get("no_record") else [])]
    if spec.get("text"):
        parts.append(fill(spec["text"].strip(), spec.get("names", {}), records, spec["title"]))
    parts += _sections(spec, records)
    if pages:
        parts += ["## Pages", "\n".join(_contents(pages))]
    return "\n\n".join(parts) + "\n"


def _sections(spec: Mapping[str, Any], records: Records) -> list[str]:
    """Titles, texts, tables and pictures of a source's sections; one without a title goes on."""
    parts, names = [], spec.get("names", {})
    for section in spec["sections"]:
        if section["title"]:
            parts.append(f"## {section['title']}")
        if section.get("text"):
            parts.append(fill(section["text"].strip(), names, records, section["title"]))
        if section.get("rows"):
            parts.append("\n".join(table(section, records, names)))
        if picture := section.get("picture"):
            parts.append(f"![{picture['alt']}]({picture['file']})")
    return parts


def _contents(pages: Mapping[str, Any]) -> Iterator[str]:
    for name, spec in pages.items():
        yield f"* [{spec['title']}]({name}.md)"
        for section in spec["sections"] if len(spec["sections"]) > 1 else ():
            yield f"  * [{section['title']}]({name}.md#{_anchor(section['title'])})"


def _anchor(title: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def table(section: Mapping[str, Any], records: Records, names: Mapping[str, Any]) -> Iterator[str]:
    """A section's table in Markdown, line by line; labels may hold figures, as prose does."""
    columns = [_column(section["title"], name) for name in section["columns"]]
    yield _line([section.get("what", "run"), *(c.heading for c in columns)])
    yield "|" + "---|" * (len(columns) + 1)
    for one in section["rows"]:
        with _making(f"{section['title']}: row {short(str(one), 80)}"):
            row = _row(records, one)
            label = fill(row.label, names, records, section["title"])
            line = _line([label, *(c.text(row) for c in columns)])
        yield line


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _column(title: str, name: str) -> Column:
    """A column by its name; `facts/latent` is `latent` of the row's companion `facts`."""
    beside, _, plain = name.rpartition("/")
    found = column(plain)
    if found is None:
        known = ", ".join([*COLUMNS, "METHOD.METRIC"])
        raise UserError(f"{title}: unknown column {plain!r}; one of {known}")
    if not beside:
        return found

    def cell(row: Row) -> str:
        if beside not in row.beside:
            raise UserError(f"{title}: {row.label} has nothing beside it called {beside!r}")
        return found.text(row.beside[beside])

    return Column(f"{beside}: {found.heading}", cell, training=True)


def _row(records: Records, one: Mapping[str, Any] | str) -> Row:
    return read_row(records, {"record": one} if isinstance(one, str) else one)
