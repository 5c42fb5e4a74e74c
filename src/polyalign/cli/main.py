"""The command ``polyalign``: parse, call, print. Mistakes become one sentence and its mend."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from polyalign.cli import bring, use
from polyalign.cli.claims import claims
from polyalign.cli.compare import EXAMPLES as COMPARE
from polyalign.cli.compare import compare
from polyalign.cli.data import data
from polyalign.cli.doctor import doctor
from polyalign.cli.faults import explain
from polyalign.cli.group import epilog, group
from polyalign.cli.lab import LAB, lab
from polyalign.cli.methods import methods
from polyalign.cli.model import model
from polyalign.cli.recommend import EXAMPLES as RECOMMEND
from polyalign.cli.recommend import recommend
from polyalign.cli.screen import (
    first_process,
    mistake,
    one_line_warnings,
    screen,
    silence_libraries,
)
from polyalign.cli.train import EXAMPLES, Train, train
from polyalign.errors import Elsewhere, Interrupted

PROGRAM = "polyalign"
COMPLETE = "_POLYALIGN_COMPLETE"
ANYWHERE = ("--debug", "--quiet")
"""Global options that may also stand after the command."""

app = group(
    "Turn feedback into a better policy: every published alignment method, on one engine.",
    "polyalign doctor",
    "polyalign model get smollm2",
    "polyalign data check pairs.jsonl",
    "polyalign methods --feedback pairs",
    "polyalign train dpo --model smollm2 --data pairs.jsonl --output runs/dpo beta=0.2",
    "polyalign evaluate runs/dpo --data held-out.jsonl",
    "polyalign sample runs/dpo 'Say hello.'",
    name=PROGRAM,
)


def _version(asked: bool) -> None:
    if asked:
        from polyalign import __version__

        typer.echo(f"{PROGRAM} {__version__}")
        raise typer.Exit


@app.callback()
def global_options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of mistakes.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Print results and mistakes only.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Turn feedback into a better policy: every published alignment method, on one engine."""
    screen.debug, screen.quiet = debug, quiet or not first_process()


app.command("doctor", epilog=epilog("polyalign doctor", "polyalign doctor --json"))(doctor)
app.add_typer(methods, name="methods")
app.add_typer(model, name="model")
app.add_typer(data, name="data")
app.command("recommend", epilog=RECOMMEND)(recommend)
app.command("train", cls=Train, epilog=EXAMPLES)(train)
app.command("compare", epilog=COMPARE)(compare)
app.command("import-config", epilog=bring.IMPORT)(bring.import_config)
app.command("evaluate", epilog=use.EVALUATE)(use.evaluate)
app.command("sample", epilog=use.SAMPLE)(use.sample)
app.command("report", epilog=use.REPORT)(use.report)
app.command("lab", epilog=LAB)(lab)
app.add_typer(claims, name="claims")
app.command("completion", epilog=bring.COMPLETION)(bring.completion)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    front = [option for option in ANYWHERE if option in arguments]
    arguments = front + [word for word in arguments if word not in ANYWHERE]
    screen.debug = "--debug" in front
    screen.quiet = "--quiet" in front or not first_process()
    silence_libraries()
    _complete_and_leave()
    command = typer.main.get_command(app)
    with one_line_warnings():
        try:
            status = command.main(
                arguments, prog_name=PROGRAM, complete_var=COMPLETE, standalone_mode=False
            )
        except BaseException as error:
            return _told(error)
    return status if isinstance(status, int) else 0


def _told(error: BaseException) -> int:
    if isinstance(error, (SystemExit, GeneratorExit)):
        raise error
    if type(error).__name__ == "NoArgsIsHelpError":
        typer.echo(error.format_message(), err=True)  # type: ignore[attr-defined]
        return 2
    if screen.debug:
        traceback.print_exception(error)
    fault = explain(error)
    if first_process() or not isinstance(error, (Elsewhere, Interrupted)):
        mistake(fault.what, fault.mend)
    return fault.status


def _complete_and_leave() -> None:
    """Register the shells, so that a completion request is answered; nothing else is done then."""
    if COMPLETE in os.environ:
        from typer.completion import completion_init  # type: ignore[attr-defined]

        completion_init()
