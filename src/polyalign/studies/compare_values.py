"""From a comparison's cells to values by seed and item, measure by measure. Nothing is tested here.

Axes: S seeds, N items (pairs or prompts), the same items in the same order in every row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from polyalign.metrics.arrays import Floats
from polyalign.metrics.comparison import outcome

Cell = Mapping[str, Any]


@dataclass(frozen=True)
class Measure:
    """A measure: how it is called, which way is better, how it is written, what it means."""

    name: str
    label: str
    better: Literal["high", "low"] | None
    form: Literal["percent", "number"]
    help: str


MEASURES = {
    m.name: m
    for m in (
        Measure("reward", "expected reward", "high", "number",
                "the world's own reward of the policy's answers, computed exactly"),
        Measure("score", "judge's score", "high", "percent",
                "mean of the judge's scores of the model's own answers to held-out prompts"),
        Measure("win", "win rate against the base", "high", "percent",
                "share of held-out prompts on which the judge likes the model's answer better than "
                "the base model's; a tie counts half"),
        Measure("ranking", "ranking accuracy", "high", "percent",
                "share of held-out pairs in which training raised the better answer's "
                "log-probability more than the worse one's; the base has 50 % by definition"),
        Measure("ranking_mean", "ranking by mean log-probability", "high", "percent",
                "share of held-out pairs in which the better answer is the more likely one, token "
                "by token"),
        Measure("perplexity", "nats a token of given answers", "low", "number",
                "how surprised the model is by the answers given as demonstrations"),
        Measure("kl", "divergence from the base", None, "number",
                "KL divergence in nats an answer: how far the model has moved"),
        Measure("length", "length of answers", None, "number", "mean tokens of an answer"),
        Measure("displacement", "change of the better answers' log-probability", None, "number",
                "nats an answer, against the base: below 0 the better answers became less likely "
                "(likelihood displacement)"),
        Measure("displacement_rejected", "change of the worse answers' log-probability", None,
                "number", "nats an answer, against the base"),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Table:
    """Values of one measure by row label [S, N], with the items' clusters [N].

    ``dropped``: items left out because a row has no figure for them (a judge abstained).
    """

    measure: Measure
    values: Mapping[str, Floats]
    cluster: tuple[str, ...]
    dropped: int = 0


def tables(cells: Mapping[str, Sequence[Cell]], base: str = "base") -> dict[str, Table]:
    """All measures that the cells hold; ``cells`` by row label, one cell a seed."""
    ground = cells[base][0]
    out: dict[str, Table] = {}
    for name, measure in MEASURES.items():
        found: dict[str, Floats] = {}
        for label, group in cells.items():
            parts = [_values(name, cell, ground) for cell in group]
            if parts and all(part is not None for part in parts):
                found[label] = np.stack([part for part in parts if part is not None])
        if base not in found or len(found) < 2:
            continue
        whole = np.isfinite(np.stack([y.sum(0) for y in found.values()]).sum(0))
        cluster = [c for c, kept in zip(_cluster(name, ground), whole, strict=True) if kept]
        out[name] = Table(
            measure,
            {label: y[:, whole] for label, y in found.items()},
            tuple(cluster),
            int((~whole).sum()),
        )
    return out


def _cluster(name: str, cell: Cell) -> list[str]:
    if name == "perplexity":
        return list(cell["perplexity"]["cluster"])
    if name.startswith(("ranking", "displacement")):
        return list(cell["pairs"]["cluster"])
    return list(cell["answers"]["cluster"])


def _array(values: Sequence[float | None]) -> Floats:
    return np.array([np.nan if v is None else v for v in values], dtype=np.float64)


def _values(name: str, cell: Cell, base: Cell) -> Floats | None:
    """One cell's values [N] of a measure, or None where it has none."""
    pairs, ground = cell.get("pairs"), base.get("pairs")
    answers = cell.get("answers") or {}
    if name.startswith(("ranking", "displacement")):
        if pairs is None or ground is None:
            return None
        chosen, rejected = _array(pairs["chosen"]), _array(pairs["rejected"])
        if name == "ranking_mean":
            return outcome(
                chosen / _array(pairs["chosen_steps"]), rejected / _array(pairs["rejected_steps"])
            )
        up, down = chosen - _array(ground["chosen"]), rejected - _array(ground["rejected"])
        return {
            "ranking": outcome(up, down),
            "displacement": up,
            "displacement_rejected": down,
        }[name]
    if name == "perplexity":
        found = cell.get("perplexity")
        if found is None:
            return None
        # Over the mean number of tokens, the mean over answers is total nats / total tokens.
        return _array(found["nll"]) / np.mean(found["steps"])
    if name in ("reward", "kl"):
        return _array(answers[name]) if name in answers else None
    if name == "length":
        return grid(answers, "steps").mean(1) if "steps" in answers else None
    if name == "score":
        return grid(answers, "scores").mean(1) if "scores" in answers else None
    found_wins = wins(cell, base)
    return None if found_wins is None else found_wins.mean(1)


def grid(answers: Mapping[str, Any], name: str) -> Floats:
    """Figures of each prompt's answers, [P, n]."""
    return _array(answers[name]).reshape(-1, int(answers["n"]))


def wins(cell: Cell, base: Cell) -> Floats | None:
    """Whether each answer beat the base's answer of the same number, [P, n] in [0, 1]."""
    answers, ground = cell.get("answers") or {}, base.get("answers") or {}
    if "wins" in answers:
        return grid(answers, "wins")
    if "scores" not in answers or "scores" not in ground:
        return np.full((len(ground["cluster"]), 1), 0.5) if cell is base and ground else None
    mine, theirs = grid(answers, "scores"), grid(ground, "scores")
    n = min(mine.shape[1], theirs.shape[1])
    return outcome(mine[:, :n], theirs[:, :n])


def best_of(cell: Cell) -> Floats | None:
    """The best score among each prompt's answers, [P]; None without scores."""
    answers = cell.get("answers") or {}
    if "scores" not in answers:
        return None
    scores = grid(answers, "scores")
    known = np.where(np.isnan(scores), -np.inf, scores).max(1)
    return np.where(np.isfinite(known), known, np.nan)
