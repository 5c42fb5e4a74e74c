"""What a comparison is: declared before anything runs, as plain data.

Every finished part of it (a *cell*: one row at one seed) is kept under the hash of what it depends
on, so an interrupted comparison goes on where it was, on another machine too, and a changed one
runs only what has changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import polyalign
from polyalign.errors import OptionError, nearest
from polyalign.methods import catalogue, get
from polyalign.studies.code import code_hash, declaration

Kind = Literal["base", "train", "shuffled", "again"]
IMITATION = "sft"
MEASURES = ("score", "win", "ranking", "ranking_mean", "perplexity", "reward")
"""What a comparison may be decided by; "reward" in the worlds."""


@dataclass(frozen=True)
class Row:
    """One row of the comparison: a method at its options, or a control."""

    label: str
    kind: Kind
    method: str = ""
    hyper: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Setup:
    """A whole comparison. ``budget``: tokens computed by each training run at most.

    ``data`` and ``eval_data`` are sources of feedback; without the second, ``test`` of the
    prompts are held out. ``share`` of the training data is used. ``world`` names an exact world
    in place of model and data. ``prompts`` held-out prompts are answered ``answers`` times each
    (the base ``best_of`` times). ``search``: values by option name, tried on a part of the
    budget. ``train``: further options of ``train``.
    """

    rows: tuple[Row, ...]
    seeds: tuple[int, ...]
    budget: int
    primary: str
    model: str = ""
    data: tuple[str, ...] = ()
    eval_data: tuple[str, ...] = ()
    world: str = ""
    judge: str | None = None
    texts: bool = True
    limit: int | None = None
    test: float = 0.2
    share: float = 1.0
    prompts: int = 64
    answers: int = 1
    best_of: int = 4
    temperature: float = 1.0
    max_new_tokens: int = 128
    search: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)
    fingerprints: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data that :meth:`from_json` reads back."""
        return dict(json.loads(json.dumps(asdict(self))))

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Setup:
        """A setup from its plain data."""
        rows = tuple(Row(**row) for row in data["rows"])
        lists = {n: tuple(data[n]) for n in ("seeds", "data", "eval_data")}
        search = {name: tuple(values) for name, values in data["search"].items()}
        return Setup(**{**data, **lists, "rows": rows, "search": search})


@dataclass(frozen=True)
class Job:
    """One cell to compute: a row of a setup at one seed."""

    setup: Setup
    row: Row
    seed: int

    @property
    def key(self) -> str:
        """The hash of everything that the cell's figures depend on."""
        whole = self.setup.to_json()
        # Files are known by their fingerprints: they may lie elsewhere on another machine.
        for name in ("rows", "seeds", "primary", "model", "data", "eval_data", "judge"):
            del whole[name]
        if self.row.kind == "base":
            for name in ("budget", "search"):
                del whole[name]
        else:
            del whole["best_of"]
        method = self.row.method.replace("\\", "/").rpartition("/")[2]
        row = {"kind": self.row.kind, "method": method, "hyper": dict(self.row.hyper)}
        parts = {
            "setup": whole,
            "row": row,
            "seed": 0 if self.row.kind == "base" else self.seed,
            "version": polyalign.__version__,
            "code": _code(*self.roots),
        }
        text = json.dumps(parts, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:24]

    @property
    def roots(self) -> list[str]:
        """The code that can change the figures, as :func:`.code.code_hash` takes it."""
        cell = "compare_world:run_world_cell" if self.setup.world else "compare_cell:run_cell"
        found = [f"polyalign.studies.{cell}"]
        if self.row.method:
            file, _, _ = self.row.method.rpartition(":")
            family = catalogue().get(self.row.method, {}).get("family")
            if file.endswith(".py"):
                found.append(file)
            elif family is not None:
                found.append(declaration(family, self.row.method))
        return found


@cache
def _code(*roots: str) -> str:
    """The hash of roots, found once a process."""
    return code_hash(*roots)


def jobs_of(setup: Setup) -> list[Job]:
    """All cells of a setup, the base first: the others are compared with it.

    The shuffled control runs once; the first method's repetition has a seed of its own.
    """
    jobs: list[Job] = []
    for row in sorted(setup.rows, key=lambda row: row.kind != "base"):
        match row.kind:
            case "base" | "shuffled":
                jobs.append(Job(setup, row, setup.seeds[0]))
            case "again":
                jobs.append(Job(setup, row, max(setup.seeds) + 1))
            case _:
                jobs += [Job(setup, row, seed) for seed in setup.seeds]
    return jobs


