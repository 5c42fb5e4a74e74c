"""The parts of the HTML report as plain data: paragraphs, charts, samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from polyalign.evaluation.diagnosis import series
from polyalign.feedback.payloads import text_of
from polyalign.reports import svg, words
from polyalign.reports.rundata import RunData


@dataclass(frozen=True)
class Figure:
    """One chart: a title, a sentence how to read it, its legend (name, colour, dashed), its SVG."""

    title: str
    text: str
    legend: Sequence[tuple[str, int, bool]]
    picture: str


@dataclass(frozen=True)
class Chart:
    """What a chart shows: metric names with labels, and how to read it."""

    title: str
    text: str
    metrics: tuple[tuple[str, str], ...]
    zero: bool = False
    level: float | None = None


CHARTS = (
    Chart("Loss", "What training minimises; lower is better.", (("loss", "loss"),)),
    Chart(
        "Preference accuracy",
        "Share of pairs in which the model prefers the answer that people preferred. The dotted "
        "line is a coin's.",
        (("rewards/accuracies", "accuracy"),),
        level=0.5,
    ),
    Chart(
        "Reward margin",
        "How much more the model's implicit reward likes the preferred answer than the rejected "
        "one. It should rise.",
        (("rewards/margins", "margin"),),
        zero=True,
    ),
    Chart(
        "Implicit rewards",
        "The two halves of the margin. It is healthiest when the preferred answers' reward does "
        "not fall.",
        (("rewards/chosen", "preferred"), ("rewards/rejected", "rejected")),
        zero=True,
    ),
    Chart(
        "Log-probabilities of answers",
        "How likely the model finds the answers, in nats: nearer to 0 is more likely. Both falling "
        "together is worth a look at the samples.",
        (("logps/chosen", "preferred"), ("logps/rejected", "rejected")),
    ),
    Chart(
        "Reward of samples",
        "What the judge gives the model's own answers.",
        (("reward", "reward"),),
    ),
    Chart(
        "Spread of rewards",
        "How much answers to one prompt differ for the judge; at 0 there is nothing to learn from.",
        (("reward_std", "spread"),),
        zero=True,
    ),
    Chart(
        "Distance from the reference",
        "KL divergence in nats: how far the model has moved from where it started.",
        (("kl", "KL"),),
        zero=True,
    ),
    Chart(
        "Length of answers",
        "Mean number of tokens the model writes. A steady climb often means that length is being "
        "rewarded.",
        (("completions/mean_length", "length"),),
    ),
    Chart(
        "Entropy",
        "How undecided the model is at each token; near 0 it always says the same.",
        (("entropy", "entropy"),),
        zero=True,
    ),
    Chart(
        "Gradient norm",
        "The size of each step's push before clipping; sudden jumps announce trouble.",
        (("grad_norm", "gradient norm"),),
        zero=True,
    ),
    Chart(
        "Learning rate", "The size of the steps, by the schedule.", (("lr", "learning rate"),), True
    ),
)

BOOKKEEPING = {"step", "stage", "epoch", "time", "tokens", "split"}


def figures(runs: Sequence[RunData]) -> tuple[list[Figure], list[Figure]]:
    """The known charts, and one for every other metric in the runs' rows."""
    known = [f for chart in CHARTS for f in _figure(runs, chart)]
    shown = {name for chart in CHARTS for name, _ in chart.metrics}
    other = {
        name.removeprefix("eval_")
        for run in runs
        for row in run.history
        for name, value in row.items()
        if isinstance(value, (int, float)) and name not in BOOKKEEPING
    } - shown
    rest = [f for name in sorted(other) for f in _figure(runs, Chart(name, "", ((name, name),)))]
    return known, rest


def _figure(runs: Sequence[RunData], chart: Chart) -> list[Figure]:
    if len(runs) > 1 and len(chart.metrics) > 1:
        # Several runs: colours tell the runs apart, so each metric has a chart of its own.
        return [
            f
            for name, label in chart.metrics
            for f in _figure(runs, Chart(f"{chart.title}: {label}", chart.text, ((name, label),)))
        ]
    drawn = []
    for i, run in enumerate(runs):
        for j, (name, label) in enumerate(chart.metrics):
            colour = i if len(runs) > 1 else j
            title = run.name if len(runs) > 1 else label
            for prefix, suffix in (("", ""), ("eval_", " (held out)")):
                points = [(float(s), v) for s, v in series(run.history, prefix + name)]
                if points:
                    drawn.append(svg.Curve(title + suffix, points, colour, bool(prefix)))
    picture = svg.curves(drawn, zero=chart.zero, level=chart.level)
    # With several runs the page says once that dashed curves are held out.
    solid = {c.colour for c in drawn if not c.dashed}
    legend = [
        (c.label, c.colour, c.dashed)
        for c in drawn
        if not (len(runs) > 1 and c.dashed and c.colour in solid)
    ]
    return [Figure(chart.title, chart.text, legend, picture)] if picture else []


