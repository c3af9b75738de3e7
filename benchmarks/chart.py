"""A chart of one result, as SVG: a panel of bars for each figure, lines for sizes.

Each panel of bars has a scale of its own that starts at zero; "no tunnel at all" is
written, not drawn, for it would leave nothing of the others. The panels of sizes are
logarithmic both ways. Text and bars can be read on light and on dark.
"""

from __future__ import annotations

import dataclasses
import math
import re
from html import escape
from typing import TYPE_CHECKING, Final

from benchmarks.apps import BY_SOCKS
from benchmarks.datagrams import BY_UDP, UDP_DIRECT
from benchmarks.loads import more_is_better
from benchmarks.names import BY_NAME
from benchmarks.peers import DIRECT, TUNNEL
from benchmarks.report import number

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.report import Result

COLUMNS: Final = 3
PANEL_W: Final = 316
GAP: Final = 24
ROW_H: Final = 18
HEAD_H: Final = 46
LABEL_W: Final = 134
NUMBER_W: Final = 62
LINES_H: Final = 250
LEGEND_W: Final = 150

DRAWN: Final = (
    r"(get|put) ×\d, MB/s",
    r"(rr 64|cps 32), /s",
    r"echo p50, µs",
    r"echo p99 under four bulk streams, µs",
    r"\d+ ms round trip: first .*",
    r"(server|client), KB per idle connection",
    r"(SOCKS5|HTTP CONNECT) cps 32, /s",
    r"UDP echo p50, µs",
    r"UDP on 32 flows, /s",
)
LINES: Final = {
    "requests/s on so many connections": r"rr on ([\d,]+), /s",
    "ms to connect and get so many bytes": r"connect and get (\d+ .?B), ms",
}
COLOURS: Final = (
    *("#c9510c", "#1a9988", "#a371f7", "#bf8700", "#db61a2"),
    *("#57a639", "#6e7781", "#0aa2c0", "#cf222e", "#8a6d3b"),
)
OURS: Final = "#2f81f7"
STYLE: Final = """
text { font: 12px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #1f2328 }
.title { font-size: 13px; font-weight: 600 }
.small { font-size: 11px; fill: #59636e }
.ours { font-weight: 600 }
.bar { fill: #9198a1 }
.bar.ours { fill: #2f81f7 }
.grid { stroke: #9198a1; stroke-opacity: .3 }
.line { fill: none; stroke-width: 1.5 }
.line.ours { stroke-width: 3 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .small { fill: #9198a1 } .bar { fill: #656c76 }
}
"""


@dataclasses.dataclass(frozen=True)
class Panel:
    """Some SVG of a known height, its place not yet known."""

    height: int
    parts: list[str]


def svg(result: Result) -> str:
    """Return the chart of ``result``."""
    listed = [each for family in result.families.values() for each in family]
    figures = dict.fromkeys(
        each for pattern in DRAWN for each in listed if re.fullmatch(pattern, each)
    )
    bars = [panel for figure in figures if (panel := bar_panel(result, figure))]
    lines = [
        panel
        for title, pattern in LINES.items()
        if (panel := line_panel(result, title, pattern))
    ]
    width = COLUMNS * PANEL_W + (COLUMNS - 1) * GAP
    parts, y = [], 50
    for first in range(0, len(bars), COLUMNS):
        beside = bars[first : first + COLUMNS]
        for column, panel in enumerate(beside):
            parts += placed(panel, column * (PANEL_W + GAP), y)
        y += max(panel.height for panel in beside) + GAP
    for panel in lines:
        parts += placed(panel, 0, y)
        y += panel.height + GAP
    about = result.about
    where = f"{about.get('processor', '')}, {about.get('kernel', '')}"
    when = f"{about.get('date', '')}, commit {about.get('commit', '')}"
    mark = "a quick run, " if result.quick else "medians, "
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y}"'
            f' width="{width}" height="{y}" role="img">',
            f"<style>{STYLE}</style>",
            text(0, 15, f"Measured on loopback, {mark}one run", "title"),
            text(0, 32, f"{where}; {when}", "small"),
            *parts,
            "</svg>\n",
        ]
    )


def placed(panel: Panel, x: int, y: int) -> list[str]:
    return [f'<g transform="translate({x} {y})">', *panel.parts, "</g>"]


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">'
        f"{escape(words)}</text>"
    )


def classes(kind: str, peer: str) -> str:
    ours = (TUNNEL, BY_NAME, BY_SOCKS, BY_UDP)
    return f"{kind} ours" if peer in ours else kind


# Bars


