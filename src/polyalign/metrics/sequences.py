"""What sampled sequences look like: lengths, variety, loops, and whether they ended.

A sequence is any list of hashable steps: token ids, words, actions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

from polyalign.metrics.arrays import Numbers, floats

Steps = Sequence[Hashable]
Fault = Literal["empty", "loop", "unfinished"]


@dataclass(frozen=True)
class Lengths:
    """Summary of lengths, in steps."""

    n: int
    mean: float
    spread: float
    median: float
    shortest: float
    longest: float

    def to_json(self) -> dict[str, float]:
        """Plain data."""
        return asdict(self)


def lengths(values: Numbers) -> Lengths:
    """Summary of lengths [N]; ``spread`` is the sample standard deviation (0 for one)."""
    x = floats(values)
    if len(x) == 0:
        nan = float("nan")
        return Lengths(0, nan, nan, nan, nan, nan)
    spread = float(x.std(ddof=1)) if len(x) > 1 else 0.0
    return Lengths(
        len(x), float(x.mean()), spread, float(np.median(x)), float(x.min()), float(x.max())
    )


def ngrams(steps: Steps, n: int) -> list[tuple[Hashable, ...]]:
    """All runs of ``n`` steps in a row, in order."""
    return [tuple(steps[i : i + n]) for i in range(len(steps) - n + 1)]


def distinct(sequences: Sequence[Steps], n: int = 2) -> float:
    """Distinct-n over all sequences: different n-grams / n-grams (Li et al. 2016, 1510.03055).

    It falls with the amount of text: compare equal numbers of samples only.
    """
    grams = [gram for steps in sequences for gram in ngrams(steps, n)]
    return len(set(grams)) / len(grams) if grams else float("nan")


def repetition(steps: Steps, n: int = 4) -> float:
    """Share of the n-grams of one sequence that were there before: 0 none, near 1 a loop."""
    grams = ngrams(steps, n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def loops(steps: Steps, *, times: int = 4, longest: int = 24) -> bool:
    """True when the sequence ends in one block repeated at least ``times``, 8 steps or more.

    The last repetition may be cut off. Blocks have 1 to ``longest`` steps.
    """
    n = len(steps)
    for size in range(1, longest + 1):
        need = max(size * times, 8)
        if need > n:
            break
        tail = steps[n - need :]
        if all(tail[i] == tail[i + size] for i in range(need - size)):
            return True
    return False


def fault(steps: Steps, finished: bool = True) -> Fault | None:
    """What is wrong with a sampled sequence, the worst first: empty, looping, not finished."""
    if len(steps) == 0:
        return "empty"
    # A loop in the middle that the sampler broke out of is caught by its share of n-grams.
    if loops(steps) or (len(steps) >= 40 and repetition(steps, 4) > 0.6):
        return "loop"
    return None if finished else "unfinished"


def faults(sequences: Sequence[Steps], finished: Sequence[bool] | None = None) -> dict[str, int]:
    """How many of N sequences have each fault: empty, loop, unfinished."""
    ended = [True] * len(sequences) if finished is None else finished
    seen = Counter(fault(steps, bool(done)) for steps, done in zip(sequences, ended))
    return {name: seen[name] for name in ("empty", "loop", "unfinished")}
