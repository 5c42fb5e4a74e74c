"""From records to units: which payloads play which role, and how they become a batch.

Roles by kind of feedback: a demonstration is ``own``, ``target`` and ``chosen``; a pair has
``chosen``, ``rejected``, ``target`` (the gold answer where there is one, else the chosen one), and
what else it brings (``gold``, ``source_chosen``); binary feedback has ``own``,
field ``label`` and ``mismatched`` (another example's answer under this prompt); scored answers
have ``own`` ([U] for one answer, [U, K] for several), ``answers`` (always a list), field ``reward``
and a field for each aspect; a quadruple has ``own_ij``, answer j under prompt i.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from polyalign.errors import DataError, NeedsError, nearest
from polyalign.feedback.records import (
    OTHER_ANSWERS,
    Binary,
    Demonstration,
    Pair,
    Payload,
    Quadruple,
    Record,
    Scored,
    kind_name,
)
from polyalign.types import Batch, Needs, Row, Rows

Slot = tuple[Payload, Payload]
"""A context payload and a completion payload: one row before it is encoded."""


class Members(tuple[Slot, ...]):
    """The slots of a list role."""


@dataclass(frozen=True, slots=True)
class Unit:
    """What is compared together: slots by role, a weight, and numbers by name."""

    key: str
    roles: Mapping[str, Slot | Members]
    weight: float = 1.0
    fields: Mapping[str, float | tuple[float, ...]] = field(default_factory=dict)


def seed_of(*parts: object) -> int:
    """A 63-bit seed that is a function of its parts alone, the same on every machine.

    >>> seed_of(0, "order", 1) == seed_of(0, "order", 1) != seed_of(0, "order", 2)
    True
    """
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def order(count: int, *parts: object) -> list[int]:
    """A permutation of ``range(count)``, a function of ``parts`` alone."""
    generator = torch.Generator().manual_seed(seed_of(*parts))
    return torch.randperm(count, generator=generator).tolist()


def partner(records: Sequence[Binary], index: int, *parts: object) -> Binary:
    """The example whose answer is put under another's prompt: fixed by (parts, key), never by
    batch.

    Raises :class:`DataError` when every example has the same prompt.
    """
    own = records[index]

    def fits(other: Binary) -> bool:
        return other.key != own.key and other.prompt != own.prompt

    # Independent draws are uniform over what fits; the walk ends where almost nothing does.
    for attempt in range(16):
        other = records[seed_of(*parts, "partner", own.key, attempt) % len(records)]
        if fits(other):
            return other
    for offset in range(1, len(records)):
        other = records[(index + offset) % len(records)]
        if fits(other):
            return other
    raise DataError(
        "Mismatched answers need at least two different prompts, and all examples share one.",
        "Add feedback on other prompts, or use a method without a KL reference point.",
    )


def slots(record: Record) -> dict[str, Slot | Members]:
    """The roles that a record can play by itself."""
    match record:
        case Demonstration():
            slot = (record.prompt, record.completion)
            return {"own": slot, "target": slot, "chosen": slot}
        case Pair():
            target = record.others.get("gold", record.chosen)
            return {
                "chosen": (record.prompt, record.chosen),
                "rejected": (record.prompt, record.rejected),
                "target": (record.prompt, target),
                **{role: (record.prompt, answer) for role, answer in record.others.items()},
            }
        case Binary():
            return {"own": (record.prompt, record.completion)}
        case Scored():
            own = Members((record.prompt, completion) for completion in record.completions)
            return {"own": own[0] if len(own) == 1 else own, "answers": own}
        case Quadruple():
            return {
                f"own_{i + 1}{j + 1}": (record.prompts[i], record.completions[j])
                for i in (0, 1)
                for j in (0, 1)
            }
        case _:
            return {}


def fields_of(record: Record) -> dict[str, float | tuple[float, ...]]:
    """A record's numbers by name: its own fields, and what its kind says."""
    fields: dict[str, float | tuple[float, ...]] = dict(record.fields)
    if isinstance(record, Binary):
        fields["label"] = float(record.label)
    if isinstance(record, Scored):
        for name, values in {**record.aspects, "reward": record.scores}.items():
            fields[name] = values[0] if len(values) == 1 else values
    return fields


