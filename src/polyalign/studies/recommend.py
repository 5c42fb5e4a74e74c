"""``recommend``: which methods fit this feedback and why, from declarations and a look at the data.

No training is done, so nothing here says which method would win: it says which can be used at all,
which answer to something that is seen in the data, and what only a comparison can tell.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from polyalign.errors import DataError
from polyalign.feedback import AUTOMATIC, check, read
from polyalign.feedback.conversion import targets
from polyalign.feedback.records import KINDS, Binary, Pair, Record, Scored, Votes, kind_name
from polyalign.feedback.statistics import agreement, answers_of, characters, preferences
from polyalign.feedback.table import FeedbackSet
from polyalign.methods import catalogue

FEW = 1000
"""Examples below which small differences between methods will hardly be seen."""
NOISY = 0.15
"""A share of wrong labels from which methods that expect wrong labels are named."""
CHARACTERS = 4.0
"""Characters in a token, roughly, where no model is given."""
PROBED = 48
"""Pairs that a quick probe scores."""

DERIVED = {"label", "reward", "advantage"}
"""Numbers that every record of a kind has, or that the loop computes."""


@dataclass
class Facts:
    """What was seen in the data; None where it could not be."""

    kind: str
    rows: int
    prompts: int
    list_size: float | None = None
    longer: Mapping[str, Any] | None = None
    noise: float | None = None
    noise_from: str = ""
    balance: float | None = None
    ties: float | None = None
    columns: tuple[str, ...] = ()
    tokens: int = 0
    errors: int = 0
    verifiable: bool = False
    memory: Mapping[str, float] | None = None
    probe: Mapping[str, Any] | None = None


@dataclass
class Advice:
    """One method: how its feedback is had, and the reasons for and against it."""

    id: str
    title: str
    route: str
    points: float
    reasons: list[str] = field(default_factory=list)
    against: list[str] = field(default_factory=list)
    needs: list[str] = field(default_factory=list)


def recommend(
    data: str | Sequence[str],
    *,
    model: str | None = None,
    budget: int | None = None,
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
    judge: bool = False,
) -> dict[str, Any]:
    """Look at feedback and say which methods fit it: plain data with facts, advice and limits.

    ``model`` adds memory and a quick probe of the base; ``judge``: whether one is at hand, which
    online methods need. Raises :class:`DataError` for data without a usable example.
    """
    sources = [data] if isinstance(data, str) else list(data)
    found = read(sources, columns=dict(columns) if columns else None, limit=limit)
    if not len(found):
        raise DataError(
            f"{', '.join(sources)}: no usable example.", "Run: polyalign data check FILE"
        )
    facts = look(found)
    if model is not None:
        facts.memory, facts.probe = probe(model, found)
    fitting, missing, unfit = weigh(facts, judge)
    return {
        "data": [str(source) for source in sources],
        "facts": dict(vars(facts)),
        "seen": seen(facts),
        "recommended": [vars(a) for a in fitting[:5]],
        "also": [vars(a) for a in fitting[5:]],
        "missing": [vars(a) for a in missing],
        "unfit": unfit,
        "unknown": unknown(facts, model, budget),
        "next": command(fitting, sources, model, budget),
    }


def look(found: FeedbackSet) -> Facts:
    """The figures of feedback that choices between methods depend on."""
    report = check(found, near=False)
    kind = found.kind
    facts = Facts(kind_name(kind), len(found), 0)
    prompts: set[str] = set()
    sizes, lengths, ups, tied, stated = [], 0, 0, 0, 0
    columns: set[str] = set()
    for record in found:
        prompts.add(repr(getattr(record, "prompt", record.key)))
        answers = answers_of(record)
        sizes.append(len(answers))
        prompt = getattr(record, "prompt", "")
        lengths += characters(prompt) * (1 if prompt else 0) + sum(map(characters, answers))
        columns |= set(record.fields) | set(record.meta)
        if isinstance(record, Binary):
            ups += record.label
        if isinstance(record, Scored):
            tied += len(set(record.scores)) < len(record.scores)
        stated += any(True for _ in preferences(record))
    facts.prompts = len(prompts)
    facts.list_size = median(sizes) if kind in (Scored, Votes) else None
    facts.tokens = int(lengths / CHARACTERS)
    facts.columns = tuple(sorted(columns))
    facts.errors = sum(f.level == "error" for f in report.findings)
    facts.verifiable = "spec" in columns
    facts.longer = report.facts.get("longer answer preferred (characters)")
    if kind is Binary:
        facts.balance = ups / len(found)
    if kind is Scored:
        facts.ties = tied / len(found)
    facts.noise, facts.noise_from = noise(found, report.count("contradiction"), stated)
    return facts


def noise(found: FeedbackSet, contradicted: int, stated: int) -> tuple[float | None, str]:
    """A guess of the share of wrong labels, and what it rests on.

    Two voters who are each wrong with probability e agree with probability (1-e)^2 + e^2; so the
    agreement of votes gives e. Without several votes only contradicting rows tell, a lower bound.
    """
    if found.kind is Votes:
        agreed = agreement(found)
        if agreed.vote_pairs:
            rate = max(agreed.agreement, 0.5)
            return (1 - math.sqrt(2 * rate - 1)) / 2, (
                f"two votes agree in {100 * rate:.0f} % of cases"
            )
    if contradicted and stated:
        return contradicted / stated / 2, "rows that contradict each other (a lower bound)"
    return None, ""


def probe(model: str, found: FeedbackSet) -> tuple[dict[str, float], dict[str, Any] | None]:
    """Memory that training the model takes, in GiB, and how the base ranks some of the pairs."""
    from polyalign.evaluation.ranking import ranking
    from polyalign.feedback import convert
    from polyalign.policies.language.policy import LanguagePolicy

    policy = LanguagePolicy.from_pretrained(model, frozen=True, max_length=1024)
    size = sum(p.numel() for p in policy.model.parameters())
    adapters = 0.02 * size
    memory = {
        "parameters": float(size),
        "adapters_gib": (4 * size + 16 * adapters) / 2**30,
        "full_gib": 16 * size / 2**30,
        "full_with_reference_gib": 20 * size / 2**30,
    }
    kind = found.kind
    if kind is not Pair and (kind, Pair) not in AUTOMATIC:
        return memory, None
    part = list(convert(found.select(range(min(len(found), 4 * PROBED))), Pair))[:PROBED]
    if not part:
        return memory, None
    result = ranking(policy, None, [p for p in part if isinstance(p, Pair)])
    wins = float(result.wins("mean_likelihood").mean())
    return memory, {
        "pairs": len(result.keys),
        "base_ranking": wins,
        "tokens_chosen": float(result.chosen_steps.mean()),
        "tokens_rejected": float(result.rejected_steps.mean()),
    }


def seen(facts: Facts) -> list[str]:
    """The facts as sentences."""
    out = [f"{facts.rows:,} {facts.kind} on {facts.prompts:,} prompts."]
    if facts.errors:
        out.append(
            f"The data check finds {facts.errors} kinds of errors: mend them first "
            "(polyalign data check FILE)."
        )
    if facts.list_size is not None:
        out.append(f"A prompt has {facts.list_size:g} answers in the middle.")
    if facts.longer and facts.longer["decided"]:
        low, high = 100 * facts.longer["low"], 100 * facts.longer["high"]
        told = f"the longer answer wins in {100 * facts.longer['share']:.0f} % of decided pairs"
        out.append(f"Length: {told} (95 % interval {low:.0f} to {high:.0f}; 50 would be no taste).")
    if facts.noise is not None:
        out.append(f"Wrong labels: about {100 * facts.noise:.0f} %, from {facts.noise_from}.")
    else:
        out.append("Wrong labels: nothing in the data tells how many there are.")
    if facts.balance is not None:
        out.append(f"{100 * facts.balance:.0f} % of the answers are labelled good.")
    if facts.ties:
        out.append(f"{100 * facts.ties:.0f} % of the rows have tied scores.")
    if facts.verifiable:
        out.append("The rows say what a verifier can check, so answers can be judged for nothing.")
    if facts.memory:
        m = facts.memory
        out.append(
            f"Memory for weights and optimizer: {m['adapters_gib']:.1f} GiB with adapters, "
            f"{m['full_gib']:.1f} GiB for all weights, {m['full_with_reference_gib']:.1f} GiB "
            "beside a reference; activations come on top."
        )
    if facts.probe:
        p = facts.probe
        out.append(
            f"Probe: the base ranks {100 * p['base_ranking']:.0f} % of {p['pairs']} pairs right "
            "by mean log-probability before any training."
        )
    return out


def weigh(facts: Facts, judge: bool) -> tuple[list[Advice], list[Advice], dict[str, list[str]]]:
    """Methods that fit, best first; methods that lack a column; and the others by what they need.

    Points follow from declarations and facts alone: a direct kind of feedback, an answer to
    something that was seen (length, noise, lists, imbalance), and few demands.
    """
    kind = KINDS[facts.kind]
    fitting: list[Advice] = []
    missing: list[Advice] = []
    unfit: dict[str, list[str]] = {}
    for id, entry in catalogue().items():
        if entry.get("kind") != "train" or "needs" not in entry:
            continue
        wanted = KINDS.get(entry["feedback"])
        route = _route(kind, wanted)
        if route is None:
            unfit.setdefault(entry["feedback"], []).append(id)
            continue
        advice = Advice(id, str(entry["title"]), route[0], route[1])
        _reasons(advice, entry, facts)
        online = entry["feedback"] == "prompts"
        if online and not (judge or facts.verifiable):
            advice.needs.append("a judge")
        lacking = [c for c in _columns(entry) if c not in facts.columns]
        advice.needs += [f"the column {c}" for c in lacking]
        (missing if advice.needs else fitting).append(advice)
    fitting.sort(key=lambda a: (-a.points, a.id))
    missing.sort(key=lambda a: (-a.points, a.id))
    return fitting, missing, unfit


def _route(kind: type[Record], wanted: type[Record] | None) -> tuple[str, float] | None:
    """How a method's feedback is had, with points; None where it cannot be."""
    if wanted is None:
        return None
    if kind is wanted:
        return "as it is", 3.0
    if (kind, wanted) in AUTOMATIC:
        # What a conversion throws away counts against it.
        loses = kind_name(wanted) in ("demonstrations", "prompts")
        return f"converted: {AUTOMATIC[kind, wanted]}", 0.0 if loses else 1.0
    if kind_name(wanted) in targets(kind):
        return f"after polyalign data convert --to {kind_name(wanted)}", 0.5
    return None


