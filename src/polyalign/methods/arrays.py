"""Arrays in the cards' notation by name, for the numeric entry point.

Each role has a suffix: chosen ``_w``, rejected ``_l``, target ``_t``, gold ``_g``, another model's
best ``_s`` (beside which the chosen one is ``_t``), own none, mismatched ``K``, a quadruple's
``_11`` … ``_22``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyalign.errors import NumericsError, OptionError, nearest
from polyalign.methods.array_names import ALIASES


def to_tensor(name: str, value: Any) -> Tensor:
    """A float64 copy of an array, tensor, list or number."""
    try:
        if isinstance(value, Tensor):
            return value.detach().to("cpu", torch.float64).clone()
        return torch.from_numpy(np.array(value, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise NumericsError(
            f"The array '{name}' is not a rectangular array of numbers.",
            "Give numbers of one shape; pad with anything and say what counts in a mask.",
        ) from error


class Reader:
    """Hands out arrays by name, remembers what was asked for, and makes leaves of what has a
    gradient.
    """

    def __init__(self, method: str, arrays: Mapping[str, Any]) -> None:
        self.method = method
        self.arrays = {name: to_tensor(name, value) for name, value in arrays.items()}
        self.asked: set[str] = set()
        self.leaves: dict[str, Tensor] = {}

    def find(self, name: str) -> Tensor | None:
        """An array, by its own name or one of the cards', or None."""
        for known in (name, *ALIASES.get(name, ())):
            self.asked.add(known)
            if known in self.arrays:
                return self.arrays[known]
        return None

    def want(self, name: str, why: str, *instead: str) -> Tensor:
        """An array; raises :class:`OptionError` naming what may be given when it is missing."""
        found = self.find(name)
        if found is None:
            other = f" (or {', or '.join(instead)})" if instead else ""
            raise OptionError(
                f"{self.method} needs the array '{name}': {why}.", f"Give {name}{other}."
            )
        return found

    def leaf(self, name: str) -> Tensor:
        """An array that the loss is differentiated by."""
        if name not in self.leaves:
            self.leaves[name] = self.arrays[name].requires_grad_()
        return self.leaves[name]

    def unused(self) -> None:
        """Raise :class:`OptionError` when an array was given that nothing asked for."""
        for name in self.arrays:
            if name not in self.asked:
                raise OptionError(
                    f"{self.method} has no use for the array '{name}'.", nearest(name, self.asked)
                )

    def shape(self, name: str, value: Tensor, expected: tuple[int, ...]) -> None:
        """Raise :class:`NumericsError` when an array has another shape than its neighbours."""
        if tuple(value.shape) != expected:
            raise NumericsError(
                f"The array '{name}' has shape {list(value.shape)}, not {list(expected)}.",
                "All arrays of one side have one row for each example.",
            )

    def finite(self, name: str, value: Tensor, mask: Tensor | None = None) -> None:
        """Raise :class:`NumericsError` naming the first example whose number is not finite."""
        bad = ~torch.isfinite(value.detach())
        if mask is not None:
            bad = bad & mask.reshape(*mask.shape, *[1] * (bad.dim() - mask.dim()))
        if bool(bad.any()):
            where = bad.nonzero()[0].tolist()
            raise NumericsError(
                f"The array '{name}' is not finite at {where}.",
                "Compute log-probabilities in float32 or better, and mask what does not count.",
            )