def fault(record: Record, needs: Needs) -> str | None:
    """Why nothing can be learnt from an example under these needs; None where it can.

    A list to compare needs two answers, a pair the further ones that are asked of it, and numbers
    must lie within their bounds.
    """
    if "answers" in needs.roles and isinstance(record, Scored) and len(record.completions) < 2:
        return "it has one answer, and the method compares several to one prompt"
    if isinstance(record, Pair):
        for role in sorted(needs.roles & set(OTHER_ANSWERS) - set(record.others)):
            return f"it has no column '{role}', {OTHER_ANSWERS[role]}"
    numbers = fields_of(record)
    for name, least, most in sorted(needs.bounds):
        given = numbers.get(name, ())
        for value in given if isinstance(given, tuple) else (given,):
            if not least <= value <= most:
                return f"its {name} {value:g} lies outside [{least:g}, {most:g}]"
    return None


def make_units(
    records: Sequence[Record], indices: Sequence[int], needs: Needs, *parts: object
) -> list[Unit]:
    """Units of some records with exactly the roles and fields that are needed.

    ``parts`` (seed, epoch) fix what is random about a unit. Raises :class:`NeedsError` when a
    kind of feedback cannot play a role or lacks a field.
    """
    wanted = needs.roles | needs.statistics
    units = []
    for index in indices:
        record = records[index]
        reason = fault(record, needs)
        if reason is not None:
            raise DataError(
                f"Example {record.key} cannot be learnt from: {reason}.",
                "Mend the example or leave it out.",
            )
        available = slots(record)
        if "mismatched" in wanted and isinstance(record, Binary):
            other = partner(records, index, *parts)  # type: ignore[arg-type]
            available["mismatched"] = (record.prompt, other.completion)
        for role in wanted - set(available):
            raise NeedsError(
                f"The objective needs the role '{role}', which {kind_name(type(record))} feedback "
                "has not "
                f"(example {record.key}).",
                f"It has: {', '.join(sorted(available)) or 'no roles'}.",
            )
        numbers = fields_of(record)
        for name in sorted(needs.fields - set(numbers)):
            raise NeedsError(
                f"The objective needs the number '{name}' of every example, and {record.key} has "
                "none.",
                nearest(name, numbers),
            )
        units.append(
            Unit(
                record.key,
                {role: available[role] for role in sorted(wanted)},
                record.weight,
                {name: numbers[name] for name in sorted(needs.fields)},
            )
        )
    return units


def assemble(units: Sequence[Unit], encode: Callable[[Payload, Payload], Row]) -> Batch:
    """Encode the units' rows, each distinct one once, and index them by role.

    Raises :class:`DataError` naming the unit when a completion has no step to score.
    """
    rows: list[Row] = []
    where: dict[object, int] = {}

    def place(slot: Slot, unit: Unit, role: str) -> int:
        row = encode(*slot)
        if not bool(row.mask.any()):
            raise DataError(
                f"Example {unit.key}: the {role} answer has nothing to learn from (it is empty, "
                "or was "
                "emptied by max_length).",
                "Run: polyalign data check FILE --fix OUT, or raise max_length.",
            )
        identity = (
            row.context if not isinstance(row.context, Tensor) else row.context.numpy().tobytes(),
            row.steps.numpy().tobytes(),
            row.mask.numpy().tobytes(),
        )
        if identity not in where:
            where[identity] = len(rows)
            rows.append(row)
        return where[identity]

    names = sorted({role for unit in units for role in unit.roles})
    roles: dict[str, Tensor] = {}
    for role in names:
        lists = any(_is_list(unit.roles[role]) for unit in units)
        if not lists:
            roles[role] = torch.tensor([place(unit.roles[role], unit, role) for unit in units])  # type: ignore[arg-type]
            continue
        members = [
            unit.roles[role] if _is_list(unit.roles[role]) else Members([unit.roles[role]])  # type: ignore[list-item]
            for unit in units
        ]
        index = torch.full((len(units), max(map(len, members))), -1)
        for u, unit in enumerate(units):
            for k, slot in enumerate(members[u]):
                index[u, k] = place(slot, unit, role)
        roles[role] = index
    return Batch(
        Rows.collate(rows),
        roles,
        torch.tensor([unit.weight for unit in units], dtype=torch.float64),
        {
            name: _stack([unit.fields[name] for unit in units])
            for name in (units[0].fields if units else ())
        },
        tuple(unit.key for unit in units),
    )


def _is_list(slot: Slot | Members) -> bool:
    return isinstance(slot, Members)


def _stack(values: Sequence[float | tuple[float, ...]]) -> Tensor:
    """[U] of numbers, or [U, K] of lists padded with 0."""
    if not any(isinstance(value, tuple) for value in values):
        return torch.tensor(values, dtype=torch.float64)
    lists = [value if isinstance(value, tuple) else (value,) for value in values]
    out = torch.zeros(len(lists), max(map(len, lists)), dtype=torch.float64)
    for i, value in enumerate(lists):
        out[i, : len(value)] = torch.tensor(value, dtype=torch.float64)
    return out
