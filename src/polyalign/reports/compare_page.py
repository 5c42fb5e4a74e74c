"""The report of a comparison: one page without network that says who differed, and how sure.

It reads the plain data that ``polyalign compare`` leaves in ``comparison.json``; nothing is
computed here but where things stand on the paper.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import polyalign
from polyalign.errors import RunError
from polyalign.reports import compare_pictures, svg, words
from polyalign.reports.filled import filled
from polyalign.reports.glossary import GLOSSARY

LARGEST = 1_000_000
"""Bytes of a page; what is too large is told, texts are left out first."""

TERMS = (
    "Implicit reward", "Ranking accuracy", "Log-probability", "Nats", "Divergence (KL)",
    "Interval", "p", "Held out", "Win rate", "Calibration",
)  # fmt: skip

OWN_TERMS = {
    "Seed": "The number that all chance in a training run follows from. Two runs with two seeds "
    "are two throws of the same dice.",
    "Holm's correction": "Among many tests some look lucky. The correction makes each p-value "
    "larger, so that the chance of a single false star in a whole family of tests stays below 5 %.",
    "Detectable difference": "The smallest true difference that so few prompts and seeds would "
    "show, four times in five.",
    "Computed tokens": "Tokens that a forward pass computed: by the policy in training, by a "
    "reference, by a judge that is a model, and tokens that were sampled.",
    "Shuffled labels": "A control: the same method learns from labels dealt out by chance.",
    "Best of n": "The base answers n times and the judge picks: what choosing alone gives.",
    "Likelihood displacement": "Training that raises the margin between two answers while both "
    "become less likely.",
}


def render(result: Mapping[str, Any]) -> str:
    """The page as text, below a megabyte. Raises :class:`RunError` where it would be larger."""
    page = _render(result, texts=True)
    if len(page.encode()) > LARGEST:
        page = _render(result, texts=False)
    if len(page.encode()) > LARGEST:
        raise RunError(
            f"The report would have {len(page.encode()) / 1e6:.1f} MB.",
            "Compare fewer methods at once; comparison.json holds all figures.",
        )
    return page


def _render(result: Mapping[str, Any], texts: bool) -> str:
    primary = result["primary"]
    return filled(
        "compare.html.j2",
        title=result["title"],
        version=polyalign.__version__,
        result=result,
        primary=result["measures"][primary],
        picture=compare_pictures.primary(result),
        headline=headline(result),
        heads=heads(result),
        table=table(result),
        frontier=compare_pictures.frontier(result),
        calibration=calibration(result),
        displacement=displacement(result),
        writing=writing(result),
        costs=costs(result),
        curves=compare_pictures.learning_curves(result),
        pairs=pairs(result),
        searches=[(r["label"], r["search"]) for r in result["rows"] if r.get("search")],
        samples=samples(result) if texts else [],
        asked=asked(result),
        terms={t: GLOSSARY[t] for t in TERMS if t in GLOSSARY} | OWN_TERMS,
        words=words,
    )


def text(value: float | None, form: str) -> str:
    """A figure of a measure."""
    if value is None or not math.isfinite(value):
        return "–"
    return words.percent(value) if form == "percent" else words.number(value)


def cell(found: Mapping[str, Any] | None, form: str) -> str:
    """A value with its interval."""
    return words.estimate(found, form == "percent") if found else "–"


def headline(result: Mapping[str, Any]) -> str:
    """The answer in one sentence."""
    won = result["winner"]
    label = result["measures"][result["primary"]]["label"]
    if won["label"]:
        return f"{won['label']} wins on {label}."
    if won["best"] is None:
        return f"No method could be measured on {label}."
    better = [
        r["label"]
        for r in result["rows"]
        if r["kind"] == "train"
        and r["measures"].get(result["primary"], {}).get("verdict") == "better"
    ]
    if better:
        count = words.count(len(better), "method")
        many = "is" if len(better) == 1 else "are"
        return f"No single winner: {count} {many} better than the base on {label}."
    return f"No difference found: on {label} no method is better than the base beyond luck."


def heads(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Headings of the table with their explanations, the primary measure first."""
    names = ordered(result)
    out = [(result["measures"][n]["label"], result["measures"][n]["help"]) for n in names]
    if any("length_controlled" in row for row in result["rows"]):
        out.append(
            (
                "win rate, length-controlled",
                "what the win rate would be at equal lengths (as AlpacaEval 2)",
            )
        )
    return out


def ordered(result: Mapping[str, Any]) -> list[str]:
    """Names of measures, the primary one first; the displacement has a table of its own."""
    rest = [n for n in result["measures"] if n != result["primary"]]
    return [result["primary"], *(n for n in rest if not n.startswith("displacement"))]