def _columns(entry: Mapping[str, Any]) -> list[str]:
    """Columns that a method reads beside what its kind of feedback always has."""
    known = {"chosen", "rejected", "own", "target", "mismatched", "answers", "next"}
    known |= {"own_11", "own_12", "own_21", "own_22"}
    roles = [role for role in entry["needs"]["roles"] if role not in known]
    # The imitation of a gold answer falls back on the chosen one where a method says "target".
    fields = [f for f in entry["needs"]["fields"] if f not in DERIVED]
    if entry["feedback"] == "scored":
        fields = [f for f in fields if f not in ("scores", "rank", "gain")]
    return [*roles, *fields]


def _reasons(advice: Advice, entry: Mapping[str, Any], facts: Facts) -> None:
    tags = set(entry.get("tags", ()))

    def give(points: float, reason: str) -> None:
        advice.points += points
        (advice.reasons if points > 0 else advice.against).append(reason)

    if "baseline" in tags:
        give(2.0, "the baseline that others are measured by")
    bias = facts.longer or {}
    biased = bool(bias.get("decided")) and bias["low"] > 0.55
    if biased and "length" in tags:
        give(2.0, "acts against the taste for longer answers that the labels show")
    noisy = facts.noise is not None and facts.noise >= NOISY
    if noisy and "label-noise" in tags:
        give(2.0, "expects wrong labels, of which there are many")
    if noisy and "overfitting" in tags:
        give(1.0, "does not follow single labels to the extreme")
    if facts.list_size and facts.list_size > 2 and tags & {"listwise", "ranking"}:
        give(2.0, f"reads whole lists; pairs would use 2 of {facts.list_size:g} answers")
    skewed = facts.balance is not None and not 0.3 <= facts.balance <= 0.7
    if skewed and "imbalance" in tags:
        give(2.0, "weighs unequal numbers of good and bad answers")
    if facts.kind in ("scored", "votes") and tags & {"scores", "strength"}:
        give(1.0, "uses how much better an answer is")
    if facts.verifiable and "verifier" in tags:
        give(2.0, "learns from the verifier that the rows carry")
    if facts.rows < FEW and "overfitting" in tags:
        give(1.0, "few examples: it keeps from following them to the extreme")
    if "reference-free" in tags:
        tight = bool(facts.memory) and facts.memory["full_gib"] > 8  # type: ignore[index]
        give(1.0 if tight else 0.25, "needs no reference: less memory and time a step")
    if entry["needs"]["modules"]:
        give(-0.5, "trains a module of its own (a value or critic)")
    if entry["needs"]["couples"] == "batch":
        give(-0.25, "its loss looks at whole batches: small ones change it")
    if not tags & {"baseline", "theory", "divergence"} and entry.get("stages", 1) > 1:
        give(-0.25, "several stages")
    if "model-fusion" in tags or "multi-objective" in tags:
        give(-0.5, "made for a special setting")
    if not advice.reasons:
        advice.reasons.append(f"reads {entry['feedback']}")


