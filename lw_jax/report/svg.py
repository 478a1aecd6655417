"""Charts as inline SVG, to be read without scripts: lines with bands, intervals, matrices."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

Place = Callable[[float], float]

WIDTH, HEIGHT = 380, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 34
MOST_POINTS = 160
COLOURS = 6
"""Classes `s0` to `s5` of the page's style; further series start anew with other dashes."""


@dataclass(frozen=True)
class Series:
    """A line of a chart.

    Attributes:
        label: its name.
        points: (x, y), x ascending.
        bands: for each point (low, high) of its interval; empty: there are none.
        dots: whether points are drawn as dots.
    """

    label: str
    points: Sequence[tuple[float, float]]
    bands: Sequence[tuple[float, float]] = field(default=())
    dots: bool = False


@dataclass(frozen=True)
class Chart:
    """Lines over one axis.

    Attributes:
        title: what it shows.
        series: the lines; those without a point are left out.
        x: name of the x axis.
        marks: (x, text) of what happened on the way.
        low, high: of the y axis; None: as the points need.
        logarithmic: whether x is logarithmic.
    """

    title: str
    series: Sequence[Series]
    x: str = "step"
    marks: Sequence[tuple[float, str]] = ()
    low: float | None = None
    high: float | None = None
    logarithmic: bool = False

    @property
    def drawn(self) -> list[Series]:
        """The lines that have a point."""
        return [thinned(s) for s in self.series if s.points]

    @property
    def rows(self) -> list[tuple[float, list[float | None]]]:
        """The points as a table: x, and the y of every line that has a point there."""
        held = [dict(s.points) for s in self.drawn]
        return [(x, [one.get(x) for one in held]) for x in sorted({x for one in held for x in one})]

    @property
    def svg(self) -> Markup:
        """The picture."""
        return _chart(self)

    @property
    def summary(self) -> str:
        """The chart in words."""
        ends = [
            f"{s.label}: {number(s.points[0][1])} to {number(s.points[-1][1])}" for s in self.drawn
        ]
        return f"{self.title}. {'; '.join(ends)}"


def number(value: float | None) -> str:
    """A number as people write it: at most three places."""
    if value is None or not math.isfinite(value):
        return "–"
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    if size >= 100:
        return f"{value:.0f}"
    if size >= 10 or value == 0:
        return f"{value:.1f}".removesuffix(".0")
    if size >= 0.001:
        return f"{value:.3f}"
    return f"{value:.1e}"


def thinned(series: Series) -> Series:
    """The series with no more than `MOST_POINTS` of its points, the first and the last among
    them."""
    count = len(series.points)
    if count <= MOST_POINTS:
        return series
    at = sorted({round(i * (count - 1) / (MOST_POINTS - 1)) for i in range(MOST_POINTS)})
    bands = [series.bands[i] for i in at] if series.bands else ()
    return Series(series.label, [series.points[i] for i in at], bands, series.dots)


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers from low to high, about `count` of them."""
    if high <= low:
        return [low]
    raw = (high - low) / count
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * m for m in (1, 2, 2.5, 5, 10) if size * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def _chart(chart: Chart) -> Markup:
    drawn = chart.drawn
    xs = [x for s in drawn for x, _ in s.points]
    ys = [y for s in drawn for _, y in s.points] + [y for s in drawn for b in s.bands for y in b]
    x0, x1 = min(xs), max(xs)
    y0 = min(ys) if chart.low is None else min(chart.low, *ys)
    y1 = max(ys) if chart.high is None else max(chart.high, *ys)
    if y1 - y0 < 1e-9:
        y0, y1 = y0 - max(0.5, abs(y0) * 0.1), y1 + max(0.5, abs(y1) * 0.1)
    scale = math.log10 if chart.logarithmic and x0 > 0 else float
    span = scale(x1) - scale(x0)

    def px(x: float) -> float:
        inner = WIDTH - LEFT - RIGHT
        return LEFT + (inner / 2 if span == 0 else (scale(x) - scale(x0)) / span * inner)

    def py(y: float) -> float:
        return TOP + (y1 - y) / (y1 - y0) * (HEIGHT - TOP - BOTTOM)

    across = sorted(set(xs)) if chart.logarithmic else ticks(x0, x1, 5)
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(chart.summary)}">'
    ]
    for y in ticks(y0, y1):
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" '
            f'y1="{py(y):.1f}" y2="{py(y):.1f}"/>'
            f'<text class="tick" x="{LEFT - 6}" y="{py(y) + 3.5:.1f}" text-anchor="end">'
            f"{escape(number(y))}</text>"
        )
    before = -math.inf
    for x in across:
        if px(x) - before < 34:
            continue
        before = px(x)
        parts.append(
            f'<text class="tick" x="{px(x):.1f}" y="{HEIGHT - BOTTOM + 15}" '
            f'text-anchor="middle">{escape(number(x))}</text>'
        )
    parts.append(
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" '
        f'y2="{HEIGHT - BOTTOM}"/><text class="tick" x="{(LEFT + WIDTH - RIGHT) / 2}" '
        f'y="{HEIGHT - 4}" text-anchor="middle">{escape(chart.x)}</text>'
    )
    for x, text in chart.marks:
        if x0 <= x <= x1:
            at = px(x)
            parts.append(
                f'<path class="alarm" d="M{at:.1f} {HEIGHT - BOTTOM - 8} l4.5 8 h-9 z">'
                f"<title>{escape(text)}</title></path>"
            )
    for i, s in enumerate(drawn):
        look = f"s{i % COLOURS}" + (" again" if i >= COLOURS else "")
        if s.bands and not s.dots:
            edge = [
                *zip((x for x, _ in s.points), (b[1] for b in s.bands), strict=True),
                *reversed([*zip((x for x, _ in s.points), (b[0] for b in s.bands), strict=True)]),
            ]
            parts.append(f'<polygon class="band {look}" points="{_path(edge, px, py)}"/>')
        if len(s.points) > 1:
            parts.append(f'<polyline class="line {look}" points="{_path(s.points, px, py)}"/>')
        if s.dots or len(s.points) == 1:
            parts += _dots(s, look, px, py)
    return Markup("".join([*parts, "</svg>"]))


def _dots(series: Series, look: str, px: Place, py: Place) -> Iterable[str]:
    for i, (x, y) in enumerate(series.points):
        a, b = px(x), py(y)
        if series.bands:
            low, high = (py(v) for v in series.bands[i])
            yield (
                f'<line class="whisker {look}" x1="{a:.1f}" x2="{a:.1f}" y1="{low:.1f}" '
                f'y2="{high:.1f}"/>'
            )
        said = escape(f"{series.label} at {number(x)}: {number(y)}")
        yield (
            f'<circle class="dot {look}" cx="{a:.1f}" cy="{b:.1f}" r="3.5">'
            f"<title>{said}</title></circle>"
        )


def _path(points: Iterable[tuple[float, float]], px: Place, py: Place) -> str:
    return " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in points)


def interval(value: float, low: float, high: float, colour: int = 0) -> Markup:
    """A share and its interval on a line from 0 to 1."""
    a, b, c = (round(4 + 112 * min(1.0, max(0.0, x)), 1) for x in (low, high, value))
    return Markup(
        '<svg class="interval" viewBox="0 0 120 16" aria-hidden="true">'
        '<line class="axis" x1="4" x2="116" y1="8" y2="8"/>'
        f'<line class="whisker s{colour}" x1="{a}" x2="{b}" y1="8" y2="8"/>'
        f'<circle class="dot s{colour}" cx="{c}" cy="8" r="4"/></svg>'
    )
