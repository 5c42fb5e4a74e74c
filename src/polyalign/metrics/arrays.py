"""What every metric takes: numbers in a list, an array or a tensor on any device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Numbers = Any
"""A sequence of numbers, a NumPy array or a torch tensor (with or without gradient)."""


def floats(values: Numbers) -> Floats:
    """``values`` as float64, without gradient; raises ValueError where they are no numbers."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)


def codes(labels: Sequence[Any] | None, n: int) -> NDArray[np.int64]:
    """Labels as 0, 1, … in order of appearance; None gives every value its own label.

    >>> codes(["b", "a", "b"], 3).tolist()
    [0, 1, 0]
    """
    if labels is None:
        return np.arange(n, dtype=np.int64)
    if len(labels) != n:
        raise ValueError(f"{n} values but {len(labels)} cluster labels")
    seen: dict[Any, int] = {}
    return np.array([seen.setdefault(label, len(seen)) for label in labels], dtype=np.int64)
