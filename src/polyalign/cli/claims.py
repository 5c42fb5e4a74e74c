"""``polyalign claims``: what papers say of their methods, measured at desk size."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polyalign.cli.group import epilog, group
from polyalign.cli.methods import Json
from polyalign.cli.screen import emit, note, results_only, say, table

if TYPE_CHECKING:
    from polyalign.studies.claims import Entry

claims = group(
    "What papers claim of their methods, declared before it is measured.",
    "polyalign claims list",
    "polyalign claims run simpo",
    "polyalign claims run",
    name="claims",
)

Folder = Annotated[Path, typer.Option("--claims", help="Folder of declarations.")]


@claims.command("list", epilog=epilog("polyalign claims list", "polyalign claims list --json"))
def show(folder: Folder = Path("claims"), json: Json = False) -> None:
    """Every declared claim with its figure; stale ones were measured with other code."""
    from polyalign.studies.claims import declared, entry_of

    entries = [entry_of(claim, folder / "results") for claim in declared(folder)]
    if json:
        emit([entry.to_json() for entry in entries])
        return
    _table(entries)


@claims.command("run", epilog=epilog("polyalign claims run", "polyalign claims run simpo --again"))
def run(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[METHOD…]", help="Methods or claims; all.")
    ] = None,
    folder: Folder = Path("claims"),
    again: Annotated[
        bool, typer.Option("--again", help="Run what has a current result too.")
    ] = False,
    json: Json = False,
) -> None:
    """Measure what has no current figure; an interrupted run goes on where it was.

    The exit status is 0 whatever the figures say: a miss is a result.
    """
    from polyalign.studies.claims import chosen, declared
    from polyalign.studies.claims import run as measure

    picked = chosen(declared(folder), names or ())
    with results_only():
        entries = list(measure(picked, folder / "results", again=again, note=note))
    if json:
        emit([entry.to_json() for entry in entries])
        return
    _table(entries)


@claims.command(
    "page", epilog=epilog("polyalign claims page", "polyalign claims page -o claims.md")
)
def page(
    output: Annotated[Path, typer.Option("--output", "-o")] = Path("docs/claims.md"),
    folder: Folder = Path("claims"),
) -> None:
    """Write the page of all held methods and their claims."""
    from polyalign.engine.storage import write_text_atomic
    from polyalign.studies.claims_page import render

    write_text_atomic(output, render(folder))
    say(f"{output}")


def _table(entries: list[Entry]) -> None:
    table(
        ["claim", "status", "figure", "", "threshold", "seconds", "of what"],
        [
            [
                entry.claim.id,
                entry.status,
                entry.value,
                "" if entry.claim.unmeasurable else {"above": ">", "below": "<"}[
                    entry.claim.direction
                ],
                None if entry.claim.unmeasurable else float(entry.claim.threshold),
                entry.seconds,
                entry.claim.unmeasurable or entry.claim.figure,
            ]
            for entry in entries
        ],
        right=["figure", "threshold", "seconds"],
    )  # fmt: skip
