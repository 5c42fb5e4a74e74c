"""``polyalign methods``: what there is to choose from. Reads the index; loads no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from polyalign.cli.group import epilog, group
from polyalign.cli.options import assigned
from polyalign.cli.screen import emit, out, say, table
from polyalign.errors import OptionError, nearest
from polyalign.methods import catalogue, named, usage
from polyalign.methods.taxonomy import CONCERNS, DIMENSIONS

methods = group(
    "The methods: list them, or show one whole.",
    "polyalign methods",
    "polyalign methods --tag reference-free",
    "polyalign methods --feedback pairs --json",
    "polyalign methods --by reference",
    "polyalign methods --only data=offline --only reference=none --by objective",
    "polyalign methods show simpo",
    bare=True,
)

Json = Annotated[bool, typer.Option("--json", help="Print pure JSON on stdout.")]


def complete_method(incomplete: str) -> list[tuple[str, str]]:
    """Ids of methods that train, as typed so far, with their titles, for the shell."""
    return _completed(incomplete, "train")


def complete_measurement(incomplete: str) -> list[tuple[str, str]]:
    """Ids of methods that measure, as typed so far, with their titles, for the shell."""
    return _completed(incomplete, "measure")


def _completed(incomplete: str, kind: str) -> list[tuple[str, str]]:
    return [
        (id, entry["title"])
        for id, entry in catalogue().items()
        if id.startswith(incomplete.lower()) and entry["kind"] == kind
    ]


@methods.callback(invoke_without_command=True)
def list_methods(
    context: typer.Context,
    tag: Annotated[
        list[str] | None, typer.Option(help="Only methods with this tag (may be repeated).")
    ] = None,
    feedback: Annotated[
        str | None, typer.Option(help="Only methods that learn from this kind: pairs, …")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="DIMENSION=VALUE", help="Only methods with this value (repeatable)."),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(metavar="DIMENSION", help=f"Group by one of: {', '.join(DIMENSIONS)}."),
    ] = None,
    json: Json = False,
) -> None:
    """The methods: list them, or show one whole."""
    if context.invoked_subcommand is not None:
        return
    entries = catalogue()
    tags = {t for entry in entries.values() for t in entry.get("tags", ())}
    kinds = {entry["feedback"] for entry in entries.values() if "feedback" in entry}
    for wanted in tag or ():
        if wanted not in tags:
            raise OptionError(f"No method has the tag '{wanted}'.", nearest(wanted, tags))
    if feedback is not None and feedback not in kinds:
        raise OptionError(f"No method learns from '{feedback}'.", nearest(feedback, kinds))
    chosen = {
        id: entry
        for id, entry in entries.items()
        if set(tag or ()) <= set(entry.get("tags", ()))
        and feedback in (None, entry.get("feedback"))
    }
    for text in only or ():
        chosen = _only(chosen, entries, *assigned(text, "--only"))
    if by is not None:
        _grouped(chosen, by, json)
        return
    if json:
        emit([{"id": id, **entry} for id, entry in chosen.items()])
        return
    _listed(chosen)
    say(f"\n{_count(chosen)}. More of one: polyalign methods show NAME")


Entries = Mapping[str, Mapping[str, Any]]


def _values(entry: Mapping[str, Any], dimension: str) -> list[str]:
    """What a method is in one of the taxonomy's dimensions; unknown for what is not loaded."""
    found = entry.get("tags") if dimension == "tag" else entry.get("taxonomy", {}).get(dimension)
    return list(found or ())


def _known(dimension: str) -> str:
    if dimension not in DIMENSIONS:
        raise OptionError(
            f"Methods are not told apart by '{dimension}'.", nearest(dimension, DIMENSIONS)
        )
    return dimension


def _only(chosen: Entries, entries: Entries, dimension: str, value: str) -> dict[str, Any]:
    _known(dimension)
    values = {v for entry in entries.values() for v in _values(entry, dimension)}
    if value not in values:
        raise OptionError(f"No method has {dimension}={value}.", nearest(value, values))
    return {id: entry for id, entry in chosen.items() if value in _values(entry, dimension)}


def _grouped(chosen: Entries, by: str, json: bool) -> None:
    """The methods under each value of a dimension; one with several values stands under each."""
    _known(by)
    values = sorted({v for entry in chosen.values() for v in _values(entry, by)})
    groups = {v: {i: e for i, e in chosen.items() if v in _values(e, by)} for v in values}
    if json:
        emit({v: [{"id": id, **e} for id, e in part.items()] for v, part in groups.items()})
        return
    say(f"{by}: {DIMENSIONS[by]}")
    for value, members in groups.items():
        told = CONCERNS.get(value) if by == "concern" else None
        say(f"\n{value}{f' ({told})' if told else ''}: {_count(members)}")
        _listed(members)


def _count(entries: Entries) -> str:
    return f"{len(entries)} method{'' if len(entries) == 1 else 's'}"


