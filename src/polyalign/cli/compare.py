"""``polyalign compare``: methods at one budget, side by side, with how sure one can be."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from polyalign.cli.group import epilog
from polyalign.cli.methods import Json, complete_method
from polyalign.cli.progress import Progress
from polyalign.cli.screen import emit, results_only, say, table
from polyalign.errors import OptionError

EXAMPLES = epilog(
    "polyalign compare dpo simpo kto -m smollm2 -d pairs.jsonl -o compared --budget 500k",
    "polyalign compare dpo dpo:beta=0.5 -m smollm2 -d pairs.jsonl -o compared --seeds 3",
    "polyalign compare dpo orpo -m smollm2 -d pairs.jsonl --eval-data prompts.jsonl "
    "--judge verifier -o compared",
    "polyalign compare dpo ipo kto --world bandit -o compared --seeds 3",
)


def compare(
    methods: Annotated[
        list[str],
        typer.Argument(
            metavar="METHOD…",
            help="Ids, aliases or FILE.py:function, each with options as METHOD:beta=0.2,lam=1.",
            autocompletion=complete_method,
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder; an interrupted comparison goes on.")
    ],
    model: Annotated[str, typer.Option("--model", "-m", help="What every method starts from.")] = (
        ""
    ),
    data: Annotated[
        list[str] | None, typer.Option("--data", "-d", help="Feedback to learn from.")
    ] = None,
    eval_data: Annotated[
        list[str] | None,
        typer.Option(help="Held-out pairs, prompts or demonstrations (default: a part of --data)."),
    ] = None,
    world: Annotated[
        str, typer.Option(metavar="NAME", help="Compare in an exact world, without a model.")
    ] = "",
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="TOKENS",
            help="Computed tokens of each run: 200k, 2M (default: two passes over the data).",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Runs of each method.")] = 1,
    judge: Annotated[
        str | None,
        typer.Option(help="verifier, FILE.py:function, reward-model folder, or endpoint:MODEL@URL"),
    ] = None,
    primary: Annotated[
        str | None,
        typer.Option(
            metavar="MEASURE", help="What decides: score, win, ranking, ranking_mean, perplexity."
        ),
    ] = None,
    search: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=V,V", help="Values to try, on half of the budget."),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="A ready design: with-sft, sizes (see the docs)."),
    ] = None,
    instruct: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="A further start for --protocol with-sft."),
    ] = None,
    no_texts: Annotated[
        bool, typer.Option("--no-texts", help="Leave prompts and answers out of all that is kept.")
    ] = False,
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Run on a Ray cluster; local starts one here."),
    ] = None,
    prompts: Annotated[int, typer.Option(help="Held-out prompts that are answered.")] = 64,
    answers: Annotated[int, typer.Option(help="Answers to each of them.")] = 1,
    best_of: Annotated[int, typer.Option(help="Answers of the base to choose from.")] = 4,
    temperature: Annotated[float, typer.Option(help="Of sampled answers.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens of an answer.")] = 128,
    test: Annotated[
        float, typer.Option(help="Share of prompts held out without --eval-data.")
    ] = 0.2,
    limit: Annotated[int | None, typer.Option(help="Use the first N examples.")] = None,
    batch: Annotated[int | None, typer.Option(help="Examples in one optimizer step.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate of all methods.")] = None,
    full: Annotated[
        bool | None, typer.Option("--full/--no-full", help="Train all weights, or adapters.")
    ] = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens of prompt and answer.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float64.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, mps.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    title: Annotated[str | None, typer.Option(help="Heading of the report.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, show what would be computed.")
    ] = False,
    json: Json = False,
) -> None:
    """Compare methods from one start, on one data order, at an equal budget of computed tokens.

    Always along: the base, SFT on chosen, best of n of the base, shuffled labels, and the first
    method again with another seed. The report names no winner inside noise.
    """
    given: dict[str, Any] = {
        "batch": batch,
        "lr": lr,
        "full": full,
        "max_length": max_length,
        "dtype": dtype,
        "device": device,
        "threads": threads,
    }
    options: dict[str, Any] = {
        "model": model,
        "data": data or (),
        "eval_data": eval_data or (),
        "world": world,
        "budget": budget,
        "seeds": seeds,
        "judge": judge,
        "primary": primary,
        "texts": not no_texts,
        "search": search or (),
        "ray": ray,
        "title": title,
        "prompts": prompts,
        "answers": answers,
        "best_of": best_of,
        "temperature": temperature,
        "max_new_tokens": max_new_tokens,
        "test": test,
        "limit": limit,
        **{name: value for name, value in given.items() if value is not None},
    }
    if dry_run and protocol is not None:
        raise OptionError(
            "--dry-run shows one comparison, and a protocol has several.",
            "Leave one of the two out.",
        )
    if protocol is not None:
        from polyalign.studies.compare_protocols import follow

        with results_only(), Progress("comparing") as watcher:
            found = follow(
                protocol, methods, output=output, instruct=instruct, watcher=watcher, **options
            )
        if json:
            emit(found)
            return
        for part in found:
            say(f"\n{part['title']}")
            show(part["result"])
            say(f"report: {part['folder']}/report.html")
        say(f"\nall side by side: {output / 'report.html'}")
        return
    if instruct is not None:
        raise OptionError(
            "--instruct is a further start of a protocol.", "Add --protocol with-sft."
        )
    from polyalign.studies.compare import compare as run

    with results_only(), Progress("comparing") as watcher:
        result = run(methods, output=output, watcher=watcher, dry_run=dry_run, **options)
    if json:
        emit(result)
        return
    if dry_run:
        foresee(result)
        return
    show(result)
    say(f"\nreport: {output / 'report.html'}")


def foresee(plan: dict[str, Any]) -> None:
    """What would be computed, as a table and in words."""
    cells = plan["cells"]
    rows = [
        [label, str(len(mine)), str(sum(cell["done"] for cell in mine))]
        for label in dict.fromkeys(cell["row"] for cell in cells)
        for mine in [[cell for cell in cells if cell["row"] == label]]
    ]
    table(["row", "runs", "done already"], rows)
    say(f"\nprimary measure: {plan['primary']}, named before anything runs")
    say(f"at most {plan['tokens']:,} tokens to compute in training ({plan['budget']:,} a run)")


def show(result: dict[str, Any]) -> None:
    """The primary measure as a table, and the summary in words."""
    from polyalign.reports import compare_page

    name = result["primary"]
    rows = []
    for row, line in zip(result["rows"], compare_page.table(result), strict=True):
        found = row["measures"].get(name) or {}
        rows.append(
            [row["label"], line["cells"][0]["text"], found.get("verdict", ""), line["note"]]
        )
    table(["row", result["measures"][name]["label"], "against the base", ""], rows)
    say("")
    say(compare_page.headline(result))
    for part in result["words"].values():
        for sentence in part:
            say(f"- {sentence}")
