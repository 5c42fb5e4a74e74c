"""From arrays to scores: each role's side as rows, for the numeric entry point.

A side is given summed (``lp_w`` [B], with ``n_w`` [B] where means count), by step (``logp_w``
[B, T], ``mask_w``) or by its whole law (``logits_w`` [B, T, V], ``tokens_w`` [B, T]).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from polyalign.errors import NumericsError, OptionError
from polyalign.methods.array_signals import (
    law_signals,
    read_draws,
    refuse_sums,
    step_signals,
)
from polyalign.methods.arrays import Reader
from polyalign.policies.language.signals import two_laws
from polyalign.types import Needs, Scores


@dataclass
class Side:
    """One role's rows [B, T]; of a list, ``place`` [U, K] says which row a member is, -1 none."""

    logp: Tensor
    mask: Tensor
    ref: Tensor | None = None
    old: Tensor | None = None
    others: dict[str, Tensor] = field(default_factory=dict)
    signals: dict[str, Tensor] = field(default_factory=dict)
    draws: dict[str, Tensor] = field(default_factory=dict)
    counted: bool = True
    summed: bool = False
    place: Tensor | None = None

    @property
    def units(self) -> int:
        """How many examples it belongs to."""
        return len(self.mask) if self.place is None else len(self.place)


def read_side(
    reader: Reader,
    s: str,
    needs: Needs,
    *,
    empty: bool = False,
    length: int = 1,
    even: bool = True,
) -> Side:
    """Read one side by its suffix; ``length`` stands for missing lengths, ``empty`` allows length
    0. Sums are spread over the steps ``even``-ly, or else growing from step to step.
    """
    summed, ratio = reader.find(f"lp{s}"), reader.find(f"r{s}") if s[:1] == "_" else None
    steps, logits = reader.find(f"logp{s}"), reader.find(f"logits{s}")
    given = [
        name
        for name, value in ((f"lp{s}", summed), (f"logp{s}", steps), (f"logits{s}", logits))
        if value is not None
    ] + ([f"r{s}"] if ratio is not None else [])
    if len(given) > 1:
        raise OptionError(f"{reader.method} got both {' and '.join(given)}.", "Give one of them.")
    if not given:
        reader.want(
            f"lp{s}", "log-probabilities summed over the completion's steps", f"logp{s} by step"
        )
    if logits is not None:
        side = _from_law(reader, s, logits, needs)
    elif steps is not None:
        side = _from_steps(reader, s, steps, needs)
    else:
        refuse_sums(reader, s, needs)
        side = _from_sums(reader, s, given[0], needs, length, even)
    side.draws = read_draws(reader, s, side.mask, needs)
    for other in sorted(needs.references - {"ref"}):
        side.others[other] = _other_reference(reader, f"{other}{s}", side.mask)
    if not empty and not bool(side.mask.any(-1).all()):
        row = int((~side.mask.any(-1)).nonzero()[0, 0])
        raise NumericsError(
            f"Example {row} has no step that counts in '{given[0]}'.",
            "Leave out empty completions; the mask must be true somewhere in every row.",
        )
    return side


def _other_reference(reader: Reader, name: str, mask: Tensor) -> Tensor:
    """Another reference's log-probabilities [B, T]; sums [B] are spread over the steps."""
    value = reader.want(name, "another policy's log-probabilities, summed [B] or by step [B, T]")
    if value.dim() != 1:
        return _by_step(reader, name, value, mask)
    reader.shape(name, value, (len(mask),))
    reader.finite(name, value)
    return torch.where(mask, (value / mask.sum(-1).clamp(min=1)).unsqueeze(-1), 0.0)


