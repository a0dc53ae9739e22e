"""Line charts, heat maps and small drawings of signals as inline SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

COLOURS = (
    *("#1f6f78", "#c2703d", "#6b5b95", "#8a8d3a", "#b0476b", "#3f7cac"),
    *("#7d6b5d", "#4c8c5a", "#a3862a", "#5c5c8a", "#c7586b", "#4a4a48"),
)
LEFT, RIGHT, TOP, BOTTOM = 44, 14, 12, 26
ROW = 20  # of the legend


@dataclass(frozen=True, slots=True)
class Line:
    """A named line through points (x, y); lines of one kind share a colour, the emphasised one is drawn stronger."""

    name: str
    points: Sequence[tuple[float, float]]
    kind: str = ""
    emphasis: bool = False


def chart(
    lines: Sequence[Line],
    *,
    ticks: Mapping[int, str],
    span: tuple[float, float] | None = None,
    top: float | None = None,
    percent: bool = False,
    width: int = 700,
    height: int = 280,
    legend: bool = True,
) -> Markup:
    """Lines over a common x axis, y from 0; each point tells its value when pointed at.

    Args:
        lines: what to draw.
        ticks: labels of x values.
        span: least and greatest x; None for those of the ticks.
        top: greatest y; None for the greatest value.
        percent: label y in per cent.
        width: of the drawing, in pixels.
        height: of the drawing without its legend, in pixels.
        legend: name the kinds of line below.
    """
    low, high = span or (min(ticks, default=0), max(ticks, default=1))
    top = top or max((y for line in lines for _, y in line.points), default=1.0) or 1.0

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - low) / (high - low) if high > low else 0.5
        return LEFT + across * (width - LEFT - RIGHT), height - BOTTOM - y / top * (height - TOP - BOTTOM)

    def told(y: float) -> str:
        return f"{100 * y:.1f} %" if percent else f"{y:.3g}"

    drawn = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0) if height > 200 else (0.0, 0.5, 1.0):
        y = at(low, share * top)[1]
        label = f"{100 * share:.0f} %" if percent else _short(share * top)
        drawn.append(f'<line class="grid" x1="{LEFT}" x2="{width - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        drawn.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    for place, text in ticks.items():
        anchor = "start" if place == low and len(text) > 3 else "end" if place == high and len(text) > 3 else "middle"
        x = at(place, 0)[0]
        drawn.append(f'<text x="{x:.1f}" y="{height - 8}" text-anchor="{anchor}">{escape(text)}</text>')
    kinds = {kind: COLOURS[n % len(COLOURS)] for n, kind in enumerate(dict.fromkeys(line.kind for line in lines))}
    for line in sorted(lines, key=lambda line: line.emphasis):
        colour, weight = kinds[line.kind], 2.6 if line.emphasis else 1.4
        places = [at(x, y) for x, y in line.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{weight}"/>')
        for (x, y), (_, value) in zip(places, line.points, strict=True):
            title = f"<title>{escape(line.name)}: {told(value)}</title>"
            drawn.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{weight + 0.6:.1f}" fill="{colour}">{title}</circle>')
    columns = 4
    for number, (kind, colour) in enumerate(kinds.items() if legend else ()):
        x, y = LEFT + number % columns * (width - LEFT) / columns, height + ROW * (number // columns) + 12
        drawn.append(f'<path d="M{x:.0f} {y - 4}h18" stroke="{colour}" stroke-width="3"/>')
        drawn.append(f'<text x="{x + 24:.0f}" y="{y}">{escape(kind)}</text>')
    whole = height + (ROW * -(-len(kinds) // columns) + 4 if legend else 0)
    return Markup(f'<svg viewBox="0 0 {width} {whole}" width="{width}" role="img">{"".join(drawn)}</svg>')


@dataclass(frozen=True, slots=True)
class Cell:
    """A share from 0 to 1 at a place (column, row), what it tells when pointed at, and whether it is underlined."""

    place: tuple[int, int]
    share: float
    title: str
    mark: bool = False


def heatmap(cells: Sequence[Cell], *, width: int = 26, height: int = 15) -> Markup:
    """Shares as depths of colour, columns and rows in order and named by their numbers.

    Args:
        cells: any places may be left out.
        width: of a cell, in pixels.
        height: of a cell, in pixels.
    """
    columns, rows = (
        {n: i for i, n in enumerate(sorted(set(axis)))} for axis in zip(*(c.place for c in cells), strict=True)
    )
    drawn = [f'<text x="16" y="{(i + 0.8) * height:.0f}" text-anchor="end">{n}</text>' for n, i in rows.items()]
    foot = len(rows) * height + 14
    drawn += [
        f'<text x="{22 + (i + 0.5) * width:.0f}" y="{foot}" text-anchor="middle">{n}</text>' for n, i in columns.items()
    ]
    for cell in cells:
        x, y = 22 + columns[cell.place[0]] * width, rows[cell.place[1]] * height
        box = f'x="{x}" width="{width - 2}" fill="{COLOURS[0]}"'
        drawn.append(
            f'<rect {box} y="{y}" height="{height - 2}" fill-opacity="{0.04 + 0.96 * cell.share:.2f}">'
            f"<title>{escape(cell.title)}</title></rect>"
        )
        if cell.mark:
            drawn.append(f'<path class="mark" d="M{x} {y + height - 3}h{width - 2}"/>')
    return _drawing("".join(drawn), 22 + len(columns) * width, foot + 4)


def envelope(audio: np.ndarray, *, width: int, height: int) -> Markup:
    """How loud a sound ``[T]``, -1 to 1, is over its length: its least and greatest value in each pixel's column."""
    columns = np.array_split(audio, min(width, len(audio)))
    middle, scale = height / 2, height / 2 / max(float(np.abs(audio).max()), 1e-6)
    bars = "".join(
        f"M{x} {middle - scale * float(part.max()):.1f}V{middle - scale * float(part.min()):.1f}"
        for x, part in enumerate(columns)
    )
    return _drawing(f'<path d="{bars}" stroke="{COLOURS[0]}"/>', width, height)


def traces(signals: np.ndarray, *, width: int, height: int) -> Markup:
    """Signals ``[T, n]`` as n lines over their length, all on one scale."""
    rows = signals[np.linspace(0, len(signals) - 1, min(width, len(signals))).round().astype(int)]
    low, high = float(rows.min()), float(rows.max())
    y = height * (1 - (rows - low) / max(high - low, 1e-6))
    x = np.linspace(0, width, len(rows))
    lines = [
        f'<polyline points="{" ".join(f"{a:.0f},{b:.1f}" for a, b in zip(x, column, strict=True))}" '
        f'fill="none" stroke="{COLOURS[n % len(COLOURS)]}"/>'
        for n, column in enumerate(y.T)
    ]
    return _drawing("".join(lines), width, height)


def _drawing(content: str, width: int, height: int) -> Markup:
    return Markup(f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">{content}</svg>')


def _short(value: float) -> str:
    return f"{value:.2g}" if value == 0 or value >= 0.01 else f"{value:.0e}".replace("e-0", "e-")
