"""A constant policy's states, so that its whole law can be read again without computing it: on disk
over a run (:class:`Remembered`), and of the rows at hand while they are scored (:func:`once`).

A law over V tokens is the head's product with H numbers: these are kept, V/H times fewer than
logits. A row is known by a hash of its context, steps and mask. Entries are appended as they are
computed; one that was cut short or damaged is computed again.

Axes: M own steps of a row, H features of a state.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from polyalign.errors import RunError
from polyalign.feedback.draws import identities
from polyalign.types import Rows

Compute = Callable[[Rows], tuple[Tensor, Tensor]]
"""From rows to the states [M, H] before their own steps and the steps' places [M] in [N * T]."""


class Remembered:
    """States by row, in one file of a folder that belongs to one process."""

    def __init__(self, folder: Path, dtype: torch.dtype, process: int = 0) -> None:
        self.dtype = dtype
        self.states_file = folder / f"states-{process}.bin"
        self.index_file = folder / f"states-{process}.jsonl"
        self.entries: dict[str, dict[str, Any]] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.states_file.touch()
            if self.index_file.is_file():
                for line in self.index_file.read_text("utf-8").splitlines():
                    self._read_entry(line)
        except OSError as error:
            raise self._failed(error) from error

    def _read_entry(self, line: str) -> None:
        try:
            entry = json.loads(line)
            whole = entry["at"] + entry["bytes"] <= self.states_file.stat().st_size
        except (ValueError, KeyError, TypeError):
            return  # the last line of a process that was killed while it wrote
        if whole and entry["dtype"] == str(self.dtype):
            self.entries[entry["row"]] = entry

    def states(self, rows: Rows, compute: Compute) -> tuple[Tensor, Tensor]:
        """What ``compute`` gives for the rows; computed for all of them where any is not known.

        Raises :class:`RunError` where the states cannot be written.
        """
        names = identities(rows)
        found = [self._find(name) for name in names]
        if any(one is None for one in found):
            states, own = compute(rows)
            device = states.device
            steps = rows.mask.shape[1]
            row = (own // steps).cpu()
            cut = (
                states.to(self.dtype)
                .cpu()
                .split(torch.bincount(row, minlength=len(names)).tolist())
            )
            places = (own.cpu() % steps).split([len(part) for part in cut])
            for i, one in enumerate(found):
                if one is None:
                    self._add(names[i], cut[i], places[i])
                    found[i] = cut[i], places[i]
        else:
            device = rows.steps.device
        kept = [one for one in found if one is not None]
        states = torch.cat([one[0] for one in kept])
        own = torch.cat([one[1] + i * rows.mask.shape[1] for i, one in enumerate(kept)])
        return states.to(device), own.to(device)

    def _find(self, name: str) -> tuple[Tensor, Tensor] | None:
        entry = self.entries.get(name)
        if entry is None:
            return None
        with self.states_file.open("rb") as file:
            file.seek(entry["at"])
            raw = bytearray(file.read(entry["bytes"]))
        if zlib.crc32(raw) != entry["crc"]:
            del self.entries[name]
            return None
        places = torch.tensor(entry["places"], dtype=torch.long)
        if not raw:
            return torch.zeros(0, entry["width"], dtype=self.dtype), places
        return torch.frombuffer(raw, dtype=self.dtype).reshape(len(places), -1), places

    def _add(self, name: str, states: Tensor, places: Tensor) -> None:
        raw = states.contiguous().view(torch.uint8).numpy().tobytes() if states.numel() else b""
        try:
            with self.states_file.open("ab") as file:
                at = file.tell()
                file.write(raw)
            entry = {
                "row": name, "at": at, "bytes": len(raw), "crc": zlib.crc32(raw),
                "width": states.shape[1], "places": places.tolist(), "dtype": str(self.dtype),
            }  # fmt: skip
            with self.index_file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
        except OSError as error:
            raise self._failed(error) from error
        self.entries[name] = entry

    def _failed(self, error: OSError) -> RunError:
        return RunError(
            f"The reference's states cannot be written to {self.states_file} ({error.strerror}).",
            "Free space there, or leave reference_states out (it is then computed at every step).",
        )


class Once:
    """States of the rows that are asked for again, in memory; ``beyond`` is where they are else."""

    def __init__(self, beyond: Remembered | Once | None) -> None:
        self.beyond = beyond
        self.seen: dict[int, tuple[Rows, tuple[Tensor, Tensor]]] = {}

    def states(self, rows: Rows, compute: Compute) -> tuple[Tensor, Tensor]:
        """What ``compute`` gives for the rows, computed once."""
        if id(rows) not in self.seen:
            found = compute(rows) if self.beyond is None else self.beyond.states(rows, compute)
            self.seen[id(rows)] = rows, found  # the rows too, so that their id stays theirs
        return self.seen[id(rows)][1]


class _Policy(Protocol):
    live: bool
    remembered: Remembered | Once | None


@contextmanager
def once(policy: _Policy) -> Iterator[None]:
    """Within, a constant computes the states of the same rows once: its log-probabilities and its
    whole law are of the same pass. A policy that trains computes as ever.
    """
    before = policy.remembered
    policy.remembered = before if policy.live else Once(before)
    try:
        yield
    finally:
        policy.remembered = before
