"""The last digits of an optimum: Newton's method on the gradient that the engine gives.

The loops descend to the neighbourhood of a stationary point in a few dozen steps; a first-order
method would need many hundreds for eight digits. The gradient is the declared objective's, over
the same records and references; only the step is another one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

LARGEST = 200
"""Parameters above which the matrix of second derivatives is not formed."""


def newton(
    gradient: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    rounds: int = 12,
    reach: float = 2.0,
    enough: float = 1e-13,
) -> Tensor:
    """A stationary point of ``gradient`` [P] near ``start`` [P], by damped Newton steps.

    Directions without curvature (a constant added to all logits) are left alone. A step that
    would climb, or that does not shrink the gradient, ends the search: the result is never
    further from stationary than the start. ``reach``: the longest step of one parameter.
    """
    here, g = start.clone(), gradient(start)
    for _ in range(rounds):
        if float(g.abs().max()) < enough:
            break
        step = -torch.linalg.pinv(curvature(gradient, here, g), rtol=1e-9) @ g
        if float(step @ g) >= 0:
            break
        step = step * min(1.0, reach / float(step.abs().max()))
        for halving in range(8):
            there = here + step / 2**halving
            new = gradient(there)
            if float(new.norm()) < float(g.norm()):
                break
        else:
            break
        here, g = there, new
    return here


def curvature(
    gradient: Callable[[Tensor], Tensor], here: Tensor, g: Tensor, width: float = 1e-6
) -> Tensor:
    """The derivative [P, P] of the gradient by forward differences; column j moves parameter j."""
    columns = []
    for j in range(len(here)):
        moved = here.clone()
        moved[j] += width
        columns.append((gradient(moved) - g) / width)
    return torch.stack(columns, -1)
