"""Hyper-parameters: their types with bounds, lists as they are typed, numbers that move."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Real = Annotated[float, Field(allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Smoothing = Annotated[float, Field(ge=0, lt=0.5)]
Count = Annotated[int, Field(ge=1)]


def listed(value: Any) -> Any:
    """A list as it is typed: ``0.5,0.3`` in words, one value for a list of one.

    >>> listed("a, b"), listed(0.5), listed("")
    (['a', 'b'], [0.5], [])
    """
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return [value] if isinstance(value, (int, float)) else value


Positives = Annotated[tuple[Positive, ...], BeforeValidator(listed)]
NonNegatives = Annotated[tuple[NonNegative, ...], BeforeValidator(listed)]
Names = Annotated[tuple[str, ...], BeforeValidator(listed)]


@dataclass(frozen=True)
class Schedule:
    """A number that moves linearly from ``first`` to ``last`` over a stage: ``beta=0.5->0.1``."""

    first: float
    last: float

    def at(self, progress: float) -> float:
        """The value at ``progress`` in [0, 1] of the stage's optimizer steps."""
        return self.first + (self.last - self.first) * min(max(progress, 0.0), 1.0)

    def __str__(self) -> str:
        return f"{self.first:g}->{self.last:g}"

    @staticmethod
    def parse(text: str) -> Schedule | None:
        """Read ``first->last``; None when the text is no schedule."""
        found = re.fullmatch(r"\s*([-+.\deE]+)\s*->\s*([-+.\deE]+)\s*", text)
        return Schedule(float(found[1]), float(found[2])) if found else None
