"""Data steps that choose feedback by the policy's own implicit reward.

A data step is called with records and the loop's context, which answers for frozen policies:
``margins(pairs, policy)``, ``implicit(prompts, completions, policy)`` and ``sample(prompts, n,
temperature)``. Nothing here has a gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from polyalign.errors import DataError
from polyalign.feedback.records import Pair, Record
from polyalign.recipe import DataStep


def ensembled(values: Callable[[str], Sequence[float]], gamma: float) -> list[float]:
    """``(1 - gamma)`` times the current policy's values plus ``gamma`` times the previous one's.

    The previous policy is asked only when it counts. Source: arXiv 2410.09362.
    """
    current = values("current")
    if gamma == 0:
        return list(current)
    return [
        (1 - gamma) * now + gamma * before
        for now, before in zip(current, values("previous"), strict=True)
    ]


def top(values: Sequence[float], share: float) -> list[int]:
    """Indices of the ``ceil(share * N)`` largest values, in their given order; ties keep the
    earlier.

    >>> top([0.3, 2.0, 1.0, 2.0], 0.5)
    [1, 3]
    """
    # A share such as 0.7 of 10 must not become 8 for being 7.000000000000001 in binary.
    count = math.ceil(round(share * len(values), 9))
    best = sorted(range(len(values)), key=lambda i: (-values[i], i))[:count]
    return sorted(best)


@dataclass(frozen=True)
class SelectByMargin:
    """Keep the ``keep`` share of pairs with the largest implicit reward margin.

    ``gamma``: weight of the previous policy in the ensemble. Scaling all margins (beta) changes
    nothing. Raises :class:`DataError` when there are no pairs or a margin is not finite.
    """

    samples: ClassVar[bool] = False
    keep: float = 0.7
    gamma: float = 0.0

    def __call__(self, records: Sequence[Record], ctx: Any) -> list[Record]:
        pairs = _pairs(records)
        margins = ensembled(lambda policy: ctx.margins(pairs, policy=policy), self.gamma)
        _finite(margins, [pair.key for pair in pairs])
        return [pairs[i] for i in top(margins, self.keep)]


@dataclass(frozen=True)
class Bootstrap:
    """New pairs from the policy's own samples: the best against the worst by implicit reward.

    ``n`` samples for every distinct prompt; ties and identical texts are dropped, and the ``keep``
    share with the largest margins stays. ``name`` goes into the new pairs' keys.
    """

    samples: ClassVar[bool] = True
    n: int = 4
    keep: float = 0.7
    gamma: float = 0.0
    temperature: float = 0.7
    name: str = "self"

    def __call__(self, records: Sequence[Record], ctx: Any) -> list[Record]:
        asked: dict[Any, Pair] = {}
        for pair in _pairs(records):
            asked.setdefault(_identity(pair.prompt), pair)
        sources = list(asked.values())
        prompts = [pair.prompt for pair in sources]
        samples = ctx.sample(prompts, self.n, self.temperature)
        flat = [(p, y) for p, answers in zip(prompts, samples, strict=True) for y in answers]
        rewards = ensembled(
            lambda policy: ctx.implicit([p for p, _ in flat], [y for _, y in flat], policy=policy),
            self.gamma,
        )
        _finite(rewards, [pair.key for pair in sources for _ in range(self.n)])
        made: list[Pair] = []
        margins: list[float] = []
        for g, (source, answers) in enumerate(zip(sources, samples, strict=True)):
            own = rewards[g * self.n : (g + 1) * self.n]
            best = max(range(self.n), key=lambda r: own[r])
            worst = min(range(self.n), key=lambda r: own[r])
            if own[best] > own[worst] and _identity(answers[best]) != _identity(answers[worst]):
                made.append(
                    Pair(
                        key=f"{source.key}/{self.name}",
                        prompt=source.prompt,
                        chosen=answers[best],
                        rejected=answers[worst],
                        meta=source.meta,
                    )
                )
                margins.append(own[best] - own[worst])
        return [made[i] for i in top(margins, self.keep)]


@dataclass(frozen=True)
class Together:
    """The records of several data steps over the same records, one after the other.

    Raises :class:`DataError` when nothing is left.
    """

    steps: tuple[DataStep, ...]

    @property
    def samples(self) -> bool:
        """Whether one of them draws from the policy."""
        return any(getattr(step, "samples", True) for step in self.steps)

    def __call__(self, records: Sequence[Record], ctx: Any) -> list[Record]:
        found = [record for step in self.steps for record in step(records, ctx)]
        if not found:
            raise DataError(
                "No example is left after selection.", "Raise keep_ratio or n_generate."
            )
        return found


def _pairs(records: Sequence[Record]) -> list[Pair]:
    pairs = [record for record in records if isinstance(record, Pair)]
    if not pairs:
        raise DataError(
            "There are no pairs to select from.", "Give pairs (prompt, chosen, rejected)."
        )
    return pairs


def _finite(values: Sequence[float], keys: Sequence[str]) -> None:
    for value, key in zip(values, keys, strict=True):
        if not math.isfinite(value):
            raise DataError(
                f"The implicit reward of example {key} is not finite, so it cannot be ranked.",
                "Check the model and the example.",
            )


def _identity(payload: Any) -> Any:
    """Something hashable that equal payloads share."""
    try:
        hash(payload)
    except TypeError:
        return repr(payload)
    return payload