def unknown(facts: Facts, model: str | None, budget: int | None) -> list[str]:
    """What this advice cannot know."""
    out = [
        "Which of these methods would win: that depends on model, data and options, and only a "
        "comparison at your budget tells. Points come from declarations, not from results."
    ]
    if facts.noise is None:
        out.append("How many labels are wrong: only several votes on the same answers tell.")
    elif "lower bound" in facts.noise_from:
        out.append("How many labels are wrong in all: contradictions show a part of them.")
    if facts.prompts < FEW:
        # Half the prompts' worst spread: a coin's.
        gap = 2.8 * 0.5 / math.sqrt(max(0.2 * facts.prompts, 1))
        seen_from = f"one below about {100 * gap:.0f} points" if gap < 0.5 else "almost any"
        out.append(
            f"Small differences: with a fifth of {facts.prompts:,} prompts held out, of "
            f"differences in ranking accuracy {seen_from} stays unseen."
        )
    if model is None:
        out.append("Memory, and how the base ranks these pairs: name it with --model.")
    elif facts.probe is None:
        out.append("How the base ranks this feedback: it states no pairs to probe.")
    if budget is not None and facts.tokens:
        passes = budget / max(2 * facts.tokens, 1)
        out.append(
            f"Whether the budget is enough: {budget:,} tokens pay for about {passes:.2g} passes of "
            "policy and reference over these data."
        )
    out.append("Whether the labels mean what you want: no figure here looks at that.")
    return out


def command(
    fitting: Sequence[Advice], sources: Sequence[str], model: str | None, budget: int | None
) -> str:
    """The comparison to run next."""
    direct = [a.id for a in fitting if not a.route.startswith("after")][:4]
    if not direct:
        return ""
    data = " ".join(f"-d {Path(source)}" for source in sources)
    spent = f" --budget {budget}" if budget else ""
    return (
        f"polyalign compare {' '.join(direct)} -m {model or 'smollm2'} {data} -o compared{spent}"
        " --seeds 2"
    )