def story(run: RunData) -> list[str]:
    """What was done, in a few sentences; facts that are not known are left out."""
    plan, config = run.plan, run.config
    # "train.jsonl" says little: the folder's name goes along.
    data = ", ".join("/".join(PurePath(str(d)).parts[-2:]) for d in config.get("data") or [])
    first = f"{run.model} was trained with {run.method}"
    if run.title:
        # "DPO on …" keeps its capitals, "Logistic loss …" does not.
        small = run.title[:1].lower() if run.title[1:2].islower() else run.title[:1]
        first += f" ({small + run.title[1:].rstrip('.')})"
    if plan.get("records"):
        first += f" on {words.count(int(plan['records']), 'example')}"
    first += f" from {data}." if data else "."
    out = [first]
    if plan.get("parameters"):
        if plan.get("full") or not plan.get("trainable"):
            out.append(f"All {words.millions(plan['parameters'])} parameters were trained.")
        else:
            rank = (plan.get("lora") or {}).get("r")
            out.append(
                f"Of {words.millions(plan['parameters'])} parameters, "
                f"{words.millions(plan['trainable'])} were trained, in low-rank adapters"
                + (f" of rank {rank}." if rank else ".")
            )
    if plan.get("batch") and plan.get("steps"):
        out.append(
            f"The plan: {words.count(int(plan['steps']), 'step')} of "
            f"{words.count(int(plan['batch']), 'example')} at a learning rate of up to "
            f"{words.number(plan.get('lr'))}."
        )
    spent = f" after {words.duration(run.seconds)} of training" if run.seconds else ""
    device = str(plan.get("device") or "")
    where = f" on the {device.partition(':')[0].upper()}" if device else ""
    if run.finished:
        out.append(f"It came to its end at step {run.step}{spent}{where}.")
    else:
        planned = f" of {plan['steps']}" if plan.get("steps") else ""
        out.append(
            f"It is not finished: the last step logged is {run.step}{planned}{spent}{where}. "
            "What follows is what there is so far."
        )
    return out


def accuracy_picture(runs: Sequence[RunData]) -> str:
    """Ranking accuracies with intervals: before and after, or the implicit reward's of each run."""
    spans = []
    for i, run in enumerate(runs):
        shown = [("ranking", "implicit", run.name, i)]
        if len(runs) == 1:
            shown = [
                ("ranking_reference", "mean_likelihood", "mean log-probability, before", 1),
                ("ranking", "mean_likelihood", "mean log-probability, after", 0),
                ("ranking", "implicit", "implicit reward, after", 0),
            ]
        for key, by, label, colour in shown:
            e = ((run.evaluation.get(key) or {}).get("accuracy") or {}).get(by)
            if e and e.get("value") is not None and e.get("low") is not None:
                note = f"n = {e['n']}"
                spans.append(svg.Span(label, e["value"], e["low"], e["high"], colour, note))
    what = "share of pairs ranked as people did"
    if len(runs) > 1:
        what += " (implicit reward)"
    return svg.intervals(spans, x_label=what, level=0.5)


def margins_picture(run: RunData) -> str:
    """Histogram of reward margins over held-out pairs."""
    found = (run.evaluation.get("ranking") or {}).get("margins") or {}
    return svg.histogram(
        found.get("edges") or [], found.get("counts") or [], x_label="reward margin of a pair"
    )


def calibration_picture(run: RunData) -> str:
    """Reliability diagram of implicit-reward probabilities."""
    found = (run.evaluation.get("ranking") or {}).get("calibration") or {}
    return svg.reliability(
        [
            svg.Span(
                str(b["predicted"]), b["observed"], b["observed_low"], b["observed_high"],
                note=f"({b['n']} cases)",
            )
            for b in found.get("bins") or []
        ]
    )  # fmt: skip


def samples(run: RunData, most: int = 12) -> list[dict[str, str]]:
    """Prompts with the answers before and after, as text."""
    return [
        {
            name: (text_of(row[name]).strip() if row.get(name) is not None else "") or "(nothing)"
            for name in ("prompt", "before", "after")
        }
        for row in run.samples[:most]
    ]