def _from_sums(reader: Reader, s: str, name: str, needs: Needs, length: int, even: bool) -> Side:
    lp = reader.leaf(name)
    if lp.dim() != 1:
        raise NumericsError(
            f"The array '{name}' has shape {list(lp.shape)}, and [B] is needed.",
            f"Give one sum a row, or logp{s} [B, T] by step.",
        )
    reader.finite(name, lp)
    size = lp.shape[0]
    n = reader.find(f"n{s}")
    counts = torch.full((size,), float(length), dtype=torch.float64) if n is None else n
    reader.shape(f"n{s}", counts, (size,))
    reader.finite(f"n{s}", counts)
    if bool(((counts < 1) | (counts != counts.round())).any()):
        row = int(((counts < 1) | (counts != counts.round())).nonzero()[0, 0])
        raise NumericsError(
            f"Example {row} has length {counts[row]:g} in 'n{s}'.",
            "Lengths are whole numbers of at least 1: completions must not be empty.",
        )
    place = torch.arange(int(counts.max()), dtype=torch.float64)
    mask = place < counts.unsqueeze(-1)
    share = mask.double() if even else mask * (1.0 + place)
    share = share / share.sum(-1, keepdim=True)

    def spread(x: Tensor) -> Tensor:
        return x.unsqueeze(-1) * share

    side = Side(spread(lp), mask, counted=n is not None, summed=True)
    reference = torch.zeros_like(lp) if name == f"r{s}" else reader.find(f"rf{s}")
    if reference is not None:
        reader.shape(f"rf{s}", reference, (size,))
        reader.finite(f"rf{s}", reference)
        side.ref = spread(reference.detach())
    elif needs.references:
        reader.want(f"rf{s}", "the reference's summed log-probabilities")
    for signal, short in (("kl(ref|policy)", f"D{s}"), ("kl(policy|ref)", f"kl{s}")):
        if signal in needs.signals:
            value = reader.want(short, _WHY[signal], f"logits{s}, ref_logits{s} and tokens{s}")
            reader.shape(short, value, (size,))
            reader.finite(short, value)
            side.signals[signal] = spread(reader.leaf(short))
    return side


_WHY = {
    "kl(ref|policy)": "KL(ref || policy) of the whole law, which tokens alone do not give",
    "kl(policy|ref)": "KL(policy || ref) of the whole law at each step",
}


def _from_steps(reader: Reader, s: str, logp: Tensor, needs: Needs) -> Side:
    name = f"logp{s}"
    if logp.dim() != 2:
        raise NumericsError(
            f"The array '{name}' has shape {list(logp.shape)}, and [B, T] is needed.",
            f"Give one number a step, or lp{s} [B] summed.",
        )
    mask = _mask(reader, s, logp)
    reader.finite(name, logp, mask)
    side = Side(torch.where(mask, reader.leaf(name), 0.0), mask)
    reference = reader.find(f"ref{s}")
    if reference is None and needs.references:
        reader.want(f"ref{s}", "the reference's log-probabilities by step")
    if reference is not None:
        side.ref = _by_step(reader, f"ref{s}", reference, mask)
    for signal in needs.signals & set(_WHY):
        reader.find(f"D{s}")
        if signal == "kl(ref|policy)" and f"D{s}" in reader.arrays:
            value = reader.arrays[f"D{s}"]
            reader.shape(f"D{s}", value, (logp.shape[0],))
            reader.finite(f"D{s}", value)
            count = mask.sum(-1, keepdim=True).clamp(min=1)
            spread = reader.leaf(f"D{s}").unsqueeze(-1) / count
            side.signals[signal] = torch.where(mask, spread, 0.0)
            continue
        value = reader.want(f"kl{s}", _WHY[signal], f"logits{s}, ref_logits{s} and tokens{s}")
        _by_step(reader, f"kl{s}", value, mask)
        side.signals[signal] = torch.where(mask, reader.leaf(f"kl{s}"), 0.0)
    side.signals |= step_signals(reader, s, mask, needs)
    return side


def _from_law(reader: Reader, s: str, logits: Tensor, needs: Needs) -> Side:
    name = f"logits{s}"
    if logits.dim() != 3:
        raise NumericsError(
            f"The array '{name}' has shape {list(logits.shape)}, and [B, T, V] is needed.",
            "Give logits over the whole vocabulary at each step.",
        )
    tokens = reader.want(f"tokens{s}", "which token was taken at each step [B, T]")
    mask = _mask(reader, s, tokens)
    reader.shape(f"tokens{s}", tokens, tuple(logits.shape[:2]))
    reader.finite(name, logits, mask)
    if bool((mask & ((tokens < 0) | (tokens >= logits.shape[-1]))).any()):
        raise NumericsError(f"'tokens{s}' names a token outside the vocabulary.", "Count from 0.")
    # Padding may hold anything: it is replaced before the softmax, so that nothing of it leaks.
    whole = torch.where(mask.unsqueeze(-1), reader.leaf(name), 0.0)
    index = torch.where(mask, tokens, 0.0).long()
    other = reader.find(f"ref_logits{s}")
    if other is None:
        if needs.references or two_laws(needs.signals):
            reader.want(f"ref_logits{s}", "the reference's law at each step")
        found = law_signals(whole, index, mask, needs, None)
        return Side(found.pop("logp"), mask, signals=found)
    reader.shape(f"ref_logits{s}", other, tuple(logits.shape))
    reader.finite(f"ref_logits{s}", other, mask)
    constant = torch.where(mask.unsqueeze(-1), other, 0.0)
    ref = torch.log_softmax(constant, -1).gather(-1, index.unsqueeze(-1)).squeeze(-1)
    found = law_signals(whole, index, mask, needs, constant)
    return Side(found.pop("logp"), mask, torch.where(mask, ref, 0.0), signals=found)


