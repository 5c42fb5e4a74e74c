"""What objectives read beside log-probabilities, from arrays: signals of steps, random numbers,
numbers of units and embeddings.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from polyalign.errors import NumericsError, OptionError
from polyalign.methods.array_names import DRAWS, STEPS
from polyalign.objectives.kernels import FIELDS, MEASURES, SIDES, Likeness
from polyalign.policies.language.signals import AGAINST, LAW, quantities, two_laws
from polyalign.types import Needs, signal

if TYPE_CHECKING:
    from polyalign.methods.arrays import Reader

SIDE_SUFFIX = {"chosen": "_w", "rejected": "_l"}


def refuse_sums(reader: Reader, s: str, needs: Needs) -> None:
    """Raise :class:`OptionError` where steps are looked at one by one and only sums are given."""
    if needs.draws or any(signal(name)[0] in STEPS for name in needs.signals):
        raise OptionError(
            f"{reader.method} looks at single steps, which sums of log-probabilities do not say.",
            f"Give logp{s} and ref{s} [B, T] by step (and so on), with mask{s}.",
        )


def step_signals(reader: Reader, s: str, mask: Tensor, needs: Needs) -> dict[str, Tensor]:
    """Signals of a side given by step, each [B, T], 0 where masked."""
    found = {}
    for name in sorted(needs.signals):
        base, _ = signal(name)
        if base in STEPS:
            short, why = STEPS[base]
            value = _read(reader, f"{short}{s}", why, mask, trained=base in AGAINST)
            found[name] = value
    return found


def law_signals(
    logits: Tensor, tokens: Tensor, mask: Tensor, needs: Needs, ref: Tensor | None
) -> dict[str, Tensor]:
    """``logp`` and the signals of a side given by its whole law, each [B, T], 0 where masked.

    ``logits`` and ``ref`` [B, T, V] are 0 where masked; ``tokens`` [B, T].
    """
    want = frozenset(name for name in needs.signals if signal(name)[0] in LAW | AGAINST)
    found = quantities(logits, tokens, want if ref is not None else want - two_laws(want), ref)
    signals = {name: torch.where(mask, value, 0.0) for name, value in found.items()}
    return signals | ({"steps": tokens.double()} if "steps" in needs.signals else {})


def read_draws(reader: Reader, s: str, mask: Tensor, needs: Needs) -> dict[str, Tensor]:
    """The random numbers of a side, each [B, T]; raises where one is outside [0, 1)."""
    found = {}
    for name in sorted(needs.draws):
        short, why = DRAWS[name]
        value = _read(reader, f"{short}{s}", why, mask)
        if bool(((value < 0) | (value >= 1)).any()):
            raise NumericsError(
                f"The array '{short}{s}' holds numbers outside [0, 1).", "Draw them uniformly."
            )
        found[name] = value
    return found


def _read(reader: Reader, name: str, why: str, mask: Tensor, trained: bool = False) -> Tensor:
    value = reader.want(name, why)
    reader.shape(name, value, tuple(mask.shape))
    reader.finite(name, value, mask)
    return torch.where(mask, reader.leaf(name) if trained else value.detach(), 0.0)


def free_logits(reader: Reader, needs: Needs) -> dict[str, Callable[[], Tensor | None]]:
    """Modules that are nothing but logits, from an array of the module's name; zeros without it."""
    found: dict[str, Callable[[], Tensor | None]] = {}
    for name in sorted(needs.modules):
        given = reader.find(name)
        if given is not None:
            reader.finite(name, given)
        found[name] = partial(_constant, None if given is None else reader.leaf(name))
    return found


def _constant(value: Tensor | None) -> Tensor | None:
    return value


def embedded(reader: Reader, needs: Needs) -> dict[str, Tensor]:
    """The kernels' fields from embeddings ``e_x``, ``e_w``, ``e_l`` [B, D] and, for Mahalanobis
    distances, the covariance ``S`` [D, D] (the identity when it is not given).
    """
    if not set(FIELDS) <= needs.fields or reader.find("e_x") is None:
        return {}
    prompt = reader.want("e_x", "the prompts' embeddings [B, D]")
    covariance, precision = reader.find("S"), None
    if covariance is not None:
        reader.shape("S", covariance, (prompt.shape[-1], prompt.shape[-1]))
        factor, wrong = torch.linalg.cholesky_ex(covariance)
        if int(wrong) or not torch.equal(covariance, covariance.T):
            raise NumericsError(
                "The array 'S' is not symmetric and positive definite.", "Give a covariance."
            )
        precision = torch.cholesky_inverse(factor)
    fields = {}
    for side in SIDES:
        name = f"e{SIDE_SUFFIX[side]}"
        answer = reader.want(name, f"the {side} answers' embeddings [B, D]")
        reader.shape(name, answer, tuple(prompt.shape))
        reader.finite(name, answer)
        likeness = Likeness.of(prompt, answer, precision)
        for measure in MEASURES:
            fields[f"{measure}_{side}"] = getattr(likeness, measure)
    return fields