def _listed(entries: Entries) -> None:
    rows = [
        (
            id,
            entry.get("feedback", ""),
            "reference" if entry.get("needs", {}).get("references") else "",
            entry["title"],
            ", ".join(entry.get("tags", ())),
        )
        for id, entry in entries.items()
    ]
    table(["method", "reads", "keeps a", "what it does", "tags"], rows)


@methods.command(epilog=epilog("polyalign methods show dpo", "polyalign methods show grpo --json"))
def show(
    name: Annotated[
        str, typer.Argument(help="A method's id or alias.", autocompletion=complete_method)
    ],
    json: Json = False,
) -> None:
    """One method: formula, when to use it, options with their bounds, the paper."""
    id, entry = named(name)
    if json:
        emit({"id": id, **entry})
        return
    from rich.text import Text

    console = out()
    console.print(Text(id, style="bold"), Text(entry["title"]))
    body = entry.get("doc", "").removeprefix(entry["title"]).strip()
    for part in paragraphs(body):
        label, colon, rest = part.partition(":")
        console.print()
        if colon and label in LABELS:
            console.print(Text(f"{label}: ", style="bold").append(rest.strip(), style="not bold"))
        else:
            console.print(Text(part))
    reads = "learns from" if entry["kind"] == "train" else "reads"
    facts = [(reads, entry.get("feedback", "")), *_needs(entry)]
    facts += [(n, ", ".join(v)) for n, v in entry.get("taxonomy", {}).items() if n in TOLD]
    if entry.get("aliases"):
        facts.append(("also called", ", ".join(entry["aliases"])))
    if entry.get("tags"):
        facts.append(("tags", ", ".join(entry["tags"])))
    if entry.get("arxiv"):
        facts.append(("paper", f"https://arxiv.org/abs/{entry['arxiv']}"))
    console.print()
    for fact, value in facts:
        console.print(Text(f"{fact}: ", style="bold").append(value, style="not bold"))
    hyper = entry.get("hyper", {})
    if hyper:
        console.print()
        table(
            ["option", "default", "type and bounds"],
            [(n, spelled(spec.get("default")), bounds(spec)) for n, spec in hyper.items()],
        )
    if entry.get("arrays"):
        console.print()
        table([f'in polyalign.objective("{id}")', "shape", "what it is"], entry["arrays"])
    example = next((f" {n}={spelled(s['default'])}" for n, s in hyper.items()), "")
    say(f"\n{usage(id, entry)}{example}")


TOLD = ("objective", "link", "margin", "regularisation", "concern")
"""Dimensions of the taxonomy that one method's page tells beside the rest."""

LABELS = ("Formula", "When", "When not", "Limits", "Deviations", "Source")


def paragraphs(doc: str) -> list[str]:
    r"""A declaration's text, cut where a label begins; lines are joined.

    >>> paragraphs("Formula: `a`\nor b. When: always. When not: never.")
    ['Formula: `a` or b.', 'When: always.', 'When not: never.']
    """
    joined = " ".join(doc.split())
    labels = "|".join(sorted(LABELS, key=len, reverse=True))
    return [part.strip() for part in re.split(rf"(?<=[.:;)`]) (?=(?:{labels}):)", joined) if part]


def bounds(spec: Mapping[str, Any]) -> str:
    """A JSON schema in words.

    >>> bounds({"type": "number", "minimum": 0, "exclusiveMaximum": 0.5})
    'number >= 0, < 0.5'
    """
    if "anyOf" in spec:
        return " or ".join(bounds(one) for one in spec["anyOf"])
    if spec.get("type") == "array":
        return f"{bounds(spec['items'])}; several with commas"
    if "enum" in spec:
        return " | ".join(map(str, spec["enum"]))
    if "const" in spec:
        return str(spec["const"])
    words = {
        "minimum": ">=",
        "exclusiveMinimum": ">",
        "maximum": "<=",
        "exclusiveMaximum": "<",
    }
    kind = {"null": "none", "boolean": "true | false"}.get(spec.get("type", ""), spec.get("type"))
    limits = ", ".join(f"{sign} {spec[name]:g}" for name, sign in words.items() if name in spec)
    return f"{kind or 'any'} {limits}".strip()


def spelled(value: Any) -> str:
    """A value as it is typed after name=."""
    if isinstance(value, list):
        return ",".join(map(spelled, value)) or "none"
    return (
        "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )


def _needs(entry: Mapping[str, Any]) -> list[tuple[str, str]]:
    needs = entry.get("needs", {})
    facts = []
    if needs.get("references"):
        facts.append(("reference models", ", ".join(needs["references"])))
    if needs.get("modules"):
        facts.append(("trains beside the policy", ", ".join(needs["modules"])))
    if needs.get("couples") == "batch":
        facts.append(("couples", "the examples of a step with each other"))
    if entry.get("stages", 1) > 1:
        facts.append(("stages", str(entry["stages"])))
    return facts
