"""Methods side by side: rows by columns, each cell with its interval, tested against a base row.

Plain data in. A cell is per-item values (tested, paired by item), totals with steps (perplexity),
an estimate that somebody else made, a number, or nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from polyalign.errors import OptionError, nearest
from polyalign.evaluation.likelihood import Perplexity
from polyalign.metrics.comparison import holm, paired_difference
from polyalign.metrics.intervals import bootstrap, proportion
from polyalign.reports import words

if TYPE_CHECKING:
    from rich.table import Table

Form = Literal["percent", "number", "seconds", "text"]


@dataclass(frozen=True)
class Column:
    """A measure: its name in rows, its heading, which way is better, and how it is written.

    ``test``: whether rows are tested against the base row. ``better`` None: neither way is,
    and there is nothing to test.
    """

    name: str
    label: str
    better: Literal["high", "low"] | None = "high"
    form: Form = "percent"
    test: bool = True
    help: str = ""


@dataclass(frozen=True)
class Values:
    """Per-item values [N], the same items in the same order in every row.

    ``cluster`` [N] names what belongs together (the prompt). With ``steps`` [N] the values are
    negative log-likelihoods in nats, shown as perplexity and tested as nats.
    """

    values: Sequence[float]
    cluster: Sequence[str] | None = None
    steps: Sequence[float] | None = None


Cell = Values | Mapping[str, Any] | float | str | None


@dataclass(frozen=True)
class Entry:
    """A row: its name and cells by column name; ``note`` explains it."""

    name: str
    cells: Mapping[str, Cell]
    note: str = ""


@dataclass(frozen=True)
class Shown:
    """A finished cell: text, value with interval, difference from the base, corrected p-value."""

    text: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    difference: dict[str, Any] | None = None
    p: float | None = None
    verdict: Literal["better", "worse", ""] = ""


@dataclass(frozen=True)
class Comparison:
    """The finished table. ``rows``: (name, note, cells in column order)."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, str, tuple[Shown, ...]], ...]
    base: str
    level: float = 0.95
    footnote: str = field(default="")

    def to_json(self) -> dict[str, Any]:
        """Plain data, every interval, difference and corrected p-value included."""
        return {
            "title": self.title,
            "base": self.base,
            "level": self.level,
            "correction": "holm",
            "rows": [
                {
                    "name": name,
                    "note": note,
                    "cells": {
                        c.name: {
                            "value": s.value, "low": s.low, "high": s.high, "n": s.n,
                            "text": s.text, "difference": s.difference, "p_holm": s.p,
                            "verdict": s.verdict,
                        }
                        for c, s in zip(self.columns, cells)
                    },
                }
                for name, note, cells in self.rows
            ],
            "footnote": self.footnote,
        }  # fmt: skip

    def rich(self) -> Table:
        """For the screen: better than the base green, worse red."""
        from rich.table import Table

        table = Table(title=self.title, caption=self.footnote, title_justify="left",
                      caption_justify="left")  # fmt: skip
        table.add_column("")
        for column in self.columns:
            table.add_column(column.label, justify="right")
        colour = {"better": "green", "worse": "red", "": ""}
        for name, _, cells in self.rows:
            texts = []
            for cell in cells:
                text = cell.text + (" *" if cell.verdict else "")
                style = colour[cell.verdict]
                texts.append(f"[{style}]{_plain(text)}[/]" if style else _plain(text))
            table.add_row(_plain(name), *texts)
        return table


