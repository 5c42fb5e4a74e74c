"""A comparison in plain words: what differed, what did not, and what the data cannot tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from polyalign.studies.compare_setup import Setup

FEW = 6
"""Up to so many rows a sentence tells each one's figures; beyond, the table does."""


def summary(result: Mapping[str, Any], setup: Setup) -> dict[str, list[str]]:
    """Sentences by heading; figures of shares are told in percentage points."""
    return {
        "differed": _differed(result),
        "not": _not(result),
        "controls": _controls(result),
        "watch": _watch(result),
        "unknown": _unknown(result, setup),
    }


def amount(value: float, form: str, sign: bool = True) -> str:
    """A difference: points for shares, else a number."""
    if form == "percent":
        return f"{100 * value:+.1f} points" if sign else f"{100 * value:.1f} points"
    return f"{value:+.3g}" if sign else f"{value:.3g}"


def listed(names: Sequence[str]) -> str:
    """Names as one writes them.

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def _primary(result: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    name = result["primary"]
    return name, result["measures"][name]


def _told(row: Mapping[str, Any], name: str, form: str) -> str:
    found = row["measures"][name]["difference"]
    return (
        f"{row['label']} ({amount(found['value'], form)}, 95 % interval "
        f"{amount(found['low'], form)} to {amount(found['high'], form)})"
    )


def _differed(result: Mapping[str, Any]) -> list[str]:
    name, measure = _primary(result)
    out = []
    for verdict in ("better", "worse"):
        rows = [
            r
            for r in result["rows"]
            if r["kind"] in ("train", "again")
            and r["measures"].get(name, {}).get("verdict") == verdict
        ]
        if rows:
            few = len(rows) <= FEW
            told = listed([_told(r, name, measure["form"]) if few else r["label"] for r in rows])
            out.append(f"On {measure['label']}, {verdict} than the base beyond luck: {told}.")
    won = result["winner"]
    if won["label"]:
        out.append(f"{won['label']} is better than the base and than every other method here.")
    elif won["best"] and won["tied"]:
        out.append(
            f"Nobody wins: {won['best']} has the best figure, but cannot be told from "
            f"{listed(won['tied'])}."
        )
    beaten = [p for p in result["pairs"] if p["p_holm"] < 1 - result["level"]]
    if beaten and not won["label"]:
        better = [
            (p["first"], p["second"])
            if (p["value"] > 0) == (measure["better"] == "high")
            else (p["second"], p["first"])
            for p in beaten
        ]
        told = "; ".join(f"{a} over {b}" for a, b in better[:12])
        more = f" (and {len(better) - 12} more)" if len(better) > 12 else ""
        out.append(f"Differences between methods beyond luck: {told}{more}.")
    return out or [f"On {measure['label']}, no method differs from the base beyond luck."]


def _not(result: Mapping[str, Any]) -> list[str]:
    name, measure = _primary(result)
    rows = [
        r["label"]
        for r in result["rows"]
        if r["kind"] == "train" and r["measures"].get(name, {}).get("verdict") == ""
    ]
    out = []
    if rows:
        out.append(f"Not told from the base: {listed(rows)}.")
    pairs = result["pairs"]
    same = sum(p["p_holm"] >= 1 - result["level"] for p in pairs)
    if pairs:
        out.append(
            f"Of {len(pairs)} pairs of methods, {same} cannot be told apart. That they are equal "
            "is not shown by this."
        )
    return out


def _controls(result: Mapping[str, Any]) -> list[str]:
    name, measure = _primary(result)
    form = measure["form"]
    out = []
    for row in result["rows"]:
        found = row["measures"].get(name, {}).get("difference")
        if found is None:
            continue
        if row["kind"] == "shuffled":
            gain = amount(found["value"], form)
            if row["measures"][name]["verdict"] == "better":
                out.append(
                    f"Warning: {row['label']} gained too ({gain}). Labels that say nothing cannot "
                    "teach, so some of the gains above have another reason (length, format, more "
                    "text of this kind)."
                )
            else:
                out.append(
                    f"{row['label']}: {gain}, no gain beyond luck, as it should be with labels "
                    "that say nothing."
                )
        if row["kind"] == "again":
            first = next(r for r in result["rows"] if r["kind"] == "train")
            gap = row["measures"][name]["value"] - first["measures"][name]["value"]
            out.append(
                f"{row['label']} (another seed) ends {amount(gap, form)} from {first['label']}: "
                "differences of that size are what a new seed alone makes."
            )
    return out


def _watch(result: Mapping[str, Any]) -> list[str]:
    out = []
    trained = [r for r in result["rows"] if r["kind"] == "train"]
    base = next(r for r in result["rows"] if r["kind"] == "base")
    fell = [
        r["label"]
        for r in trained
        if (m := r["measures"].get("displacement")) and m["high"] is not None and m["high"] < 0
    ]
    if fell:
        out.append(
            f"The better answers themselves became less likely than under the base with "
            f"{listed(fell)} (likelihood displacement): look at their samples."
        )
    broken = []
    before = sum(base.get("faults", {}).get(n, 0.0) for n in ("empty", "loop"))
    for row in trained:
        share = sum(row.get("faults", {}).get(n, 0.0) for n in ("empty", "loop"))
        if share > max(0.05, 2 * before):
            broken.append(f"{row['label']} ({100 * share:.0f} %)")
    if broken:
        out.append(f"Empty or looping answers: {listed(broken)}.")
    longer = []
    ground = base["measures"].get("length", {}).get("value")
    for row in trained:
        found = row["measures"].get("length", {}).get("value")
        if found and ground and not 2 / 3 < found / ground < 1.5:
            longer.append(f"{row['label']} ({found / ground:.1f} times the base's)")
    if longer:
        out.append(
            f"Answers of quite another length: {listed(longer)}. Read win rates with the column "
            "that controls for length."
        )
    torn = max((r.get("disagreement", 0.0) for r in trained), default=0.0)
    if torn:
        out.append(
            f"Asked in the other order, the judge named the other answer in up to "
            f"{100 * torn:.0f} % of pairs; both orders are averaged."
        )
    short = [
        r["label"] for r in trained if r["cost"]["total"] < 0.75 * max(1, result["budget"])
    ] if result.get("budget") else []  # fmt: skip
    if short:
        out.append(f"Less than three quarters of the budget was used by {listed(short)}.")
    return out


def _unknown(result: Mapping[str, Any], setup: Setup) -> list[str]:
    name, measure = _primary(result)
    form = measure["form"]
    out = []
    seen = result["detectable"]
    if seen["to_base"] is not None:
        out.append(
            f"With {measure['prompts']:,} held-out prompts and {len(setup.seeds)} "
            f"seed{'s' if len(setup.seeds) > 1 else ''}, a true difference from the base would be "
            f"seen four times in five from {amount(seen['to_base'], form, sign=False)} on"
            + (
                f", one between two methods from {amount(seen['between'], form, sign=False)} on"
                if seen["between"] is not None
                else ""
            )
            + " (a single test; the correction for many tests asks for more). Smaller ones may be "
            "there unseen."
        )
    if len(setup.seeds) == 1:
        out.append(
            "Each method was trained once. What another seed would change is known from the "
            "repetition of the first method only."
        )
    if setup.search:
        out.append("Hyper-parameters were chosen by the declared search, within the budget.")
    elif not setup.world:
        out.append(
            "Hyper-parameters are defaults: a method that is tuned may do better, and defaults may "
            "suit some methods more than others."
        )
    if setup.world:
        out.append(
            "A world is not a language model: it says what an objective's optimum does with this "
            "feedback, not how large models learn."
        )
    elif name in ("score", "win"):
        out.append("The judge's own errors and tastes are part of every figure.")
    else:
        out.append(
            "Ranking given answers well is not the same as writing better ones: a judge on the "
            "model's own answers would tell."
        )
    dropped = measure["dropped"]
    if dropped:
        out.append(f"{dropped} held-out items without a figure in some row are left out of all.")
    return out
