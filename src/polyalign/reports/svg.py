"""Small charts as inline SVG: curves, histograms, intervals, reliability.

They need no script and no network; colours come from the page's CSS (classes ``c0`` … ``c7``),
so that they follow light and dark. Values are told on hover by ``<title>``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from polyalign.reports.words import number

WIDTH, HEIGHT = 460, 240
LEFT, RIGHT, TOP, BOTTOM = 54, 12, 10, 30
COLOURS = 8


@dataclass(frozen=True)
class Curve:
    """A named series of (x, y); ``colour`` counts from 0, ``dashed`` marks evaluation."""

    label: str
    points: Sequence[tuple[float, float]]
    colour: int = 0
    dashed: bool = False


def ticks(low: float, high: float, about: int = 5, whole: bool = False) -> list[float]:
    """Round numbers in [low, high], about so many; ``whole``: none between whole numbers.

    >>> ticks(0, 1)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low]
    raw = (high - low) / about
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    if whole:
        step = max(1, 5 * power if step == 2.5 * power else step)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


@dataclass(frozen=True)
class Plane:
    """Data coordinates on the paper, with axes."""

    x: tuple[float, float]
    y: tuple[float, float]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Paper coordinates of a point."""
        u = (x - self.x[0]) / (self.x[1] - self.x[0])
        v = (y - self.y[0]) / (self.y[1] - self.y[0])
        return (
            round(self.left + u * (self.width - self.left - RIGHT), 1),
            round(self.height - BOTTOM - v * (self.height - TOP - BOTTOM), 1),
        )

    def axes(self, x_label: str = "", y_ticks: bool = True) -> list[str]:
        """Grid, ticks and the x axis's name."""
        out = []
        if y_ticks:
            for y in ticks(*self.y):
                _, v = self.at(self.x[0], y)
                out.append(
                    f'<path class="grid" d="M{self.left} {v}H{self.width - RIGHT}"/>'
                    f'<text class="tick" x="{self.left - 6}" y="{v + 3.5}" '
                    f'text-anchor="end">{number(y)}</text>'
                )
        base = self.height - BOTTOM
        out.append(f'<path class="axis" d="M{self.left} {base}H{self.width - RIGHT}"/>')
        for x in ticks(*self.x, whole=x_label == "step"):
            u, _ = self.at(x, self.y[0])
            out.append(
                f'<text class="tick" x="{u}" y="{base + 14}" text-anchor="middle">'
                f"{number(x)}</text>"
            )
        if x_label:
            middle = (self.left + self.width - RIGHT) / 2
            out.append(
                f'<text class="tick" x="{middle}" y="{self.height - 3}" '
                f'text-anchor="middle">{escape(x_label)}</text>'
            )
        return out


