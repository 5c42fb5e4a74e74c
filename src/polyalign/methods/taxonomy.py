"""The taxonomy by which methods are listed: what sets them apart, read off their declarations.

The questions ("concern") are those of the survey of direct preference optimization by Xiao et al.
2024, arXiv 2410.15595; the rest is what a declaration says by itself. Loads nothing heavy.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polyalign.recipe import Header, Method, Stage
    from polyalign.types import Needs

DIMENSIONS: dict[str, str] = {
    "kind": "train (trains a policy) or measure (measures one)",
    "feedback": "what it learns from: pairs, binary, scored, demonstrations, prompts, …",
    "data": "offline, self-generated, online or environment",
    "granularity": "answer, or step where the loss reads more of a step than its log-probability",
    "reference": "none, fixed, moving (by steps), by stage, other models",
    "regularisation": "what holds it: a reference, a divergence, a likelihood term, nothing",
    "objective": "the loss, or for pairs the reward that is compared",
    "link": "for pairs: from a margin to a loss",
    "margin": "for pairs: by how much the chosen answer has to win",
    "coupling": "how the examples of a step touch: unit, statistics or batch",
    "stages": "one or several",
    "concern": "the question of the survey that it answers",
    "tag": "what its authors or users say of it",
}
"""What methods can be grouped by and filtered by, and what each tells."""

CONCERNS: dict[str, str] = {
    "implicit-reward": "what the implicit reward is, and how well it generalises",
    "kl-and-reference": "how strongly and to what the policy is held",
    "feedback": "feedback other than clean pairs of whole answers",
    "online": "answers of the policy itself",
    "reward-hacking": "length, verbosity, and other ways to win without being better",
    "alignment-tax": "what is forgotten, and objectives that pull apart",
    "measurement": "what alignment did, and whether it can have worked",
}
"""The survey's questions; measurements stand beside them."""

BY_TAG: dict[str, str] = {
    "length": "reward-hacking",
    "overoptimisation": "reward-hacking",
    "overoptimization": "reward-hacking",
    "reward-hacking": "reward-hacking",
    "spurious": "reward-hacking",
    "diversity": "alignment-tax",
    "forgetting": "alignment-tax",
    "multi-objective": "alignment-tax",
    "one-stage": "alignment-tax",
    "safety": "alignment-tax",
    "baseline": "implicit-reward",
    "online": "online",
    "self-training": "online",
    "label-noise": "feedback",
    "imbalance": "feedback",
    "token-level": "feedback",
    "unpaired": "feedback",
    "strength": "feedback",
    "divergence": "kl-and-reference",
    "entropy": "kl-and-reference",
    "reference-strength": "kl-and-reference",
    "trust-region": "kl-and-reference",
    "reference-free": "kl-and-reference",
}
"""What a tag says of a concern, where the declaration itself does not show it."""

PLAIN = {"sum log ratio", "logistic"}
"""Reward and link of the loss that all others are compared with."""


def describe(header: Header) -> dict[str, list[str]]:
    """A method's values in each of :data:`DIMENSIONS` but "tag", at its default options."""
    from polyalign.recipe import Declaration, kind_name

    if not isinstance(header, Declaration):
        return {
            "kind": [header.kind],
            "feedback": [kind_name(header.feedback)],
            "concern": ["measurement"],
        }
    method = header()
    needs = _needs(method)
    found: dict[str, list[str]] = {
        "kind": [header.kind],
        "feedback": [kind_name(header.feedback)],
        "data": [_data(method)],
        "granularity": ["step" if _by_step(needs, header.tags) else "answer"],
        "reference": _references(method, needs),
        "regularisation": [],
        "coupling": [needs.couples],
        "stages": ["several" if len(method.stages) > 1 else "one"],
        **_parts(method),
    }
    found["regularisation"] = _regularisation(method, needs)
    found["concern"] = _concerns(found, header.tags)
    return found


def _needs(method: Method) -> Needs:
    from polyalign.types import Needs

    total = Needs()
    for stage in method.stages:
        for update in stage.updates:
            total = total | update.objective.needs
    return total


def _data(method: Method) -> str:
    sources = [source for stage in method.stages for source in stage.streams.values()]
    kinds = {source.kind for source in sources}
    if "environment" in kinds:
        return "environment"
    if "rollouts" in kinds:
        return "online"
    drawn = any(getattr(step, "samples", False) for source in sources for step in source.steps)
    return "self-generated" if drawn else "offline"


def _by_step(needs: Needs, tags: Iterable[str]) -> bool:
    from polyalign.types import SIGNALS, signal

    told = {name for name in needs.signals if signal(name)[0] in SIGNALS}
    return bool(told) or needs.old or "token-level" in tags


def _references(method: Method, needs: Needs) -> list[str]:
    if not needs.references:
        return ["none"]
    found = set()
    for stage in method.stages:
        for update in stage.updates:
            found |= {_moves(stage, name) for name in update.objective.needs.references}
    return sorted(found)


def _moves(stage: Stage, name: str) -> str:
    spec = stage.reference(name)
    if spec.every:
        return "moving"
    if spec.weights.startswith("model:"):
        return "other models"
    return "fixed" if spec.weights == "start" else "by stage"


def _regularisation(method: Method, needs: Needs) -> list[str]:
    held = ["a reference"] if needs.references else []
    if any(name.startswith("kl(") for name in needs.signals):
        held.append("a divergence")
    if any(_anchors(u.objective) for stage in method.stages for u in stage.updates):
        held.append("a likelihood term")
    return held or ["nothing"]


def _anchors(objective: Any) -> bool:
    return bool(getattr(objective, "anchors", ()))


def _parts(method: Method) -> dict[str, list[str]]:
    """The loss's parts in words; of several stages or updates each word once."""
    found: dict[str, dict[str, None]] = {"objective": {}, "link": {}, "margin": {}}
    for stage in method.stages:
        for update in stage.updates:
            loss = update.objective
            reward = getattr(loss, "reward", None)
            found["objective"][words(reward if reward is not None else loss)] = None
            for part in ("link", "margin"):
                value = getattr(loss, part, None)
                if value is not None and not isinstance(value, (int, float, str)):
                    found[part][words(value)] = None
    return {name: list(values) for name, values in found.items() if values}


def words(part: object) -> str:
    """The name of a part's class in words.

    >>> class SumLogRatio: ...
    >>> words(SumLogRatio())
    'sum log ratio'
    """
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(part).__name__).lower()


def _concerns(found: Mapping[str, list[str]], tags: Iterable[str]) -> list[str]:
    concerns = {BY_TAG[tag] for tag in tags if tag in BY_TAG}
    if found["reference"] != ["fixed"] or "a divergence" in found["regularisation"]:
        concerns.add("kl-and-reference")
    if "a likelihood term" in found["regularisation"]:
        concerns.add("alignment-tax")
    if found["feedback"] not in (["pairs"], ["prompts"]) or found["granularity"] == ["step"]:
        concerns.add("feedback")
    if found["data"] != ["offline"]:
        concerns.add("online")
    plain = {*found.get("objective", ()), *found.get("link", ())} <= PLAIN
    if not concerns or (found["data"] == ["offline"] and not plain):
        concerns.add("implicit-reward")
    return [name for name in CONCERNS if name in concerns]