def bar_panel(result: Result, figure: str) -> Panel | None:
    """Draw the medians of a figure, the best on top; None without any."""
    medians = {
        peer: median
        for peer in result.peers
        if (median := result.median(figure, peer)) is not None
    }
    direct = medians.pop(DIRECT, medians.pop(UDP_DIRECT, None))
    if not medians:
        return None
    more = more_is_better(figure)
    best_first = sorted(medians, key=lambda peer: medians[peer], reverse=more)
    longest = max(*medians.values(), 1e-9)
    note = "more is better" if more else "less is better"
    if direct is not None:
        note += f"; no tunnel at all: {number(direct)}"
    parts = [text(0, 12, figure, "title"), text(0, 28, note, "small")]
    room = PANEL_W - LABEL_W - NUMBER_W
    for index, peer in enumerate(best_first):
        y = HEAD_H + index * ROW_H
        length = max(medians[peer], 0) / longest * room
        parts += [
            text(LABEL_W - 6, y, result.peers[peer]["label"], classes("", peer), "end"),
            f'<rect x="{LABEL_W}" y="{y - 11}" width="{length:.1f}"'
            f' height="{ROW_H - 5}" class="{classes("bar", peer)}" />',
            text(LABEL_W + length + 5, y, number(medians[peer]), classes("", peer)),
        ]
    return Panel(HEAD_H + len(best_first) * ROW_H, parts)


# Lines


def line_panel(result: Result, title: str, pattern: str) -> Panel | None:
    """Draw a figure against its size, a line for each peer; None without any."""
    sizes = {
        figure: size_of(found[1])
        for figures in result.families.values()
        for figure in figures
        if (found := re.fullmatch(pattern, figure))
    }
    lines = {
        peer: [
            (size, median)
            for figure, size in sizes.items()
            if (median := result.median(figure, peer)) is not None and median > 0
        ]
        for peer in result.peers
    }
    lines = {peer: points for peer, points in lines.items() if points}
    if not lines:
        return None
    axes = Axes(
        [x for points in lines.values() for x, _ in points],
        [y for points in lines.values() for _, y in points],
    )
    parts = [text(0, 12, title, "title"), *axes.grid()]
    colours = dict(zip((p for p in lines if p != TUNNEL), COLOURS * 2, strict=False))
    for index, (peer, points) in enumerate(lines.items()):
        colour = colours.get(peer, OURS)
        path = " ".join(f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in points)
        y = HEAD_H + index * ROW_H
        parts += [
            f'<polyline points="{path}" class="{classes("line", peer)}"'
            f' stroke="{colour}" />',
            f'<rect x="{axes.right + 16}" y="{y - 9}" width="10" height="10"'
            f' fill="{colour}" />',
            text(axes.right + 32, y, result.peers[peer]["label"], classes("", peer)),
        ]
    return Panel(max(LINES_H, HEAD_H + len(lines) * ROW_H), parts)


class Axes:
    """Two logarithmic axes around some points."""

    left, top = 60, 28
    right = COLUMNS * PANEL_W + (COLUMNS - 1) * GAP - LEGEND_W
    bottom = LINES_H - 20

    def __init__(self, xs: list[float], ys: list[float]) -> None:
        self._x = span(xs)
        self._y = span(ys)

    def x(self, value: float) -> float:
        low, high = self._x
        part = (math.log10(value) - low) / (high - low)
        return self.left + part * (self.right - self.left)

    def y(self, value: float) -> float:
        low, high = self._y
        part = (math.log10(value) - low) / (high - low)
        return self.bottom - part * (self.bottom - self.top)

    def grid(self) -> Iterator[str]:
        for power in range(self._x[0], self._x[1] + 1):
            x = self.x(10.0**power)
            yield self._line(x, self.top, x, self.bottom)
            yield text(x, self.bottom + 16, short(10.0**power), "small", "middle")
        for power in range(self._y[0], self._y[1] + 1):
            y = self.y(10.0**power)
            yield self._line(self.left, y, self.right, y)
            yield text(self.left - 6, y + 4, short(10.0**power), "small", "end")

    def _line(self, x1: float, y1: float, x2: float, y2: float) -> str:
        ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
        return f'<line {ends} class="grid" />'


def span(values: list[float]) -> tuple[int, int]:
    """Return the powers of ten around some values, never the same two."""
    logs = [math.log10(value) for value in values]
    low = math.floor(min(logs) + 1e-9)
    return low, max(math.ceil(max(logs) - 1e-9), low + 1)


def size_of(name: str) -> float:
    """Read "10,000" or "10 MB"."""
    count, _, unit = name.replace(",", "").partition(" ")
    return float(count) * {"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9}[unit]


def short(value: float) -> str:
    for unit, of in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= of:
            return f"{value / of:g} {unit}"
    return f"{value:g}"