def compare(
    title: str,
    columns: Sequence[Column],
    entries: Sequence[Entry],
    base: str,
    *,
    level: float = 0.95,
) -> Comparison:
    """Estimate every cell and test every tested cell against the base row's, paired by item.

    All p-values of the table are corrected together (Holm), so that many columns and rows earn no
    lucky star. Raises :class:`OptionError` for an unknown base or column, or items that do not
    match.
    """
    names = [entry.name for entry in entries]
    if base not in names:
        raise OptionError(f"The comparison has no row '{base}'.", nearest(base, names))
    valid = [column.name for column in columns]
    for entry in entries:
        for name in entry.cells:
            if name not in valid:
                raise OptionError(
                    f"The row '{entry.name}' has a column '{name}'.", nearest(name, valid)
                )
    ground = next(entry for entry in entries if entry.name == base)
    tests: dict[tuple[str, str], dict[str, Any]] = {}
    for entry in entries:
        for column in columns:
            mine, theirs = entry.cells.get(column.name), ground.cells.get(column.name)
            if (
                entry is ground
                or not column.test
                or column.better is None
                or not isinstance(mine, Values)
                or not isinstance(theirs, Values)
            ):
                continue
            if len(mine.values) != len(theirs.values):
                raise OptionError(
                    f"'{entry.name}' has {len(mine.values)} values of {column.name}, "
                    f"'{base}' has {len(theirs.values)}.",
                    "Measure both on the same items, in the same order.",
                )
            found = paired_difference(mine.values, theirs.values, _list(mine.cluster), level=level)
            tests[entry.name, column.name] = found.to_json()
    corrected = dict(zip(tests, holm([t["p"] for t in tests.values()])))
    rows = tuple(
        (
            entry.name,
            entry.note,
            tuple(
                _shown(
                    entry.cells.get(column.name),
                    column,
                    tests.get((entry.name, column.name)),
                    corrected.get((entry.name, column.name)),
                    level,
                )
                for column in columns
            ),
        )
        for entry in entries
    )
    stars = any(cell.verdict for _, _, cells in rows for cell in cells)
    foot = f"Intervals: {100 * level:.0f} %, resampling prompts."
    if tests:
        foot += (
            f" * differs from {base} beyond luck (paired sign-flip tests, {len(tests)} of them, "
            "Holm's correction)."
            if stars
            else f" No row differs from {base} beyond luck ({len(tests)} paired tests, Holm)."
        )
    return Comparison(title, tuple(columns), rows, base, level, foot)


def _shown(
    cell: Cell, column: Column, test: dict[str, Any] | None, p: float | None, level: float
) -> Shown:
    if cell is None:
        return Shown("–")
    if isinstance(cell, str):
        return Shown(cell)
    if isinstance(cell, (int, float)):
        return Shown(_text(float(cell), column), float(cell))
    found = _estimate(cell, column, level) if isinstance(cell, Values) else dict(cell)
    value, low, high = found.get("value"), found.get("low"), found.get("high")
    if value is None:
        return Shown("–")
    text = _text(float(value), column)
    if low is not None and high is not None:
        text += f" [{_bare(low, column)}, {_bare(high, column)}]"
    verdict: Literal["better", "worse", ""] = ""
    if test is not None and p is not None and p < 1 - level and column.better is not None:
        verdict = "better" if (test["value"] > 0) == (column.better == "high") else "worse"
    return Shown(text, value, low, high, found.get("n"), test, p, verdict)


def _estimate(cell: Values, column: Column, level: float) -> dict[str, Any]:
    values = np.asarray(cell.values, dtype=np.float64)
    if cell.steps is not None:
        cluster = cell.cluster or [str(i) for i in range(len(values))]
        steps = np.asarray(cell.steps, dtype=np.float64)
        measured = Perplexity(values, steps, tuple(cluster)).to_json()
        found: dict[str, Any] = measured["perplexity"]
        return found
    estimate = proportion if column.form == "percent" else bootstrap
    return estimate(values, _list(cell.cluster), level=level).to_json()


def _list(cluster: Sequence[str] | None) -> list[str] | None:
    return None if cluster is None else list(cluster)


def _text(x: float, column: Column) -> str:
    if not math.isfinite(x):
        return "–"
    if column.form == "seconds":
        return words.duration(x)
    return words.percent(x) if column.form == "percent" else words.number(x)


def _bare(x: float, column: Column) -> str:
    return f"{100 * x:.1f}" if column.form == "percent" else words.number(x)


def _plain(text: str) -> str:
    """Text whose square brackets are not markup."""
    return text.replace("[", r"\[")
