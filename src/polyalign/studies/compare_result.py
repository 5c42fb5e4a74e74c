"""What a comparison found: intervals, tests, who won (if anybody), in figures and plain words.

Two families of tests, each corrected by Holm: every row against the base on the measure named
beforehand, and all other measures that have a better and a worse. Methods are compared with each
other on the measure named beforehand only, all pairs corrected together.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from polyalign.metrics.calibration import brier, calibration_error, pair_probabilities, reliability
from polyalign.metrics.comparison import holm
from polyalign.metrics.intervals import DRAWS, proportion
from polyalign.metrics.length_control import length_controlled
from polyalign.metrics.levels import (
    SeedVariance,
    crossed_bootstrap,
    crossed_difference,
    detectable,
    seed_variance,
    standard_error,
)
from polyalign.studies import compare_words
from polyalign.studies.compare_setup import Setup
from polyalign.studies.compare_values import MEASURES, Cell, Table, best_of, tables, wins

LEVEL = 0.95
BETA = 0.1
"""Scale of implicit rewards for calibration where a method's options name none."""


def summarise(setup: Setup, cells: Mapping[str, Sequence[Cell]]) -> dict[str, Any]:
    """The whole result as plain data; ``cells`` by row label in the setup's order."""
    base = next(row.label for row in setup.rows if row.kind == "base")
    ground = cells[base][0]
    found = tables(cells, base)
    kinds = {row.label: row.kind for row in setup.rows}
    noise = {name: _noise(setup, table) for name, table in found.items()}
    tests = _against_base(found, noise, base, kinds)
    for family in (
        {key: t for key, t in tests.items() if key[1] == setup.primary},
        {key: t for key, t in tests.items() if key[1] != setup.primary},
    ):
        for key, p in zip(family, holm([t["p"] for t in family.values()]), strict=True):
            tests[key]["p_holm"] = p
    rows = []
    for row in setup.rows:
        group = cells[row.label]
        shown = {
            name: _shown(table, row.label, tests.get((row.label, name)))
            for name, table in found.items()
            if row.label in table.values
        }
        rows.append(
            {
                "label": row.label,
                "kind": row.kind,
                "method": row.method,
                "note": row.note,
                "seeds": [cell["seed"] for cell in group] if row.kind != "base" else [],
                "measures": shown,
                **_extras(row.hyper, group, ground, row.kind == "base"),
            }
        )
        if row.kind == "base":
            extra = _best_of_row(setup, ground, found)
            if extra is not None:
                rows.append(extra)
    out: dict[str, Any] = {
        "primary": setup.primary,
        "budget": setup.budget,
        "level": LEVEL,
        "measures": {
            name: {
                "label": table.measure.label, "better": table.measure.better,
                "form": _form(table), "help": table.measure.help,
                "items": len(table.cluster), "prompts": len(set(table.cluster)),
                "dropped": table.dropped,
                "seed_spread": noise[name].variance ** 0.5, "repeated": noise[name].df,
            }
            for name, table in found.items()
        },
        "rows": rows,
        "tests": {"primary": sum(k[1] == setup.primary for k in tests), "all": len(tests)},
        "pairs": _pairs(found[setup.primary], noise[setup.primary], kinds),
        "detectable": _detectable(found[setup.primary], noise[setup.primary], kinds),
    }  # fmt: skip
    out["winner"] = winner(out)
    out["words"] = compare_words.summary(out, setup)
    return out


def _noise(setup: Setup, table: Table) -> SeedVariance:
    """What seeds alone change, from every row with several runs; the repetition of the first
    method is one more seed of it.
    """
    groups: dict[str, list[Any]] = {}
    for row in setup.rows:
        if row.kind in ("train", "again") and row.label in table.values:
            name = f"{row.method} {sorted(row.hyper.items())}"
            groups.setdefault(name, []).append(table.values[row.label])
    return seed_variance([np.concatenate(parts) for parts in groups.values()], table.cluster)


