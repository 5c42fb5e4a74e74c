"""From batches to scores: which policy, reference and module is asked for what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from polyalign.errors import NeedsError, NumericsError, nearest
from polyalign.protocols import Policy
from polyalign.types import SIGNALS, Batch, Needs, Scores, signal


@dataclass
class Cast:
    """Everybody who is asked for numbers: the policy, references by name, modules by name."""

    policy: Policy
    references: dict[str, Policy]
    modules: dict[str, nn.Module]

    def match(self, needs: Needs) -> None:
        """Raise :class:`NeedsError`, before anything is computed, when a need has no offer."""
        for name in needs.signals - set(self.modules):
            base, _ = signal(name)
            if base not in SIGNALS:
                raise NeedsError(
                    f"The objective asks for the unknown signal '{name}'.",
                    nearest(name, [*SIGNALS, *self.modules]),
                )
            if base not in self.policy.offers:
                raise NeedsError(
                    f"The objective needs '{name}' ({SIGNALS[base]}), which this policy does not "
                    "offer.",
                    f"It offers: {', '.join(sorted(self.policy.offers)) or 'nothing beside logp'}.",
                )
        for name in needs.modules - set(self.modules):
            raise NeedsError(
                f"The objective needs the module '{name}', which the stage does not declare.",
                nearest(name, self.modules),
            )


def live(needs: Needs) -> bool:
    """Whether a reference's whole law is read, so that its cached log-probabilities are not
    enough.
    """
    return any("(" in name for name in needs.signals)


@contextmanager
def training_only(modules: Mapping[str, nn.Module], trains: Sequence[str]) -> Iterator[None]:
    """Within, only the modules named in ``trains`` take gradients; others pass them through."""
    before = {p: p.requires_grad for module in modules.values() for p in module.parameters()}
    try:
        for name, module in modules.items():
            module.requires_grad_(name in trains)
        yield
    finally:
        for parameter, required in before.items():
            parameter.requires_grad_(required)


def scores(cast: Cast, batch: Batch, needs: Needs, trains: Sequence[str], grad: bool) -> Scores:
    """Score a batch: logp and signals of the policy, of references and of modules.

    Gradient flows into what is in ``trains`` when ``grad``; all else is constant.
    """
    want = {name for name in needs.signals if signal(name)[0] in SIGNALS}
    against = {name: cast.references[name] for name in cast.references if live(needs)}
    own = grad and "policy" in trains
    # Constants first: what they need meanwhile is gone when the policy's activations are kept.
    refs = dict(batch.refs)
    with ExitStack() as passes:
        for reference in against.values():
            passes.enter_context(getattr(reference, "once", nullcontext)())
        with torch.no_grad():
            for name in sorted(needs.references - set(refs)):
                refs[name] = cast.references[name].score(batch.rows, frozenset(), batch.draws).logp
        with nullcontext() if own else torch.no_grad():
            scored = cast.policy.score(batch.rows, frozenset(want), batch.draws, against)
    signals = dict(scored.signals)
    device = scored.logp.device
    for name in needs.signals & set(cast.modules):
        with nullcontext() if grad and name in trains else torch.no_grad():
            signals[name] = cast.modules[name](batch.rows)
    return Scores(
        logp=scored.logp,
        mask=batch.rows.mask.to(device),
        weight=batch.weight.to(device),
        roles={name: index.to(device) for name, index in batch.roles.items()},
        refs={name: refs[name].to(device) for name in needs.references},
        old=None if batch.old is None else batch.old.to(device),
        signals=signals,
        fields={name: value.to(device, scored.logp.dtype) for name, value in batch.fields.items()},
        modules=cast.modules,
        segment=None if batch.rows.segment is None else batch.rows.segment.to(device),
        draws={name: value.to(device) for name, value in _drawn(batch, needs).items()},
    )


def constant(scored: Scores, trains: Sequence[str]) -> Scores:
    """The scores as an update sees them that trains ``trains`` alone: all else has no gradient."""

    def seen(name: str, value: Tensor) -> Tensor:
        owner = name if name in scored.modules else "policy"
        return value if owner in trains else value.detach()

    return replace(
        scored,
        logp=seen("policy", scored.logp),
        signals={name: seen(name, value) for name, value in scored.signals.items()},
    )


def _drawn(batch: Batch, needs: Needs) -> dict[str, Tensor]:
    """The random numbers that an objective reads; raises :class:`NeedsError` where none are."""
    for name in needs.draws - set(batch.draws):
        raise NeedsError(
            f"The objective needs random numbers ('{name}'), which this loop does not draw.",
            "Train it on given feedback.",
        )
    return {name: batch.draws[name] for name in sorted(needs.draws)}


def blank(cast: Cast, batch: Batch, needs: Needs) -> Scores:
    """Scores of zeros: what an objective's weights are read from before anything is scored."""
    mask = batch.rows.mask
    zeros = torch.zeros(mask.shape, dtype=torch.float64)
    return Scores(
        logp=zeros,
        mask=mask,
        weight=batch.weight,
        roles=batch.roles,
        refs=dict.fromkeys(needs.references, zeros),
        old=zeros if batch.old is not None else None,
        signals=dict.fromkeys(needs.signals, zeros),
        fields={name: value.to(torch.float64) for name, value in batch.fields.items()},
        modules=cast.modules,
        segment=batch.rows.segment,
        draws=_drawn(batch, needs),
    )


