"""Mixtures of an objective over two kinds of units, each kind averaged by itself."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from polyalign.types import Loss, Needs, Objective, Scores, State, Term, needs


@dataclass(frozen=True)
class TwoKinds:
    """``share * L(units of the first kind) + (1 - share) * L(units of the second)``.

    A unit is of the first kind where its number ``field`` is 1, of the second where it is 0. The
    two means are taken apart, so how many units a kind has does not matter; a kind that an
    optimizer step does not hold counts nothing in it.
    Source: Zhu et al. 2025, arXiv 2510.05095 (``g_c = a g_t + (1 - a) g_e``).

    Metrics are the objective's own, and the loss of each kind under ``loss/`` its name.
    """

    objective: Objective
    field: str
    share: float
    names: tuple[str, str] = ("first", "second")

    @property
    def needs(self) -> Needs:
        return self.objective.needs | needs(fields=[self.field], bounds=[(self.field, 0.0, 1.0)])

    def __call__(self, scores: Scores, state: State) -> Loss:
        whole = self.objective(scores, state)
        first = (scores.fields[self.field] > 0.5).to(scores.weight.dtype)
        metrics = dict(whole.metrics)
        terms = []
        for share, kind, name in (
            (self.share, first, self.names[0]),
            (1.0 - self.share, 1.0 - first, self.names[1]),
        ):
            for term in whole.terms:
                weight = term.weight * _like(kind, term.weight)
                terms.append(Term(term.value, weight, share * term.scale, f"{term.name}/{name}"))
                metrics[f"{term.name}/{name}"] = Term(term.value.detach(), weight, term.scale)
        return Loss(tuple(terms), metrics)


def _like(kind: Tensor, weight: Tensor) -> Tensor:
    return kind.to(weight.dtype).reshape(-1, *[1] * (weight.dim() - 1))


def best_share(first: float, second: float, cross: float) -> float:
    """The mixing share in [0, 1] with the least expected squared error of the mixed gradient.

    ``first`` and ``second`` are the mean squared errors E|e|^2 of the two gradients, ``cross`` is
    E<e_first, e_second>: ``(second - cross) / (first + second - 2 cross)``, clipped.
    Raises :class:`ValueError` where the two gradients are one. Source: arXiv 2510.05095.

    >>> best_share(4.0, 1.0, 0.0)
    0.2
    """
    apart = first + second - 2.0 * cross
    if apart <= 0:
        raise ValueError("The two gradients are the same: every share gives the same error.")
    return min(max((second - cross) / apart, 0.0), 1.0)
