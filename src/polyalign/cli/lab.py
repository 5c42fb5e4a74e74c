"""The laboratory on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from polyalign.cli.group import epilog
from polyalign.cli.methods import Json
from polyalign.cli.options import assigned
from polyalign.cli.progress import Progress
from polyalign.cli.screen import emit, out, results_only, say, table
from polyalign.errors import OptionError

LAB = epilog(
    "polyalign lab dpo ipo",
    "polyalign lab dpo beta=2 --world sequences",
    "polyalign lab --all --json",
)


def lab(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="METHOD… [NAME=VALUE]…", help="Methods, and options for them."),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Every method that has a world.")] = False,
    world: Annotated[
        str | None,
        typer.Option(help="bandit, loglinear, sequences, lqr, tiny_lm (default: its own)."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Page with the curves (lab.html for named methods)."),
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the table for a documentation page.")
    ] = False,
    json: Json = False,
) -> None:
    """Train methods in small exact worlds and measure how far they end from what theory says.

    The exit status is 1 when one of them misses its tolerance.
    """
    given = names or []
    methods = [name for name in given if "=" not in name]
    hyper = dict(assigned(name, "lab") for name in given if "=" in name)
    if bool(methods) == every:
        raise OptionError(
            "lab was given no method." if not methods else "lab was given methods and --all.",
            "Name methods, or give --all: polyalign lab dpo, polyalign lab --all.",
        )
    from polyalign.studies.experiments import lab as perform

    plain = json or markdown
    page = output or (None if plain or every else Path("lab.html"))
    refused: dict[str, str] = {}
    with results_only(), Progress() as bars:
        rows = perform(
            methods,
            world=world,
            hyper=hyper,
            sweep=page is not None,
            refused=refused if every else None,
            progress=lambda name, done, total: bars.progress("methods tried", done, total),
        )
    for name, why in refused.items():
        say(f"not tried: {name}. {why}")
    from polyalign.reports import lab as shown

    if json:
        emit(rows)
    elif markdown:
        out().print(shown.markdown(rows), markup=False, highlight=False, soft_wrap=True, end="")
    else:
        table(
            [*shown.HEADS, "seconds"],
            [[*shown.cells(row), row["seconds"]] for row in rows],
            right=[*shown.HEADS[3:], "seconds"],
        )
    if page is not None:
        say(f"page: {shown.write_page(rows, page)}")
    if not all(row["reached"] for row in rows):
        raise typer.Exit(1)