def check_finite(scored: Scores, batch: Batch) -> None:
    """The one check of numbers: raise :class:`NumericsError` naming the first unit that is not
    finite.
    """
    tensors = {"log-probabilities": scored.logp, "reference log-probabilities": None}
    good = torch.isfinite(scored.logp) | ~scored.mask
    for values in scored.refs.values():
        if values.shape != scored.logp.shape:
            raise NumericsError(
                f"Reference log-probabilities have shape {tuple(values.shape)}, the policy's "
                f"{tuple(scored.logp.shape)}.",
                "Score both on the same rows.",
            )
        good = good & (torch.isfinite(values) | ~scored.mask)
    if bool(good.all()):
        return
    bad_rows = set((~good).any(-1).nonzero().flatten().tolist())
    for unit, key in enumerate(batch.keys):
        members = {int(i) for index in scored.roles.values() for i in index[unit].flatten()}
        if members & bad_rows:
            where = f"example {key}"
            break
    else:
        where = "a row"
    side = next(name for name in tensors)
    if bool((torch.isfinite(scored.logp) | ~scored.mask).all()):
        side = "reference log-probabilities"
    raise NumericsError(
        f"The {side} of {where} are not finite.",
        "Lower the learning rate, use dtype=float32, or check the model folder.",
    )


def concatenate(parts: Sequence[Scores]) -> Scores:
    """One Scores of all parts' rows and units, in order; rows are padded to the longest."""
    if len(parts) == 1:
        return parts[0]
    longest = max(part.logp.shape[1] for part in parts)
    rows = [part.logp.shape[0] for part in parts]
    starts = [sum(rows[:i]) for i in range(len(rows))]

    def join(values: Sequence[Tensor]) -> Tensor:
        padded = [_pad(value, longest) for value in values]
        return torch.cat(padded)

    def join_units(values: Sequence[Tensor]) -> Tensor:
        if values[0].dim() > 1:
            width = max(value.shape[1] for value in values)
            values = [
                _pad(value, width, -1 if value.dtype == torch.long else 0) for value in values
            ]
        return torch.cat(list(values))

    first = parts[0]
    shifted = [
        {name: torch.where(index >= 0, index + start, index) for name, index in part.roles.items()}
        for part, start in zip(parts, starts, strict=True)
    ]
    return replace(
        first,
        logp=join([part.logp for part in parts]),
        mask=join([part.mask for part in parts]),
        weight=torch.cat([part.weight for part in parts]),
        roles={name: join_units([roles[name] for roles in shifted]) for name in first.roles},
        refs={name: join([part.refs[name] for part in parts]) for name in first.refs},
        old=None if first.old is None else join([_some(part.old) for part in parts]),
        signals={name: join([part.signals[name] for part in parts]) for name in first.signals},
        fields={name: join_units([part.fields[name] for part in parts]) for name in first.fields},
        segment=None if first.segment is None else join([_some(part.segment) for part in parts]),
        draws={name: join([part.draws[name] for part in parts]) for name in first.draws},
    )


def _some(value: Tensor | None) -> Tensor:
    assert value is not None
    return value


def _pad(value: Tensor, width: int, fill: int = 0) -> Tensor:
    """Pad axis 1 to ``width``; values of one axis stay as they are."""
    if value.dim() < 2 or value.shape[1] == width:
        return value
    out = value.new_full((value.shape[0], width, *value.shape[2:]), fill)
    out[:, : value.shape[1]] = value
    return out


def strip(scored: Scores) -> Scores:
    """The scores without what cannot travel between processes."""
    return replace(scored, modules={}, signals=dict(scored.signals))


def attach(scored: Scores, modules: Mapping[str, Any]) -> Scores:
    """The scores with modules to call."""
    return replace(scored, modules=modules)
