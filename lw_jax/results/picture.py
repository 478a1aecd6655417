"""Quality against compression, drawn from records (matplotlib, a development extra)."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lw_jax.errors import UserError
from lw_jax.results.columns import best_budget, of_text
from lw_jax.results.row import Figure, Row


def draw(picture: Mapping[str, Any], lines: Mapping[str, Sequence[Row]]) -> bytes:
    """Draws latent and token budget against tokens per column.

    Args:
        picture: its source.
        lines: the rows of each line.

    Returns:
        The picture, in the format that the end of its file's name says.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError as error:
        raise UserError("pictures: matplotlib is missing; pip install 'lw_jax[dev]'") from error
    metric = picture.get("metric", "em")
    figure, axes = pyplot.subplots(figsize=(7, 4.2), dpi=130, layout="constrained")
    if "published" in picture:
        _beside_published(axes, picture["published"], lines)
    else:
        _beside_text(axes, metric, lines)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.set_ylim(0, 1.05)
    axes.set_xlabel("receiver tokens a column")
    axes.set_title(picture.get("title", ""), fontsize=10)
    axes.grid(alpha=0.25)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)
    held = io.BytesIO()
    form = Path(picture["file"]).suffix.removeprefix(".")
    try:
        figure.savefig(held, format=form or None, metadata={"Software": None})
    finally:
        pyplot.close(figure)
    return held.getvalue()


def _beside_text(axes: Any, metric: str, lines: Mapping[str, Sequence[Row]]) -> None:
    """A metric of the latent, of the text and of as many of its tokens."""
    texts: dict[float, list[str]] = {}
    for i, (name, rows) in enumerate(lines.items()):
        colour = f"C{i}"
        _line(axes, rows, [r.figure("latent", metric) for r in rows], name, colour, "o-")
        budget = [best_budget(r, metric) for r in rows]
        if any(b is not None for b in budget):
            _line(axes, rows, budget, f"{name}: text cut to as many tokens", colour, "s:")
        text = rows[0].figure("text", metric)
        if text is not None:
            texts.setdefault(round(text.mean, 2), []).append(name)
    for level, names in texts.items():  # lines that the same text stands above share it
        label = "text" if len(texts) == 1 else f"text, {', '.join(names)}"
        axes.axhline(level, color="0.4", linewidth=0.8, linestyle="--", label=label)
    axes.set_ylabel({"em": "exact match", "f1": "F1"}.get(metric, metric))


def _beside_published(
    axes: Any, published: Mapping[str, Any], lines: Mapping[str, Sequence[Row]]
) -> None:
    """F1 over the text's, of own rows and of what others have published: by name
    [tokens a column, share] points."""
    for i, (name, rows) in enumerate(lines.items()):
        held = [(_tokens(row), of_text(row)) for row in rows]
        points = sorted((x, one) for x, ones in held for one in ones or ())
        axes.plot(*zip(*points, strict=True), "o", color=f"C{i}", label=name, markersize=6)
    for i, (name, points) in enumerate(published.items()):
        axes.plot(*zip(*points, strict=True), "sD^v"[i % 4] + ":", color="0.45", label=name)
    axes.axhline(1, color="0.4", linewidth=0.8, linestyle="--", label="the text, tuned")
    axes.set_ylabel("F1 over the text's")


def _line(
    axes: Any,
    rows: Sequence[Row],
    figures: Sequence[Figure | None],
    label: str,
    colour: str,
    style: str,
) -> None:
    held = [(r, f) for r, f in zip(rows, figures, strict=True) if f is not None]
    held.sort(key=lambda pair: _tokens(pair[0]))
    x = [_tokens(r) for r, _ in held]
    y = [f.mean for _, f in held]
    axes.plot(x, y, style, color=colour, label=label, markersize=4)
    # two seeds have no interval of their mean
    ends = [(f.mean, f.mean) if len(f.values) == 2 else (f.low, f.high) for _, f in held]
    low = [f.mean if end is None else end for (_, f), (end, _) in zip(held, ends, strict=True)]
    high = [f.mean if end is None else end for (_, f), (_, end) in zip(held, ends, strict=True)]
    axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)


def _tokens(row: Row) -> float:
    held = [seed.compression["tokens_per_column"] for seed in row.seeds]
    return float(sum(held) / len(held))