def _against_base(
    found: Mapping[str, Table],
    noise: Mapping[str, SeedVariance],
    base: str,
    kinds: Mapping[str, str],
) -> dict[tuple[str, str], dict[str, Any]]:
    tests = {}
    for name, table in found.items():
        if table.measure.better is None:
            continue
        for label, values in table.values.items():
            if kinds[label] != "base":
                test = crossed_difference(
                    values, table.values[base], table.cluster, noise[name], trained=(True, False)
                )
                tests[label, name] = test.to_json()
    return tests


def _shown(table: Table, label: str, test: dict[str, Any] | None) -> dict[str, Any]:
    values = table.values[label]
    share = _form(table) == "percent" and len(values) == 1
    estimate = (
        proportion(values[0], list(table.cluster))
        if share
        else crossed_bootstrap(values, list(table.cluster))
    )
    out = estimate.to_json() | {"by_seed": [float(x) for x in values.mean(1)]}
    if test is not None:
        better = table.measure.better
        beyond = test["p_holm"] < 1 - LEVEL
        sign = (test["value"] > 0) == (better == "high")
        verdict = ("better" if sign else "worse") if beyond else ""
        out |= {"difference": test, "p": test["p_holm"], "verdict": verdict}
    return out


def _form(table: Table) -> str:
    """Scores outside [0, 1] are numbers, not shares."""
    every = np.concatenate([y.ravel() for y in table.values.values()])
    inside = len(every) and every.min() >= 0 and every.max() <= 1
    return "percent" if table.measure.form == "percent" and inside else "number"


def _best_of_row(setup: Setup, ground: Cell, found: Mapping[str, Table]) -> dict[str, Any] | None:
    """The best of the base's answers by the judge: what choosing alone would give."""
    n = int((ground.get("answers") or {}).get("n", 1))
    best = best_of(ground)
    note = "the judge picks among the base's answers: a ceiling of choosing, without training"
    row: dict[str, Any] = {
        "label": f"best of {n} of the base", "kind": "best", "method": "", "note": note,
        "seeds": [], "measures": {},
    }  # fmt: skip
    name = "score" if "score" in found else "reward"
    if "best_of" in (ground.get("answers") or {}):
        best = np.array(ground["answers"]["best_of"])
    if best is None or name not in found:
        row["note"] = "needs a judge that scores, and there is none"
        return row
    values = best[np.isfinite(best)]
    share = _form(found[name]) == "percent" and values.min() >= 0 and values.max() <= 1
    estimate = proportion(values) if share else crossed_bootstrap(values)
    row["measures"] = {name: estimate.to_json()}
    return row


def _extras(
    hyper: Mapping[str, Any], group: Sequence[Cell], ground: Cell, base: bool
) -> dict[str, Any]:
    """Everything of a row that is not tested: cost, curves, calibration, length control, faults."""
    first = group[0]
    out: dict[str, Any] = {
        "cost": {
            name: float(np.mean([cell["cost"].get(name, 0) for cell in group]))
            for name in ("total", "policy", "reference", "sampled", "judge", "search", "steps")
        },
        "seconds": float(np.mean([cell["seconds"]["train"] for cell in group])),
        "memory_bytes": max(int(cell.get("memory_bytes") or 0) for cell in group),
        "settings": first.get("settings") or {},
        "search": [cell["search"] for cell in group if cell.get("search")],
        "curve": first.get("curve") or {},
        "texts": first.get("texts") or [],
    }
    answers = [cell["answers"] for cell in group if "faults" in (cell.get("answers") or {})]
    if answers:
        samples = sum(a["samples"] for a in answers)
        out["faults"] = {
            name: sum(a["faults"][name] for a in answers) / samples for name in answers[0]["faults"]
        }
        out["distinct_2"] = float(np.mean([a["distinct_2"] or 0.0 for a in answers]))
    told = [c["answers"]["disagreement"] for c in group if "disagreement" in c.get("answers", {})]
    if told:
        out["disagreement"] = float(np.mean(told))
    if not base:
        out |= _calibration(hyper, group, ground) | _length_control(group, ground)
    return out


