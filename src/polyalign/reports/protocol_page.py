"""The page of a protocol: the same methods from several starts or over several sizes, side by side.

It reads the results of the protocol's comparisons; each has a report of its own, which is linked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polyalign
from polyalign.reports import compare_page, words
from polyalign.reports.filled import filled

ABSOLUTE = ("score", "ranking_mean", "perplexity", "length")
"""Measures that mean the same from every start; others are against an arm's own base."""


def render(title: str, question: str, arms: Sequence[Mapping[str, Any]], one_base: bool) -> str:
    """The page as text; ``arms`` hold title, folder below the page, and result.

    ``one_base``: all arms start from one model, so every measure is comparable.
    """
    return filled(
        "protocol.html.j2",
        title=title,
        question=question,
        version=polyalign.__version__,
        arms=[
            {
                "title": arm["title"],
                "link": f"{arm['folder']}/report.html",
                "headline": compare_page.headline(arm["result"]),
                "asked": f"{arm['result']['budget']:,} computed tokens for each training run",
            }
            for arm in arms
        ],
        tables=[table(arms, name, one_base) for name in measures(arms)],
        words=words,
    )


def measures(arms: Sequence[Mapping[str, Any]]) -> list[str]:
    """Measures that all arms have, the primary one first, those that change nothing left out."""
    first = arms[0]["result"]
    shared = [
        name
        for name in first["measures"]
        if all(name in arm["result"]["measures"] for arm in arms)
        and not name.startswith("displacement")
    ]
    return sorted(shared, key=lambda name: name != first["primary"])


def table(arms: Sequence[Mapping[str, Any]], name: str, one_base: bool) -> dict[str, Any]:
    """One measure: rows of methods and controls, a column for each arm."""
    measure = arms[0]["result"]["measures"][name]
    lines = []
    for row in arms[0]["result"]["rows"]:
        cells = []
        for arm in arms:
            same = next((r for r in arm["result"]["rows"] if r["label"] == row["label"]), None)
            found = (same or {"measures": {}})["measures"].get(name)
            verdict = (found or {}).get("verdict", "")
            cells.append({"text": compare_page.cell(found, measure["form"]), "verdict": verdict})
        if any(cell["text"] != "–" for cell in cells):
            lines.append({"label": row["label"], "kind": row["kind"], "cells": cells})
    return {
        "label": measure["label"],
        "help": measure["help"],
        "own_base": not one_base and name not in ABSOLUTE,
        "lines": lines,
    }