def rows_of(methods: Sequence[str]) -> tuple[Row, ...]:
    """The rows that ``METHOD[:name=value,…]`` texts ask for, and those that are always there.

    Raises :class:`OptionError` for an unknown method, a wrong option, or a row named twice.
    """
    if not methods:
        raise OptionError("A comparison needs a METHOD.", "See: polyalign methods")
    asked = [_row(text) for text in methods]
    labels = [row.label for row in asked]
    for label in labels:
        if labels.count(label) > 1:
            raise OptionError(f"The comparison names '{label}' twice.", "Leave one out.")
    first = asked[0]
    rows = [Row("base", "base", note="the model that every method starts from"), *asked]
    if not any(row.method == IMITATION and not row.hyper for row in asked):
        note = "imitates the better answers"
        rows.append(Row(f"{IMITATION} on chosen", "train", IMITATION, note=note))
    rows.append(
        Row(
            f"{first.label}, shuffled labels",
            "shuffled",
            first.method,
            first.hyper,
            "the same method on labels that say nothing: what it gains here is no learning",
        )
    )
    rows.append(
        Row(
            f"{first.label}, again",
            "again",
            first.method,
            first.hyper,
            "the same method with another seed: what luck alone changes",
        )
    )
    return tuple(rows)


def _row(text: str) -> Row:
    """``beta=0.3``-like options stand after a colon; a file's function has its own colon."""
    name, options = text, ""
    head, colon, tail = text.rpartition(":")
    if colon and not head.endswith(".py"):
        name, options = head, tail
    declaration = get(name)
    hyper = {}
    for part in filter(None, (p.strip() for p in options.split(","))):
        key, equals, value = part.partition("=")
        if not equals:
            raise OptionError(
                f"'{text}': '{part}' is not name=value.", "Write METHOD:name=value,name=value."
            )
        hyper[key.strip()] = value.strip()
    declaration.validate(hyper)
    id = name if ".py:" in name else declaration.id
    label = declaration.id + "".join(f" {key}={value}" for key, value in hyper.items())
    return Row(label, "train", id, hyper)


def parse_budget(text: str | int) -> int:
    """A number of tokens: ``200000``, ``200k``, ``2M``.

    >>> parse_budget("1.5M"), parse_budget("20k")
    (1500000, 20000)
    """
    if isinstance(text, int):
        value = float(text)
    else:
        scale = {"k": 1e3, "m": 1e6, "g": 1e9}.get(text.strip()[-1:].lower(), 1.0)
        digits = text.strip()[:-1] if scale > 1 else text.strip()
        try:
            value = float(digits) * scale
        except ValueError:
            value = 0.0
    if not value >= 1:
        raise OptionError(f"The budget {text!r} is no number of tokens.", "For example 200k or 2M.")
    return int(value)


def parse_search(texts: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """``lr=1e-5,1e-4`` as values by option; numbers are read as numbers."""
    out: dict[str, tuple[Any, ...]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        parts = [v.strip() for v in values.split(",") if v.strip()]
        if not equals or not parts:
            raise OptionError(f"--search {text} names no values.", "Write --search lr=1e-5,1e-4")
        out[name.strip()] = tuple(_number(part) for part in parts)
    return out


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def check_primary(primary: str | None, has: Mapping[str, bool]) -> str:
    """The measure that decides, named before anything runs; a default where none was given."""
    possible = [name for name, there in has.items() if there]
    if primary is None:
        if not possible:
            raise OptionError(
                "Nothing of the held-out data can be measured.",
                "Give --eval-data with pairs or demonstrations, or a --judge.",
            )
        return possible[0]
    if primary not in MEASURES:
        raise OptionError(f"There is no measure '{primary}'.", nearest(primary, MEASURES))
    if primary not in possible:
        raise OptionError(
            f"The measure '{primary}' cannot be taken of these held-out data.",
            f"Possible: {', '.join(possible) or 'none'}.",
        )
    return primary


def judge_fingerprint(judge: str | None) -> str:
    """What a judge's verdicts depend on, as far as files tell: a function's file, a folder's
    config.
    """
    if judge is None:
        return ""
    place, _, name = judge.rpartition(":")
    file = Path(place).expanduser()
    if file.suffix == ".py" and file.is_file():
        return f"{hashlib.sha256(file.read_bytes()).hexdigest()[:16]}:{name}"
    folder = Path(judge).expanduser()
    if folder.is_dir():
        from polyalign.runs.plan import fingerprint

        return fingerprint(folder)
    return judge
