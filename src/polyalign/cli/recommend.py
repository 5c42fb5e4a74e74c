"""``polyalign recommend``: which methods fit this feedback, why, and what that cannot know."""

from __future__ import annotations

from typing import Annotated

import typer

from polyalign.cli.group import epilog
from polyalign.cli.methods import Json
from polyalign.cli.options import assigned
from polyalign.cli.progress import waiting
from polyalign.cli.screen import emit, results_only, say, table

EXAMPLES = epilog(
    "polyalign recommend --data pairs.jsonl",
    "polyalign recommend --data pairs.jsonl --model smollm2 --budget 500k",
)


def recommend(
    data: Annotated[list[str], typer.Option("--data", "-d", help="Your feedback.")],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Adds memory and a probe of this model.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(metavar="TOKENS", help="What you can compute: 200k, 2M.")
    ] = None,
    judge: Annotated[
        bool, typer.Option("--judge", help="A judge is at hand, so online methods come in.")
    ] = False,
    columns: Annotated[
        list[str] | None, typer.Option(metavar="OURS=YOURS", help="Our column and yours.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Look at the first N examples.")] = None,
    json: Json = False,
) -> None:
    """Which methods fit this feedback and why: nothing is trained, and nobody is named a winner."""
    from polyalign.studies.compare_setup import parse_budget
    from polyalign.studies.recommend import recommend as advise

    with results_only(), waiting("looking"):
        found = advise(
            data,
            model=model,
            budget=None if budget is None else parse_budget(budget),
            columns=dict(assigned(text, "--columns") for text in columns or ()) or None,
            limit=limit,
            judge=judge,
        )
    if json:
        emit(found)
        return
    for line in found["seen"]:
        say(line)
    say("")
    table(
        ["method", "why", "mind", "feedback"],
        [
            [a["id"], "; ".join(a["reasons"]), "; ".join(a["against"]), a["route"]]
            for a in found["recommended"]
        ],
    )
    say("")
    if found["also"]:
        say(f"These fit too: {', '.join(a['id'] for a in found['also'])}.")
    if found["missing"]:
        lacking = ", ".join(f"{a['id']} ({' and '.join(a['needs'])})" for a in found["missing"])
        say(f"These lack something: {lacking}.")
    for kind, ids in found["unfit"].items():
        say(f"These learn from {kind}, which the data are not: {', '.join(ids)}.")
    say("\nWhat this cannot know:")
    for line in found["unknown"]:
        say(f"- {line}")
    if found["next"]:
        say(f"\nCompare them: {found['next']}")