def _mask(reader: Reader, s: str, like: Tensor) -> Tensor:
    mask = reader.find(f"mask{s}")
    if mask is None:
        return torch.ones(like.shape[:2], dtype=torch.bool)
    reader.shape(f"mask{s}", mask, tuple(like.shape[:2]))
    if bool(((mask != 0) & (mask != 1)).any()):
        raise NumericsError(f"The array 'mask{s}' holds more than 0 and 1.", "Give booleans.")
    return mask > 0


def _by_step(reader: Reader, name: str, value: Tensor, mask: Tensor) -> Tensor:
    reader.shape(name, value, tuple(mask.shape))
    reader.finite(name, value, mask)
    return torch.where(mask, value.detach(), 0.0)


def read_own(reader: Reader, side: Side, needs: Needs) -> None:
    """Add what only the role ``own`` may have: the sampling law and a value at each step."""
    if needs.old:
        why = "log-probabilities of the law that drew the completions"
        old = reader.want("old", why, "old=logp")
        side.old = _by_step(reader, "old", old, side.mask)
    if "value" in needs.signals:
        value = reader.want("value", "the value network's V(s_t) at each step [B, T]")
        if value.dim() == 1 and len(value) == len(side.mask):
            # One number a row: the same at each of its steps.
            reader.shape("value", value, (len(side.mask),))
            reader.finite("value", value)
            side.signals["value"] = torch.where(side.mask, reader.leaf("value").unsqueeze(-1), 0.0)
            return
        reader.shape("value", value, tuple(side.mask.shape))
        reader.finite("value", value, side.mask)
        side.signals["value"] = torch.where(side.mask, reader.leaf("value"), 0.0)


def join(
    sides: Mapping[str, Side], fields: Mapping[str, Tensor], weight: Tensor, segment: Tensor | None
) -> Scores:
    """Scores over all sides' rows; a side with fewer rows than the largest has missing members."""
    width = max(side.mask.shape[1] for side in sides.values())
    units = max(side.units for side in sides.values())

    def stack(values: list[Tensor]) -> Tensor:
        return torch.cat([_widen(value, width) for value in values])

    roles, start = {}, 0
    for name, side in sides.items():
        if side.place is None:
            index = torch.full((units,), -1)
            index[: len(side.mask)] = torch.arange(start, start + len(side.mask))
        else:
            index = torch.where(side.place >= 0, side.place + start, -1)
        roles[name], start = index, start + len(side.mask)
    all_sides = list(sides.values())
    signals = {name for side in all_sides for name in side.signals}
    drawn = {name for side in all_sides for name in side.draws}
    others = {name for side in all_sides for name in side.others}
    # What a side has no use for (an imitated answer's reference, say) is 0 there.
    zeros = [torch.zeros(side.mask.shape, dtype=torch.float64) for side in all_sides]
    blank = list(zip(all_sides, zeros, strict=True))
    refs = {name: stack([s.others.get(name, z) for s, z in blank]) for name in others}
    if any(side.ref is not None for side in all_sides):
        refs["ref"] = stack([z if s.ref is None else s.ref for s, z in blank])
    return Scores(
        logp=stack([side.logp for side in all_sides]),
        mask=stack([side.mask for side in all_sides]),
        weight=weight,
        roles=roles,
        refs=refs,
        old=stack([s.old for s in all_sides if s.old is not None])
        if all_sides[0].old is not None
        else None,
        signals={name: stack([s.signals.get(name, z) for s, z in blank]) for name in signals},
        fields=dict(fields),
        segment=None if segment is None else _widen(segment, width),
        draws={name: stack([side.draws[name] for side in all_sides]) for name in drawn},
    )


def _widen(value: Tensor, width: int) -> Tensor:
    if value.shape[1] == width:
        return value
    pad = torch.zeros(value.shape[0], width - value.shape[1], dtype=value.dtype)
    return torch.cat([value, pad], 1)
