"""The laboratory's table as a page, as Markdown and for the screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polyalign
from polyalign.engine.storage import write_text_atomic
from polyalign.reports import svg
from polyalign.reports.filled import filled
from polyalign.reports.words import number

Row = Mapping[str, Any]

HEADS = ("method", "world", "what theory says of its end", "distance", "gradient there",
         "reward", "KL")  # fmt: skip
"""Columns of the table; "gradient there" is the largest entry at the closed form."""


@dataclass(frozen=True)
class Picture:
    """One method's reward-KL curve."""

    title: str
    text: str
    legend: Sequence[tuple[str, int, bool]]
    picture: str


def cells(row: Row) -> list[str]:
    """One row as text, in the order of :data:`HEADS`."""
    return [
        row["name"],
        row["world"],
        row["finds"],
        power(row["distance"]) + ("" if row["reached"] else " [missed]"),
        "–" if row["gradient"] is None else power(row["gradient"]),
        number(row["reward"]),
        number(row["kl"]),
    ]


def power(x: float) -> str:
    """A distance by its order of magnitude.

    >>> power(0.0), power(3.2e-14), power(0.0123)
    ('0', '3e-14', '0.012')
    """
    if x == 0:
        return "0"
    return f"{x:.0e}".replace("e-0", "e-") if x < 1e-3 else f"{x:.2g}"


def markdown(rows: Sequence[Row]) -> str:
    """The table for a documentation page; figures by their order of magnitude only."""
    heads = ["method", "world", "learns from", "what theory says of its end", "distance",
             "within", "gradient there"]  # fmt: skip
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for row in rows:
        shown = [
            row["name"],
            row["world"],
            row["feedback"],
            row["finds"],
            bound(row["distance"]),
            f"{row['tolerance']:g}",
            "–" if row["gradient"] is None else bound(row["gradient"]),
        ]
        lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in shown) + " |")
    return "\n".join(lines) + "\n"


def bound(x: float) -> str:
    """A distance that is the same on every machine: what rounding leaves is told as a bound.

    >>> bound(3e-14), bound(0.0123)
    ('< 1e-8', '0.012')
    """
    return "< 1e-8" if x < 1e-8 else power(x)


def pictures(rows: Sequence[Row]) -> list[Picture]:
    """The reward-KL curve of every row that was swept."""
    made = []
    for row in rows:
        points = [(p["kl"], p["reward"]) for p in row["sweep"]]
        if not points:
            continue
        reach = max(kl for kl, _ in points) * 1.1
        best = [(kl, reward) for kl, reward in row["frontier"] if kl <= reach]
        curves = [
            svg.Curve(row["name"], sorted(points), 0),
            svg.Curve("the best reward at this KL", best, 7, dashed=True),
        ]
        values = ", ".join(number(p["strength"]) for p in row["sweep"])
        off = [p["distance"] for p in row["sweep"] if p["distance"] is not None]
        text = f"{row['strength']} = {values}."
        if off:
            text += f" Furthest from the closed form: {power(max(off))}."
        made.append(
            Picture(
                row["name"],
                text,
                [(row["name"], 0, False), ("the best reward at this KL", 7, True)],
                svg.curves(curves, x_label="KL to the start, nats"),
            )
        )
    return made


def page(rows: Sequence[Row]) -> str:
    """The laboratory's page: the table, and a reward-KL curve for each method that was swept."""
    return filled(
        "lab.html.j2",
        heads=HEADS,
        rows=[(cells(row), row["reached"]) for row in rows],
        figures=pictures(rows),
        version=polyalign.__version__,
    )


def write_page(rows: Sequence[Row], path: Path) -> Path:
    """Write the page and return its path; a folder gets ``lab.html``."""
    path = path / "lab.html" if path.is_dir() else path
    write_text_atomic(path, page(rows))
    return path
