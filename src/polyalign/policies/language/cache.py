"""Tokenised feedback on disk: memory-mapped ids, found by what was tokenised.

A cache is made in one streaming pass and then only read, so feedback larger than memory costs no
memory. Its folder is named after all that decides the ids (tokenizer, template, limits) and the
feedback's own fingerprint: a cache that no longer fits is simply another one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from polyalign.errors import RunError
from polyalign.policies.language.folders import cache_folder
from polyalign.policies.language.template import Template
from polyalign.types import Row

VERSION = 1
_ENTRY = np.dtype(
    [
        ("name", "S32"),
        ("context", "<i8"),
        ("context_size", "<i4"),
        ("size", "<i4"),
        ("steps", "<i8"),
    ]
)

Item = tuple[Any, Any]
"""The payloads of a prompt and a completion."""


class TokenCache:
    """Rows of prompts and completions, read from disk as they are asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
        self._entries = np.load(folder / "entries.npy", mmap_mode="r")
        self._ids = _mapped(folder / "ids.bin", "<i4")
        self._marks = _mapped(folder / "marks.bin", "u1")

    @classmethod
    def open(
        cls,
        template: Template,
        feedback: str,
        items: Callable[[], Iterable[Item]],
        where: Path | None = None,
    ) -> TokenCache:
        """The cache of this feedback for this template; made from ``items()`` if it is not there.

        ``feedback`` is the feedback's fingerprint. ``where`` defaults to the user's cache.
        Raises :class:`RunError` when it cannot be written, and what encoding raises.
        """
        name = hashlib.sha256(f"{VERSION}/{template.fingerprint}/{feedback}".encode()).hexdigest()
        root = where or cache_folder().parent / "tokens"
        folder = root / name[:24]
        if not (folder / "summary.json").is_file():
            try:
                root.mkdir(parents=True, exist_ok=True)
                _write(folder, template, items())
            except OSError as error:
                raise RunError(
                    f"The tokenised feedback cannot be written to {root} ({error.strerror}).",
                    "Free space there, or set POLYALIGN_CACHE to another folder.",
                ) from error
        return cls(folder)

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, prompt: Any, completion: Any) -> Row | None:
        """The row of these payloads, None when they were not among the items."""
        name = _name(prompt, completion)
        place = int(np.searchsorted(self._entries["name"], name))
        if place == len(self._entries) or self._entries["name"][place] != name:
            return None
        entry = self._entries[place]
        context, steps = int(entry["context"]), int(entry["steps"])
        size = int(entry["size"])
        marks = torch.from_numpy(self._marks[steps : steps + size].astype(np.int64))
        segment = marks >> 1
        return Row(
            tuple(self._ids[context : context + int(entry["context_size"])].tolist()),
            torch.from_numpy(self._ids[steps : steps + size].astype(np.int64)),
            (marks & 1).bool(),
            segment if bool(segment.any()) else None,
        )


def _mapped(file: Path, dtype: str | np.dtype[Any]) -> np.ndarray:
    """A file as an array; an empty file cannot be mapped."""
    if file.stat().st_size == 0:
        return np.zeros(0, dtype)
    return np.memmap(file, dtype, mode="r")


def _name(prompt: Any, completion: Any) -> bytes:
    # Hexadecimal: numpy strips trailing zero bytes of raw digests.
    text = json.dumps([prompt, completion], sort_keys=True, default=dict)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest().encode()


def _write(folder: Path, template: Template, items: Iterable[Item]) -> None:
    """Write a cache beside its place and move it there whole; who comes second keeps the first."""
    made = Path(tempfile.mkdtemp(prefix=".making-", dir=folder.parent))
    try:
        count = _stream(made, template, items)
        np.save(made / "entries.npy", np.sort(_mapped(made / "entries.bin", _ENTRY), order="name"))
        (made / "entries.bin").unlink()
        (made / "summary.json").write_text(json.dumps(count))
        try:
            os.replace(made, folder)
        except OSError:
            if not (folder / "summary.json").is_file():
                raise
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _stream(made: Path, template: Template, items: Iterable[Item]) -> dict[str, int]:
    count = {"rows": 0, "tokens": 0, "cut_contexts": 0, "cut": 0, "emptied": 0, "faults": 0}
    written, before, at = 0, (), 0
    with (
        open(made / "ids.bin", "wb") as ids,
        open(made / "marks.bin", "wb") as marks,
        open(made / "entries.bin", "wb") as entries,
    ):
        for prompt, completion in items:
            encoded = template.encode(prompt, completion)
            row = encoded.row
            if row.context != before:  # answers to one prompt share its ids
                before, at = row.context, written
                ids.write(np.asarray(before, "<i4").tobytes())
                marks.write(bytes(len(before)))
                written += len(before)
            turn = torch.zeros_like(row.mask) if row.segment is None else row.segment
            size = len(row.steps)
            ids.write(row.steps.numpy().astype("<i4").tobytes())
            marks.write(
                (row.mask.long() + 2 * turn.long().clamp(max=127)).numpy().astype("u1").tobytes()
            )
            entry = (
                _name(prompt, completion),
                at,
                len(before),
                size,
                written,
            )
            entries.write(np.array([entry], _ENTRY).tobytes())
            written += size
            count["rows"] += 1
            count["tokens"] += len(before) + size
            count["cut_contexts"] += encoded.cut_context > 0
            count["cut"] += encoded.cut_steps > 0
            count["emptied"] += encoded.emptied
            count["faults"] += bool(encoded.faults)
    return count
