"""The drawings of a comparison's page: the primary measure, the frontier, learning curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from polyalign.reports import svg, words

KINDS = {"train": 0, "base": 7, "best": 5, "shuffled": 1, "again": 2}
"""Colour of a row by its kind."""


def primary(result: Mapping[str, Any]) -> str:
    """All rows on the primary measure with their intervals; the dotted line is the base."""
    name = result["primary"]
    factor = 100 if result["measures"][name]["form"] == "percent" else 1
    spans, level = [], None
    for row in result["rows"]:
        found = row["measures"].get(name)
        if found is None:
            continue
        low = found["low"] if found["low"] is not None else found["value"]
        high = found["high"] if found["high"] is not None else found["value"]
        spans.append(
            svg.Span(
                row["label"], factor * found["value"], factor * low, factor * high,
                KINDS[row["kind"]],
            )
        )  # fmt: skip
        if row["kind"] == "base":
            level = factor * found["value"]
    unit = ", %" if factor == 100 else ""
    return svg.intervals(spans, x_label=result["measures"][name]["label"] + unit, level=level)


def frontier(result: Mapping[str, Any]) -> str:
    """Primary measure against divergence: what was reached, and how far the model went for it."""
    name = result["primary"]
    if "kl" not in result["measures"]:
        return ""
    factor = 100 if result["measures"][name]["form"] == "percent" else 1
    points = [
        (
            r["label"],
            r["measures"]["kl"]["value"],
            factor * r["measures"][name]["value"],
            KINDS[r["kind"]],
        )
        for r in result["rows"]
        if "kl" in r["measures"] and name in r["measures"]
    ]
    unit = ", %" if factor == 100 else ""
    return scatter(
        points, "divergence from the base, nats", result["measures"][name]["label"] + unit
    )


def scatter(points: Sequence[tuple[str, float, float, int]], x_label: str, y_label: str) -> str:
    """Named points (label, x, y, colour) on a plane; names are told on hover, and beside."""
    points = [p for p in points if math.isfinite(p[1]) and math.isfinite(p[2])]
    if len(points) < 2:
        return ""
    xs, ys = [p[1] for p in points], [p[2] for p in points]
    width, height = 940, 380
    plane = svg.Plane(_wide(xs), _wide(ys), width, height, 64)
    out = plane.axes(x_label)
    out.append(
        f'<text class="tick" x="14" y="{height / 2}" text-anchor="middle" '
        f'transform="rotate(-90 14 {height / 2})">{escape(y_label)}</text>'
    )
    taken: list[tuple[float, float]] = []
    for label, x, y, colour in points:
        u, v = plane.at(x, y)
        told = f"{label}: {words.number(x)} nats, {words.number(y)}"
        left = u > width - 170
        place = (u - 9 if left else u + 9, v + 4)
        free = all(abs(place[0] - a) > 90 or abs(place[1] - b) > 12 for a, b in taken)
        out.append(
            f"<g><title>{escape(told)}</title>"
            f'<circle class="dot c{colour % svg.COLOURS}" cx="{u}" cy="{v}" r="5"/></g>'
        )
        if free:
            taken.append(place)
            short = label if len(label) <= 26 else label[:25] + "…"
            out.append(
                f'<text class="tick" x="{place[0]}" y="{place[1]}" '
                f'text-anchor="{"end" if left else "start"}">{escape(short)}</text>'
            )
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(y_label)} by '
        f'{escape(x_label)}">' + "".join(out) + "</svg>"
    )


def _wide(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    pad = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
    return low - pad, high + pad


def learning_curves(result: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, int]], str]]:
    """Curves by computed tokens: title, legend, picture; losses each by itself."""
    titles = {
        "rewards/accuracies": "Preference accuracy in training",
        "rewards/margins": "Reward margin in training",
        "reward": "Reward of samples in training",
        "kl": "Divergence in training",
    }
    trained = [r for r in result["rows"] if r["kind"] in ("train", "shuffled") and r.get("curve")]
    out = []
    for name, title in titles.items():
        drawn = [
            svg.Curve(row["label"], [(x, y) for x, y in row["curve"][name]], i)
            for i, row in enumerate(trained)
            if name in row["curve"]
        ][: svg.COLOURS]
        picture = svg.curves(drawn, x_label="computed tokens")
        if picture:
            out.append((title, [(c.label, c.colour) for c in drawn], picture))
    for i, row in enumerate(trained[:12]):
        if "loss" in row["curve"]:
            points = [(x, y) for x, y in row["curve"]["loss"]]
            picture = svg.curves([svg.Curve(row["label"], points, i)], x_label="computed tokens")
            if picture:
                out.append((f"Loss: {row['label']}", [], picture))
    return out