def curves(
    series: Sequence[Curve],
    *,
    x_label: str = "step",
    zero: bool = False,
    level: float | None = None,
) -> str:
    """Curves over a common x axis; "" when there is nothing to draw.

    Long noisy series are drawn faint with their moving average on top. ``zero`` keeps 0 in view,
    ``level`` draws a dotted line (a coin's accuracy, say).
    """
    drawn = [
        Curve(c.label, thin([p for p in c.points if _finite(p)]), c.colour, c.dashed)
        for c in series
    ]
    drawn = [c for c in drawn if c.points]
    if not drawn:
        return ""
    xs = [x for c in drawn for x, _ in c.points]
    ys = [y for c in drawn for y in _bulk([y for _, y in c.points])]
    ys += [0.0] * zero + ([level] if level is not None else [])
    plane = Plane(_span(min(xs), max(xs), 0.0), _span(min(ys), max(ys), 0.06))
    out = [*plane.axes(x_label)]
    if level is not None:
        _, v = plane.at(plane.x[0], level)
        out.append(f'<path class="level" d="M{LEFT} {v}H{WIDTH - RIGHT}"/>')
    for c in drawn:
        colour = f"c{c.colour % COLOURS}"
        smooth = average(c.points) if noisy(c.points) and not c.dashed else c.points
        if smooth is not c.points:
            out.append(f'<path class="line faint {colour}" d="{_path(c.points, plane)}"/>')
        dash = " dashed" if c.dashed else ""
        out.append(f'<path class="line{dash} {colour}" d="{_path(smooth, plane)}"/>')
        few = len(smooth) <= 12
        every = max(1, len(smooth) // 50)
        for x, y in [*smooth[:-1:every], smooth[-1]]:
            u, v = plane.at(x, min(max(y, plane.y[0]), plane.y[1]))
            dot = "dot" if few else "hover"
            out.append(
                f'<circle class="{dot} {colour}" cx="{u}" cy="{v}" r="{3 if few else 6}">'
                f"<title>{escape(c.label)}, {escape(x_label)} {number(x)}: {number(y, 4)}</title>"
                "</circle>"
            )
    return _svg(out, WIDTH, HEIGHT, ", ".join(c.label for c in drawn))


def histogram(
    edges: Sequence[float], counts: Sequence[float], *, x_label: str, colour: int = 0
) -> str:
    """Bars of ``counts`` [B] between ``edges`` [B + 1]; a dotted line at 0 where it is in view."""
    if not counts or sum(counts) == 0:
        return ""
    plane = Plane((edges[0], edges[-1]), (0.0, max(counts) * 1.05))
    out = plane.axes(x_label)
    for low, high, n in zip(edges, edges[1:], counts):
        (u, v), (w, base) = plane.at(low, n), plane.at(high, 0)
        side = "c1" if high <= 0 else f"c{colour}"
        out.append(
            f'<rect class="bar {side}" x="{u + 0.5}" y="{v}" width="{max(w - u - 1, 0.5):.1f}" '
            f'height="{max(base - v, 0):.1f}"><title>{number(low)} to {number(high)}: '
            f"{number(n)}</title></rect>"
        )
    if edges[0] < 0 < edges[-1]:
        u, _ = plane.at(0, 0)
        out.append(f'<path class="level" d="M{u} {TOP}V{HEIGHT - BOTTOM}"/>')
    return _svg(out, WIDTH, HEIGHT, f"histogram of {x_label}")


@dataclass(frozen=True)
class Span:
    """A value with its interval and a name."""

    label: str
    value: float
    low: float
    high: float
    colour: int = 0
    note: str = ""


def intervals(spans: Sequence[Span], *, x_label: str, level: float | None = None) -> str:
    """Values with their intervals, one a line, on a common axis."""
    spans = [s for s in spans if math.isfinite(s.value)]
    if not spans:
        return ""
    ends = [x for s in spans for x in (s.value, s.low, s.high) if math.isfinite(x)]
    ends += [level] if level is not None else []
    width, height, left = 940, 30 * len(spans) + TOP + BOTTOM + 6, 230
    plane = Plane(_span(min(ends), max(ends), 0.05), (0.0, 1.0), width, height, left)
    out = plane.axes(x_label, y_ticks=False)
    for x in ticks(*plane.x):
        u, _ = plane.at(x, 0)
        out.append(f'<path class="grid" d="M{u} {TOP}V{height - BOTTOM}"/>')
    if level is not None:
        u, _ = plane.at(level, 0)
        out.append(f'<path class="level" d="M{u} {TOP}V{height - BOTTOM}"/>')
    for i, s in enumerate(spans):
        v = TOP + 18 + 30 * i
        a, _ = plane.at(max(s.low, plane.x[0]), 0)
        b, _ = plane.at(min(s.high, plane.x[1]), 0)
        u, _ = plane.at(s.value, 0)
        colour = f"c{s.colour % COLOURS}"
        told = f"{s.label}: {number(s.value)} [{number(s.low)}, {number(s.high)}] {s.note}"
        out.append(
            f'<text class="name" x="{left - 10}" y="{v + 4}" text-anchor="end">'
            f"{escape(_short(s.label, 32))}</text>"
            f'<g><title>{escape(told)}</title><path class="span {colour}" d="M{a} {v}H{b}"/>'
            f'<circle class="dot {colour}" cx="{u}" cy="{v}" r="5"/></g>'
        )
    return _svg(out, width, height, x_label)


def reliability(bins: Sequence[Span]) -> str:
    """Observed share against predicted probability, which ``label`` holds, with intervals."""
    if not bins:
        return ""
    plane = Plane((0.0, 1.0), (0.0, 1.0))
    out = plane.axes("probability the model gives")
    (a, b), (c, d) = plane.at(0, 0), plane.at(1, 1)
    out.append(f'<path class="level" d="M{a} {b}L{c} {d}"/>')
    for s in bins:
        u, v = plane.at(float(s.label), s.value)
        _, low = plane.at(0, s.low)
        _, high = plane.at(0, s.high)
        told = f"predicted {number(float(s.label))}, observed {number(s.value)} {s.note}"
        out.append(
            f'<g><title>{escape(told)}</title><path class="span thin c0" d="M{u} {low}V{high}"/>'
            f'<circle class="dot c0" cx="{u}" cy="{v}" r="4"/></g>'
        )
    return _svg(out, WIDTH, HEIGHT, "calibration")


def thin(points: Sequence[tuple[float, float]], most: int = 240) -> list[tuple[float, float]]:
    """At most ``most`` points: means of neighbours, the last point kept as it is."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(len(points) / most)
    out = []
    for i in range(0, len(points), size):
        part = points[i : i + size]
        out.append((sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)))
    return [*out[:-1], points[-1]]


def average(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The centred moving average over about a twelfth of the points."""
    half = max(2, len(points) // 24)
    out = []
    for i, (x, _) in enumerate(points):
        part = [y for _, y in points[max(0, i - half) : i + half + 1]]
        out.append((x, sum(part) / len(part)))
    return out


def noisy(points: Sequence[tuple[float, float]]) -> bool:
    """Whether a series jumps about, so that its moving average says more (a schedule does not)."""
    ys = [y for _, y in points]
    if len(ys) < 40:
        return False
    bend = sum(abs(a - 2 * b + c) for a, b, c in zip(ys, ys[1:], ys[2:])) / (len(ys) - 2)
    return bend > 0.02 * (max(ys) - min(ys))


def _bulk(values: Sequence[float]) -> list[float]:
    """The values without the rare far ones that would flatten the rest."""
    if len(values) < 20:
        return list(values)
    ordered = sorted(values)
    low, high = ordered[len(values) // 50], ordered[-1 - len(values) // 50]
    reach = high - low or abs(high) or 1.0
    return [v for v in values if low - reach <= v <= high + reach]


def _finite(point: tuple[float, float]) -> bool:
    return math.isfinite(point[0]) and math.isfinite(point[1])


def _span(low: float, high: float, margin: float) -> tuple[float, float]:
    if high <= low:
        pad = abs(low) * 0.1 or 1.0
        return low - pad, high + pad
    pad = (high - low) * margin
    return low - pad, high + pad


def _path(points: Sequence[tuple[float, float]], plane: Plane) -> str:
    """One line; what lies outside the view runs along its edge."""
    inside = [plane.at(x, min(max(y, plane.y[0]), plane.y[1])) for x, y in points]
    return "M" + "L".join(f"{u} {v}" for u, v in inside)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _svg(parts: Sequence[str], width: int, height: int, label: str) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">'
        + "".join(parts)
        + "</svg>"
    )
