"""The numeric entry point: any method's loss on arrays, in its card's notation, in float64.

Check a port against it, or cite it. It calls the very objectives that training calls and divides as
the engine does.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyalign.errors import NumericsError, OptionError, PolyalignWarning, nearest
from polyalign.methods import get
from polyalign.methods.array_checks import check_sizes, refuse_numbers, warn_of_numbers
from polyalign.methods.array_names import ALIASES, SUFFIX
from polyalign.methods.array_sides import Side, join, read_own, read_side
from polyalign.methods.array_signals import embedded, free_logits
from polyalign.methods.arrays import Reader
from polyalign.methods.lists import read_list
from polyalign.methods.transitions import is_transitions, transition_losses
from polyalign.objectives import reduce
from polyalign.objectives.reduce import mean
from polyalign.recipe import Method, Update
from polyalign.types import Loss, Needs, Objective, Scores, Stateful, Term


@dataclass(frozen=True)
class Result:
    """What a loss is on some arrays.

    ``value``: the loss; ``per_unit`` [U]: each unit's share, whose mean (weighted by the units) is
    the value; ``gradients``: d value / d array for each array that carries the policy's (or a
    trained module's) numbers; ``metrics``: what training would log.
    """

    value: float
    per_unit: NDArray[np.float64]
    gradients: dict[str, NDArray[np.float64]]
    metrics: dict[str, float]


@dataclass(frozen=True)
class Numeric:
    """A method's loss as a function of arrays; made by :func:`objective`."""

    id: str
    method: Method
    updates: tuple[Update, ...]

    def __call__(self, arrays: Mapping[str, Any] | None = None, /, **more: Any) -> Result:
        """Loss, per-unit values and gradients of arrays (numpy, torch or lists), by name.

        Raises :class:`OptionError` for unknown or missing arrays and :class:`NumericsError` for
        arrays of the wrong shape, numbers that are not finite, and empty completions.
        """
        given = {**(arrays or {}), **more}
        result, counted, summed = self._run(given)
        if not counted and self._differs(result, given, lengths=True):
            raise OptionError(
                f"{self.id} depends on the completions' lengths, so sums of log-probabilities need "
                "lengths.",
                "Give n_w and n_l (n for single completions), or log-probabilities by step.",
            )
        if summed and self._differs(result, given, even=False):
            raise OptionError(
                f"{self.id} looks at single steps, which sums of log-probabilities do not say.",
                "Give logp_w and ref_w [B, T] by step (and so on), with mask_w.",
            )
        outside = result.metrics.get("outside", 0.0)
        if outside > 0:
            warnings.warn(
                f"{self.id}: {outside:.0%} of the examples lie outside the divergence's domain, "
                "where the loss goes on along its tangent.",
                PolyalignWarning,
                stacklevel=2,
            )
        return result

    def _differs(self, result: Result, given: Mapping[str, Any], **how: bool) -> bool:
        """Whether the value is another under other guesses about what was not given."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PolyalignWarning)
            other = self._run(given, **how)[0].value
        return abs(other - result.value) > 1e-9 * (1.0 + abs(result.value))

    def _run(
        self, given: Mapping[str, Any], *, lengths: bool = False, even: bool = True
    ) -> tuple[Result, bool, bool]:
        """The result, whether all lengths were given, and whether any side was given summed.

        Lengths that were not given are 1, or with ``lengths`` others, different for each side.
        """
        reader = Reader(self.id, given)
        losses: list[Loss] = []
        metrics: dict[str, float] = {}
        counted, summed = True, False
        if is_transitions(self.updates):
            losses, weight = transition_losses(reader, self.updates)
        else:
            total = Needs()
            for update in self.updates:
                total = total | update.objective.needs
            scores, sides = self._scores(reader, total, lengths, even)
            counted = all(side.counted for side in sides.values())
            summed = any(side.summed for side in sides.values())
            for update in self.updates:
                refuse_numbers(self.id, update.objective, scores)
                losses.append(_evaluate(update.objective, scores))
            weight = scores.weight
        reader.unused()
        value = torch.stack([reduce(loss) for loss in losses]).sum()
        names = list(reader.leaves)
        leaves = [reader.leaves[name] for name in names]
        found: tuple[Tensor | None, ...] = (
            torch.autograd.grad(value, leaves, allow_unused=True)
            if value.requires_grad
            else tuple(None for _ in leaves)
        )
        for loss in losses:
            metrics |= {name: float(mean(term)) for name, term in loss.metrics.items()}
        return (
            Result(
                float(value.detach()),
                _per_unit([term for loss in losses for term in loss.terms], weight),
                {
                    name: np.zeros(leaf.shape) if g is None else g.numpy()
                    for name, leaf, g in zip(names, leaves, found, strict=True)
                },
                metrics,
            ),
            counted,
            summed,
        )

    def _scores(
        self, reader: Reader, needs: Needs, lengths: bool, even: bool
    ) -> tuple[Scores, dict[str, Side]]:
        empty = needs.old
        sides: dict[str, Side] = {}
        wanted = sorted(needs.roles | needs.statistics)
        imitated = imitated_by(self.updates)
        for role in wanted:
            if role == "answers":
                length = 2 if lengths else 1
                sides[role] = read_list(reader, needs, length=length, even=even)
                continue
            suffix = SUFFIX[role]
            if role == "target":
                named = [n for n in ("lp_t", "logp_t", "logits_t") if reader.find(n) is not None]
                if not named and "chosen" in wanted:
                    continue  # the chosen answer is the target, below
                suffix = "_t" if named else ""
            if role == "chosen" and "source_chosen" in wanted:
                suffix = "_t"
            length = 2 + len(sides) if lengths else 1
            own = Needs() if role in imitated else needs
            sides[role] = read_side(reader, suffix, own, empty=empty, length=length, even=even)
        if "own" in sides:
            read_own(reader, sides["own"], needs)
        check_sizes(self.id, self.updates, sides)
        units = max(side.units for side in sides.values())
        fields, weight = self._fields(reader, needs, sides, units)
        segment = reader.find("segment") if "own" in sides else None
        if segment is not None:
            reader.shape("segment", segment, tuple(sides["own"].mask.shape))
            segment = segment.long()
        scores = replace(join(sides, fields, weight, segment), modules=free_logits(reader, needs))
        if "target" in wanted and "target" not in sides:
            scores = replace(scores, roles={**scores.roles, "target": scores.roles["chosen"]})
        warn_of_numbers(self.id, needs, scores, sides)
        return scores, sides

    def _fields(
        self, reader: Reader, needs: Needs, sides: Mapping[str, Side], units: int
    ) -> tuple[dict[str, Tensor], Tensor]:
        fields: dict[str, Tensor] = {}
        weight = reader.find("weight")
        if weight is None:
            weight = torch.ones(units, dtype=torch.float64)
        reader.shape("weight", weight, (units,))
        reader.finite("weight", weight)
        if bool((weight < 0).any()):
            raise NumericsError("The array 'weight' holds negative numbers.", "Weights are >= 0.")
        credit = self.method.stages[0].credit
        if credit is not None and reader.find("rewards") is not None:
            credited = self._credited(reader, credit, sides["own"], units)
            weight = weight * credited.pop("keep", torch.ones_like(weight))
            fields |= {name: value for name, value in credited.items() if name in needs.fields}
        fields |= embedded(reader, needs)
        place = sides["answers"].place if "answers" in sides else None
        for name in sorted(needs.fields - set(fields)):
            if place is not None:
                value = reader.want(name, "one number for each answer [U, K]")
                reader.shape(name, value, tuple(place.shape))
                reader.finite(name, value, place >= 0)
                fields[name] = torch.where(place >= 0, value, 0.0)
                continue
            instead = ("rewards [groups, G]",) if credit is not None else ()
            why = "one number for each example"
            value = reader.want(name, why, *instead, *ALIASES.get(name, ()))
            if value.shape[:1] != (units,) or value.dim() > (2 if name == "advantage" else 1):
                reader.shape(name, value, (units,))
            reader.finite(name, value)
            fields[name] = value
        for name, least, most in sorted(needs.bounds):
            if bool(((fields[name] < least) | (fields[name] > most)).any()):
                raise NumericsError(
                    f"The array of '{name}' holds numbers outside [{least:g}, {most:g}].",
                    "Mend them, or leave the examples out.",
                )
        return fields, weight

    def _credited(self, reader: Reader, credit: Any, side: Side, units: int) -> dict[str, Tensor]:
        rewards = reader.arrays["rewards"]
        if rewards.dim() == 1:
            rewards = rewards.unsqueeze(0)
        reader.finite("rewards", rewards)
        if rewards.dim() != 2 or rewards.numel() != units:
            raise NumericsError(
                f"The array 'rewards' has shape {list(rewards.shape)} for {units} completions.",
                "Give [groups, G], completions in the same order, row by row.",
            )
        if rewards.shape[1] < 2:
            raise NumericsError(
                f"{self.id} compares completions of one prompt, and each group has one.",
                "Give at least two completions a prompt.",
            )
        finished = reader.find("finished")
        if finished is None:
            finished = torch.ones(units, dtype=torch.float64)
        reader.shape("finished", finished, (units,))
        lengths = side.mask.sum(-1).reshape(rewards.shape)
        given = credit(rewards, lengths=lengths, finished=finished.reshape(rewards.shape))
        return {name: value.reshape(units) for name, value in given.items()}


def objective(id: str, update: str | None = None, *, stage: int = 0, **hyper: Any) -> Numeric:
    """A method's loss as a function of arrays in its card's notation, in float64.

    ``id`` and ``hyper`` are as for training; a schedule is read at its start. Arrays go by name,
    as a mapping or as keywords:

    - pairs: ``lp_w``, ``lp_l`` [B] summed over steps, ``rf_w``, ``rf_l`` [B] of the reference,
      ``n_w``, ``n_l`` [B] lengths (where they matter); or by step ``logp_w`` [B, T], ``ref_w``,
      ``mask_w`` and so on; or ``logits_w`` [B, T, V], ``ref_logits_w``, ``tokens_w``, ``mask_w``;
    - triple-po: also ``lp_g``, ``n_g`` [B] of the gold answer;
    - wrpo: ``lp_s``, ``lp_t``, ``lp_l`` [B] (and ``rf_s`` …) of the source's best, the policy's own
      best and its worst;
    - kto: ``lp``, ``rf``, ``lpK``, ``rfK`` [B], ``label`` [B]; slic: also ``lp_t``;
    - tdpo: also ``D_w``, ``D_l`` [B] (or the logits); aot: two sets may differ in size;
    - iopo: ``lp_11`` … ``lp_22`` with ``rf_11`` …, or the log-ratios ``r_11`` … ``r_22`` [B];
    - oreo: ``logp``, ``ref``, ``mask``, ``value``, ``kl`` [B, T], ``reward`` [B],
      ``segment`` [B, T];
    - grpo: ``logp``, ``old``, ``ref``, ``mask`` [B, T] and ``rewards`` [groups, G] or
      ``advantage``;
    - sac: ``log_pi``, ``log_pi_next`` [B], ``q``, ``q_pi``, ``q_next`` [J, B], ``reward``,
      ``terminated`` [B], ``log_alpha``; with a last axis of actions, the discrete form;
    - bco: ``lp``, ``rf``, ``label`` [B] (and ``p``); dro: ``lp``, ``rf``, ``r``, ``value`` [B];
    - lists (infonca, nca, exo, lipo, pro, rrhf, brain): ``lp``, ``rf``, ``n``, ``r`` [U, K] (and
      ``lq``), NaN or ``mask`` 0 where a list is shorter; or ``logp``, ``ref``, ``mask`` [U, K, T];
    - wpo: ``logits_w``, ``tokens_w`` …, or by step with ``log_collision_w`` (``max_prob_w``);
      sampo: by step, with ``u_w``, ``u_l`` [B, T] in [0, 1): those with the smallest stay;
      bmc: by step, with ``tokens_w``, ``tokens_l`` and ``stop_word_w``, ``stop_word_l``;
    - mmpo: ``s_w``, ``s_l`` [B]; osp: ``p`` [B]; bvpo: ``trace`` [B], 1 or 0;
    - dpo-kernels: ``e_x``, ``e_w``, ``e_l`` [B, D] (and ``S`` [D, D], ``kernel`` [6]), by law;
    - offline-rlhf: of answers as they stand after its data steps, form=rwr with ``R`` [B];
    - sft: ``logp``, ``mask`` [B, T], or ``lp``, ``n`` [B].

    ``weight`` [B] weighs examples. Masked entries may hold anything. A method with several updates
    (oreo, sac) gives the sum of their losses; ``update`` picks one by what it trains
    ("policy", "value", …). Each update's constants are constants, so gradients do not mix.
    ``stage`` picks a later stage's losses, counted from 0; a further reference NAME (the start's
    ``pi0`` in spo-sequential's stage 1) is given as ``NAME_w``, ``NAME_l``.

    >>> import polyalign
    >>> dpo = polyalign.objective("dpo", beta=0.1)
    >>> result = dpo(lp_w=[-10.0], lp_l=[-12.0], rf_w=[-10.0], rf_l=[-12.0])
    >>> round(result.value, 6), result.gradients["lp_w"].round(6).tolist()
    (0.693147, [-0.05])

    Raises :class:`OptionError` for an unknown method, hyper-parameter, update or stage.
    """
    method = get(id)(**hyper)
    assert method.declaration is not None
    if not 0 <= stage < len(method.stages):
        raise OptionError(
            f"{id} has no stage {stage}.", f"Stages are 0 to {len(method.stages) - 1}."
        )
    updates = method.stages[stage].updates
    if update is not None:
        updates = tuple(u for u in updates if update in u.trains)
        if not updates:
            valid = {name for u in method.stages[stage].updates for name in u.trains}
            raise OptionError(f"{id} has no update that trains '{update}'.", nearest(update, valid))
    return Numeric(method.declaration.id, method, updates)


def imitated_by(updates: Iterable[Update]) -> set[str]:
    """Roles that are only imitated: they have no reference, though others of their unit do."""
    anchors = {a.role for u in updates for a in getattr(u.objective, "anchors", ())}
    return anchors - {"chosen", "rejected"}


def _evaluate(part: Objective, scores: Scores) -> Loss:
    state: Mapping[str, Tensor] = {}
    if isinstance(part, Stateful):
        with torch.no_grad():
            state = part.before(scores, part.start())
    return part(scores, state)


def _per_unit(terms: list[Term], weight: Tensor) -> NDArray[np.float64]:
    """Each unit's part of the loss, scaled so that the units' weighted mean is the loss."""
    total = torch.zeros(len(weight), dtype=torch.float64)
    for term in terms:
        values = torch.where(term.weight > 0, term.value.detach(), 0.0) * term.weight
        whole = term.weight.sum()
        if bool(whole > 0):
            total += term.scale * values.reshape(len(weight), -1).sum(1) / whole
    share: NDArray[np.float64] = torch.where(
        weight > 0, total * weight.sum() / torch.where(weight > 0, weight, 1.0), 0.0
    ).numpy()
    return share
