"""What a run reached, as lines of a table: before, after, change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from polyalign.reports import words
from polyalign.reports.rundata import RunData, display


@dataclass(frozen=True)
class Line:
    """A measure before and after, as text; ``p`` and ``n`` where they are known."""

    measure: str
    before: str
    after: str
    change: str
    n: str
    hint: str = ""


def results(run: RunData) -> list[Line]:
    """Measures with intervals from evaluation.json, else the first and last held-out figures."""
    found = run.evaluation
    out = [*_ranked(found), *_others(found), *_judgement(found), *_measured(found)]
    for name, label in (
        ("eval_loss", "Loss on held-out examples"),
        ("eval_rewards/accuracies", "Preference accuracy on held-out pairs, during training"),
        ("eval_rewards/margins", "Reward margin on held-out pairs"),
    ):
        first, last = run.first(name), run.last(name)
        if first is not None and last is not None:
            tell = words.percent if name.endswith("accuracies") else words.number
            sign = "+" if last >= first else ""
            change = f"{100 * (last - first):+.1f} points" if tell is words.percent else (
                f"{sign}{words.number(last - first)}"
            )  # fmt: skip
            out.append(Line(label, tell(first), tell(last), change, "", "no interval"))
    return out


def _ranked(found: Mapping[str, Any]) -> list[Line]:
    ranking = found.get("ranking") or {}
    before = found.get("ranking_reference") or {}
    names = {
        "implicit": ("Ranking accuracy of the implicit reward", "did training move the right way?"),
        "mean_likelihood": ("Ranking accuracy by mean log-probability", "length counts little"),
        "likelihood": ("Ranking accuracy by log-probability", "short answers are favoured"),
    }
    out = []
    for by, (label, hint) in names.items():
        after = (ranking.get("accuracy") or {}).get(by)
        if after is None:
            continue
        was = (before.get("accuracy") or {}).get(by)
        start = "a coin: 50 %" if by == "implicit" else words.estimate(was, True)
        gain = (found.get("ranking_gain") or {}).get(by)
        pairs = words.count(int(ranking.get("pairs", 0)), "pair")
        out.append(Line(label, start, words.estimate(after, True), _points(gain), pairs, hint))
    return out


def _others(found: Mapping[str, Any]) -> list[Line]:
    out = []
    if "perplexity" in found:
        after, before = found["perplexity"], found.get("perplexity_reference") or {}
        out.append(
            Line(
                "Perplexity of given answers",
                words.estimate(before.get("perplexity")),
                words.estimate(after.get("perplexity")),
                words.p_value((found.get("nats_gain") or {}).get("p")),
                words.count(int(after.get("answers", 0)), "answer"),
                "lower: the answers surprise the model less",
            )
        )
    if "divergence" in found:
        kl = found["divergence"]
        out.append(
            Line(
                "Divergence from the reference (KL, nats an answer)",
                "0",
                words.estimate(kl.get("kl")),
                "",
                words.count(int(kl.get("samples", 0)), "sample"),
                "how far the model has moved",
            )
        )
    return out


def _judgement(found: Mapping[str, Any]) -> list[Line]:
    judge = found.get("judge") or {}
    other = judge.get("baseline") or {}
    other = other if isinstance(other, Mapping) else {}
    out = []
    for name, label in (("success", "Instructions followed"), ("score", "Judge's score")):
        if name in judge:
            share = name == "success"
            n = words.count(int(judge[name].get("n") or 0), "answer")
            change = judge.get("difference")
            told = _points(change) if share else words.estimate(change)
            before = words.estimate(other.get(name), share)
            after = words.estimate(judge[name], share)
            out.append(
                Line(label, before, after, told, n, f"judge: {display(judge.get('name', ''))}")
            )
            for kind, e in (judge.get("by_kind") or {}).items():
                start = words.estimate((other.get("by_kind") or {}).get(kind), share)
                n = words.count(int(e.get("n") or 0), "answer")
                out.append(Line(f"· {kind}", start, words.estimate(e, share), "", n))
    if "win_rate" in judge:
        n = words.count(int(judge["win_rate"].get("n") or 0), "comparison")
        rate = words.estimate(judge["win_rate"], True)
        out.append(Line("Win rate against the baseline", "50 %", rate, "", n, "a tie counts half"))
    if "length" in judge:
        was = (other.get("length") or {}).get("mean") or (judge.get("length_baseline") or {}).get(
            "mean"
        )
        now = judge["length"].get("mean")
        out.append(
            Line("Mean length of answers (tokens)", words.number(was), words.number(now), "", "")
        )
    return out


def _measured(found: Mapping[str, Any]) -> list[Line]:
    """The figures of each measurement that was made beside the usual ones."""
    out = []
    for one in (found.get("with") or {}).values():
        for figure in one.get("figures") or ():
            share = bool(figure.get("share"))
            change = figure.get("change")
            told = _points(change) if share else words.estimate(change) if change else ""
            before, after = (_told(figure.get(side), share) for side in ("before", "after"))
            hint, n = str(figure.get("hint", "")), str(figure.get("n", ""))
            out.append(Line(str(figure["measure"]), before, after, told, n, hint))
    return out


def _told(value: Any, share: bool) -> str:
    """An estimate's plain data, a bare number, or nothing."""
    if value is None:
        return ""
    if isinstance(value, Mapping):
        return words.estimate(value, share)
    return words.percent(value) if share else words.number(value)


def _points(gain: Mapping[str, Any] | None) -> str:
    """A difference of shares in percentage points with interval and p-value."""
    if not gain or gain.get("value") is None:
        return ""
    told = f"{100 * gain['value']:+.1f} points"
    if gain.get("low") is not None and gain.get("high") is not None:
        told += f" [{100 * gain['low']:+.1f}, {100 * gain['high']:+.1f}]"
    p = words.p_value(gain.get("p"))
    return f"{told}, {p}" if p else told