def _calibration(hyper: Mapping[str, Any], group: Sequence[Cell], ground: Cell) -> dict[str, Any]:
    margins = []
    try:
        beta = float(hyper.get("beta", BETA))
    except (TypeError, ValueError):
        beta = BETA
    for cell in group:
        if "pairs" not in cell or "pairs" not in ground:
            return {}
        mine, theirs = cell["pairs"], ground["pairs"]
        up = np.array(mine["chosen"]) - np.array(theirs["chosen"])
        margins.append(beta * (up - np.array(mine["rejected"]) + np.array(theirs["rejected"])))
    p, y = pair_probabilities(np.concatenate(margins))
    return {
        "calibration": {
            "beta": beta,
            "expected_error": calibration_error(p, y),
            "brier": brier(p, y),
            "bins": [b.to_json() for b in reliability(p, y)],
        }
    }


def _length_control(group: Sequence[Cell], ground: Cell) -> dict[str, Any]:
    """Win rate as AlpacaEval 2 counts it, over all seeds' answers together."""
    every = []
    for cell in group:
        won = wins(cell, ground)
        if won is None or "steps" not in cell["answers"]:
            return {}
        n = won.shape[1]
        mine = np.array(cell["answers"]["steps"]).reshape(-1, cell["answers"]["n"])[:, :n]
        theirs = np.array(ground["answers"]["steps"]).reshape(-1, ground["answers"]["n"])[:, :n]
        every.append(np.stack([won, mine, theirs]).reshape(3, -1))
    won, mine, theirs = np.concatenate(every, axis=1)
    known = np.isfinite(won)
    if known.sum() < 2:
        return {}
    found = length_controlled(won[known], mine[known], theirs[known])
    return {"length_controlled": found.win_rate}


def _contestants(table: Table, kinds: Mapping[str, str]) -> list[str]:
    return [label for label in table.values if kinds[label] == "train"]


def _pairs(table: Table, noise: SeedVariance, kinds: Mapping[str, str]) -> list[dict[str, Any]]:
    """All trained rows against each other on the primary measure, corrected together."""
    out = []
    every = list(itertools.combinations(_contestants(table, kinds), 2))
    # A p-value from draws is never below one in so many: among many pairs the smallest must be
    # small enough to outlive Holm's correction.
    draws = max(DRAWS, 20 * len(every))
    for a, b in every:
        test = crossed_difference(
            table.values[a], table.values[b], table.cluster, noise, draws=draws
        )
        out.append({"first": a, "second": b, **test.to_json()})
    for entry, p in zip(out, holm([entry["p"] for entry in out]), strict=True):
        entry["p_holm"] = p
    return out


def _detectable(
    table: Table, noise: SeedVariance, kinds: Mapping[str, str]
) -> dict[str, float | None]:
    """What difference would have been seen, with 80 % power at 5 %: to the base, and between two
    methods (medians; before correction for many tests).
    """
    labels = _contestants(table, kinds)
    base = next(label for label in table.values if kinds[label] == "base")
    to_base = [
        standard_error(
            table.values[a], table.values[base], table.cluster, noise, trained=(True, False)
        )[0]
        for a in labels
    ]
    between = [
        standard_error(table.values[a], table.values[b], table.cluster, noise)[0]
        for a, b in itertools.combinations(labels, 2)
    ]
    return {
        "to_base": float(detectable(float(np.median(to_base)))) if to_base else None,
        "between": float(detectable(float(np.median(between)))) if between else None,
    }


def winner(result: Mapping[str, Any]) -> dict[str, Any]:
    """The one method that is better than the base and than every other beyond luck, or nobody.

    ``tied``: methods that cannot be told from the best one.
    """
    primary = result["primary"]
    high = result["measures"][primary]["better"] != "low"
    trained = {
        row["label"]: row["measures"][primary]
        for row in result["rows"]
        if row["kind"] == "train" and primary in row["measures"]
    }
    if not trained:
        return {"label": None, "best": None, "tied": []}
    best = (max if high else min)(trained, key=lambda label: trained[label]["value"])
    tied = []
    for pair in result["pairs"]:
        if best in (pair["first"], pair["second"]) and pair["p_holm"] >= 1 - result["level"]:
            tied.append(pair["second"] if pair["first"] == best else pair["first"])
    clear = trained[best].get("verdict") == "better" and not tied
    return {"label": best if clear else None, "best": best, "tied": sorted(tied)}


__all__ = ["MEASURES", "summarise", "winner"]
