"""The ledger of claims: what papers say of their methods, measured at desk size.

A claim is declared in a file of ``claims/`` before it is first run: which runs in which world, one
figure, its direction and threshold, and the seeds. The result is kept with the hash of the code
that it depends on; when that code changes, the result is shown as stale. An honest miss is a
result.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from polyalign.engine.storage import make_folder, write_json_atomic
from polyalign.errors import OptionError, PolyalignError, nearest
from polyalign.methods import catalogue, named
from polyalign.studies.claims_expression import asked_of
from polyalign.studies.code import code_hash, declaration

Status = Literal["reproduced", "not reproduced", "not measurable here", "not run", "stale"]

FIELDS = {
    "claim", "methods", "figure", "direction", "threshold", "seeds", "world", "feedback", "runs",
    "measure", "unmeasurable", "tried", "steps",
}  # fmt: skip


@dataclass(frozen=True)
class Claim:
    """One declaration. ``unmeasurable`` says why there is no figure; then there are no runs.

    ``measure`` is an expression over the runs' measures (see :mod:`.claims_measures`); the
    figure is its mean over ``seeds`` seeds, and the claim holds where it is ``above`` or ``below``
    the threshold.
    """

    id: str
    claim: str
    methods: tuple[str, ...]
    figure: str = ""
    direction: Literal["above", "below"] = "above"
    threshold: float = 0.0
    seeds: int = 4
    world: Mapping[str, Any] = field(default_factory=dict)
    feedback: Mapping[str, Any] = field(default_factory=dict)
    runs: Mapping[str, Any] = field(default_factory=dict)
    measure: str = ""
    steps: int = 300
    unmeasurable: str = ""
    tried: str = ""

    @staticmethod
    def read(path: Path) -> Claim:
        """A declaration from its file; raises :class:`OptionError` naming what is wrong in it."""
        try:
            data = yaml.safe_load(path.read_text("utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            brief = str(error).splitlines()[0]
            raise OptionError(f"{path} cannot be read ({brief}).", "Mend the file.") from None
        if not isinstance(data, dict):
            raise OptionError(f"{path} holds no names with values.", "Write `claim: …` and so on.")
        for name in data:
            if name not in FIELDS:
                raise OptionError(f"{path} has a field '{name}'.", nearest(str(name), FIELDS))
        wanted = ("claim", "methods") + (
            () if data.get("unmeasurable") else ("figure", "threshold", "runs", "measure", "world")
        )
        for name in wanted:
            if name not in data:
                raise OptionError(f"{path} lacks the field '{name}'.", "Add it.")
        if data.get("direction", "above") not in ("above", "below"):
            raise OptionError(
                f"{path}: direction is {data['direction']!r}.", "It is above or below."
            )
        return Claim(path.stem, **(data | {"methods": tuple(data["methods"])}))

    @property
    def command(self) -> str:
        """What runs it."""
        return f"polyalign claims run {self.id}"

    @property
    def code(self) -> str:
        """The hash of the code and of the declaration that the figure depends on: this world, this
        feedback, these measures and methods, and all that they call.
        """
        runs = [dict(run) for run in self.runs.values()]
        runs += [run["after"] for run in runs if "after" in run]
        kinds = [given.get("kind", "pairs") for given in [self.feedback, *_each(runs, "feedback")]]
        asked = [name for _, name in asked_of(self.measure)] + list(_each(runs, "by"))
        entries = catalogue()
        methods = [run["method"] for run in runs if run.get("method") in entries]
        in_language = self.world["kind"] == "tiny_lm"
        roots = {
            f"{HERE}_runs:figure",
            f"{HERE}_worlds:{self.world['kind']}",
            *(f"{HERE}_feedback:{kind}" for kind in kinds),
            *(f"{HERE}_measures:{name}" for name in asked),
            *(declaration(entries[m]["family"], m) for m in methods),
        }
        digest = code_hash(*sorted(roots), without=() if in_language else LANGUAGE)
        own = [self.world, self.feedback, self.runs, self.measure, self.seeds, self.steps]
        text = json.dumps(own, sort_keys=True, default=str)
        return hashlib.sha256(f"{digest}{text}".encode()).hexdigest()[:16]


HERE = "polyalign.studies.claims"
LANGUAGE = (
    "polyalign.environments",
    "polyalign.policies.control",
    "polyalign.policies.language",
    "polyalign.studies.tiny_lm",
    "polyalign.worlds.tiny_lm",
)
"""What an exact world does not enter, though the code that it shares names it."""


def _each(runs: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    return [run[name] for run in runs if name in run]


@dataclass(frozen=True)
class Entry:
    """A claim with what is known of it."""

    claim: Claim
    status: Status
    value: float | None = None
    by_seed: tuple[float, ...] = ()
    seconds: float | None = None
    made: str = ""
    parts: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "id": self.claim.id,
            "methods": list(self.claim.methods),
            "claim": self.claim.claim,
            "figure": self.claim.figure,
            "direction": self.claim.direction,
            "threshold": self.claim.threshold,
            "status": self.status,
            "value": self.value,
            "by_seed": list(self.by_seed),
            "seconds": self.seconds,
            "command": self.claim.command,
            "why": self.claim.unmeasurable,
            "tried": self.claim.tried,
        }


def declared(folder: Path) -> list[Claim]:
    """All declarations of a folder, by name. Raises :class:`OptionError` where there is none."""
    files = sorted(folder.glob("*.yaml"))
    if not files:
        raise OptionError(
            f"{folder} holds no declared claim.", "Give the folder with --claims, e.g. claims."
        )
    return [Claim.read(path) for path in files]


def chosen(claims: Sequence[Claim], names: Sequence[str]) -> list[Claim]:
    """The claims of these names: ids of claims, or methods, aliases included; all without names.

    Raises :class:`OptionError` for a name that is neither.
    """
    if not names:
        return list(claims)
    found: list[Claim] = []
    for name in names:
        mine = [c for c in claims if c.id == name]
        if not mine:
            known = name
            try:
                known = named(name)[0]
            except OptionError:
                ids = {c.id for c in claims} | {m for c in claims for m in c.methods}
                if name not in ids:
                    raise OptionError(
                        f"There is no claim of '{name}'.", nearest(name, ids)
                    ) from None
            mine = [c for c in claims if known in c.methods]
        if not mine:
            raise OptionError(f"No claim of '{name}' is declared.", "See: polyalign claims list")
        found += [c for c in mine if c not in found]
    return found


def entry_of(claim: Claim, results: Path) -> Entry:
    """What is known of a claim from the results of earlier runs."""
    if claim.unmeasurable:
        return Entry(claim, "not measurable here")
    try:
        kept = json.loads((results / f"{claim.id}.json").read_text("utf-8"))
        value = float(kept["value"])
    except (OSError, ValueError, KeyError, TypeError):
        return Entry(claim, "not run")
    status: Status = "stale" if kept.get("code") != claim.code else judged(claim, value)
    return Entry(
        claim, status, value, tuple(kept["by_seed"]), kept.get("seconds"), kept.get("made", ""),
        kept.get("parts", {}),
    )  # fmt: skip


def judged(claim: Claim, value: float) -> Status:
    """Whether a figure bears a claim out."""
    holds = value > claim.threshold if claim.direction == "above" else value < claim.threshold
    return "reproduced" if holds else "not reproduced"


def run(
    claims: Sequence[Claim],
    results: Path,
    *,
    again: bool = False,
    note: Callable[[str], None] = lambda text: None,
) -> Iterator[Entry]:
    """Run what has no current result (everything with ``again``), and keep each when it is done.

    Each claim takes minutes at most, so an interrupted run loses one at most.
    """
    from polyalign.studies.claims_runs import figure

    make_folder(results)
    for number, claim in enumerate(claims, 1):
        known = entry_of(claim, results)
        if known.status in ("reproduced", "not reproduced", "not measurable here") and not again:
            yield known
            continue
        note(f"{number} of {len(claims)}: {claim.id}")
        began = time.perf_counter()
        try:
            by_seed, parts = figure(claim)
        except PolyalignError as error:
            raise type(error)(f"The claim {claim.id}: {error.what}", error.mend) from error
        value = sum(by_seed) / len(by_seed)
        write_json_atomic(
            results / f"{claim.id}.json",
            {
                "value": value,
                "by_seed": by_seed,
                "parts": parts,
                "seconds": round(time.perf_counter() - began, 1),
                "code": claim.code,
                "made": time.strftime("%Y-%m-%d", time.gmtime()),
            },
        )
        yield entry_of(claim, results)