def table(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of the main table: label, note, cells as (text, verdict, difference in words)."""
    names = ordered(result)
    controlled = any("length_controlled" in row for row in result["rows"])
    out = []
    for row in result["rows"]:
        cells = []
        for name in names:
            measure = result["measures"][name]
            found = row["measures"].get(name)
            told = ""
            if found and found.get("difference"):
                d = found["difference"]
                told = (
                    f"difference from the base {_signed(d['value'], measure['form'])} "
                    f"[{_signed(d['low'], measure['form'])}, {_signed(d['high'], measure['form'])}]"
                    f", {words.p_value(found['p'])} after correction"
                )
            cells.append(
                {
                    "text": cell(found, measure["form"]),
                    "verdict": (found or {}).get("verdict", ""),
                    "told": told,
                }
            )
        if controlled:
            cells.append(
                {
                    "text": text(row.get("length_controlled"), "percent"),
                    "verdict": "",
                    "told": "",
                }
            )
        notes = [row["note"]]
        if row.get("cost", {}).get("sampled"):
            notes.append("asks the judge about its own samples while it trains")
        if len(row["seeds"]) > 1:
            notes.append(f"{len(row['seeds'])} seeds")
        note = "; ".join(filter(None, notes))
        out.append({"label": row["label"], "note": note, "kind": row["kind"], "cells": cells})
    return out


def _signed(value: float | None, form: str) -> str:
    if value is None:
        return "∞"
    return f"{100 * value:+.1f}" if form == "percent" else f"{value:+.3g}"


def calibration(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Reliability of each row's implicit reward as a probability."""
    out = []
    for row in result["rows"]:
        found = row.get("calibration")
        if not found or row["kind"] not in ("train", "again", "shuffled"):
            continue
        bins = [
            svg.Span(
                str(b["predicted"]), b["observed"], b["observed_low"], b["observed_high"],
                note=f"({b['n']} cases)",
            )
            for b in found["bins"]
        ]  # fmt: skip
        out.append(
            {
                "label": row["label"],
                "picture": svg.reliability(bins) if row["kind"] == "train" else "",
                "error": words.number(found["expected_error"]),
                "brier": words.number(found["brier"]),
                "beta": words.number(found["beta"]),
            }
        )
    return out


def displacement(result: Mapping[str, Any]) -> list[list[str]]:
    """Change of both answers' log-probabilities, row by row."""
    return [
        [
            row["label"],
            cell(row["measures"]["displacement"], "number"),
            cell(row["measures"].get("displacement_rejected"), "number"),
        ]
        for row in result["rows"]
        if "displacement" in row["measures"] and row["kind"] != "base"
    ]


def writing(result: Mapping[str, Any]) -> list[list[str]]:
    """Length, variety and faults of the answers."""
    return [
        [
            row["label"],
            cell(row["measures"].get("length"), "number"),
            words.number(row["distinct_2"]),
            *(words.percent(row["faults"][name]) for name in ("empty", "loop", "unfinished")),
        ]
        for row in result["rows"]
        if "faults" in row
    ]


def costs(result: Mapping[str, Any]) -> list[list[str]]:
    """What each training run took: tokens by who computed them, steps, seconds, memory."""
    return [
        [
            row["label"],
            *(
                f"{row['cost'][name]:,.0f}"
                for name in ("total", "policy", "reference", "sampled", "judge", "search", "steps")
            ),
            words.duration(row["seconds"]),
            f"{row['memory_bytes'] / 2**30:.2f} GiB" if row["memory_bytes"] else "–",
        ]
        for row in result["rows"]
        if "cost" in row and row["kind"] != "base"
    ]


def pairs(result: Mapping[str, Any]) -> list[list[str]]:
    """Methods against each other on the primary measure, the surest first."""
    form = result["measures"][result["primary"]]["form"]
    return [
        [
            p["first"],
            p["second"],
            f"{_signed(p['value'], form)} [{_signed(p['low'], form)}, {_signed(p['high'], form)}]",
            words.p_value(p["p_holm"]),
        ]
        for p in sorted(result["pairs"], key=lambda p: (p["p_holm"], p["p"]))[:80]
    ]


def samples(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each shown prompt with every row's answer."""
    rows = [r for r in result["rows"] if r.get("texts")]
    if not rows:
        return []
    return [
        {
            "prompt": shown["prompt"],
            "answers": [(r["label"], r["texts"][i]["answer"] or "(nothing)") for r in rows],
        }
        for i, shown in enumerate(rows[0]["texts"])
    ]


def asked(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was compared and how, as names and values."""
    setup = result["setup"]
    measure = result["measures"][result["primary"]]
    train = {k: v for k, v in setup["train"].items() if v is not None}
    lines = {
        "world": setup["world"],
        "model": setup["model"].rstrip("/").rsplit("/", 1)[-1],
        "training data": ", ".join(setup["data"]),
        "held-out data": ", ".join(setup["eval_data"])
        or ("" if setup["world"] else f"{100 * setup['test']:g} % of the prompts"),
        "primary measure, named beforehand": f"{measure['label']} ({measure['help']})",
        "budget": f"{result['budget']:,} computed tokens for each training run",
        "seeds": ", ".join(str(seed) for seed in setup["seeds"]),
        "judge": (setup["judge"] or "").rsplit("/", 1)[-1],
        "answers": ""
        if setup["world"]
        else f"at most {setup['prompts']} prompts, {setup['answers']} each "
        f"(base: {setup['best_of']}), temperature {setup['temperature']:g}, at most "
        f"{setup['max_new_tokens']} tokens",
        "options of all": ", ".join(f"{k}={v}" for k, v in train.items()) or "defaults",
        "search": "; ".join(f"{k} in {v}" for k, v in setup["search"].items()) or "none",
        "versions": ", ".join(f"{k} {v}" for k, v in result["made"].items()),
        "fingerprints": ", ".join(f"{k} {v}" for k, v in result["fingerprints"].items() if v),
    }
    return [(name, value) for name, value in lines.items() if value]
