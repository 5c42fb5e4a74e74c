"""Use a model, and see what happened: ``evaluate``, ``sample``, ``report``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from polyalign.cli.group import epilog
from polyalign.cli.methods import Json, complete_measurement
from polyalign.cli.options import assigned
from polyalign.cli.progress import Progress, waiting
from polyalign.cli.screen import emit, note, out, results_only, say
from polyalign.errors import DataError, OptionError

Subject = Annotated[str, typer.Argument(metavar="RUN_OR_MODEL", help="A run folder or a model.")]
Sampler = Annotated[
    str | None, typer.Option(metavar="NAME", help="vllm: draw with vLLM (default: own).")
]
Condition = Annotated[
    str | None,
    typer.Option(
        metavar="VALUE",
        help="Ask a model trained on conditions for this value, or none (default: the best).",
    ),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, mps (default: the best there is).")]

EVALUATE = epilog(
    "polyalign evaluate runs/dpo --data held-out.jsonl",
    "polyalign evaluate smollm2 --data held-out.jsonl --json",
    "polyalign evaluate runs/grpo --data prompts.jsonl --judge reward.py:score --n 4",
    "polyalign evaluate runs/dpo --data prompts.jsonl --judge verifier --baseline smollm2",
    "polyalign evaluate runs/dpo --data held-out.jsonl --with likelihood-overopt k=20",
)


def evaluate(
    subject: Subject,
    hyper: Annotated[
        list[str] | None,
        typer.Argument(metavar="name=value", help="Options of the measurement in --with."),
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option("--data", "-d", help="Held-out feedback (needed).")
    ] = None,
    measurement: Annotated[
        str | None,
        typer.Option(
            "--with",
            metavar="NAME",
            help="One measurement instead: polyalign methods --only kind=measure",
            autocompletion=complete_measurement,
        ),
    ] = None,
    judge: Annotated[
        str | None, typer.Option(help="verifier, FILE.py:function, or a reward-model folder.")
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="Answers are judged against this model's (the run's start).")
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="Compare with this model (default: the run's start).")
    ] = None,
    n: Annotated[int, typer.Option(help="Answers to each prompt for the judge.")] = 1,
    samples: Annotated[
        int, typer.Option(help="Answers for the divergence from the reference; 0: none.")
    ] = 64,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens of an answer.")] = 128,
    temperature: Annotated[float, typer.Option(help="Of sampled answers.")] = 1.0,
    top_p: Annotated[float, typer.Option(help="Nucleus of sampled answers.")] = 1.0,
    limit: Annotated[int | None, typer.Option(help="Use the first N examples.")] = None,
    columns: Annotated[
        list[str] | None, typer.Option(metavar="OURS=YOURS", help="Our column and yours.")
    ] = None,
    beta: Annotated[
        float | None, typer.Option(help="Scale of the implicit reward (default: the run's).")
    ] = None,
    seed: Annotated[int, typer.Option(help="Every random choice follows from it.")] = 0,
    condition: Condition = None,
    sampler: Sampler = None,
    device: Device = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float64.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Allow code that comes with the model.")
    ] = False,
    json: Json = False,
) -> None:
    """Measure a run or a model on held-out feedback; every figure with its interval.

    Pairs give ranking accuracy and calibration, demonstrations perplexity, a judge the win rate.
    """
    from polyalign.api import evaluate as measure

    if not data:
        raise OptionError("The option 'data' is missing.", "Add --data FILE.")
    mapping = dict(assigned(text, "--columns") for text in columns or ())
    given = dict(assigned(text, "polyalign evaluate") for text in hyper or ())
    usual: dict[str, Any] = {"baseline": baseline, "n": n}
    usual |= {"temperature": temperature, "top_p": top_p}
    if measurement is not None:
        defaults = {"baseline": None, "n": 1, "temperature": 1.0, "top_p": 1.0}
        for name, value in usual.items():
            if value != defaults[name]:
                raise OptionError(
                    f"--{name.replace('_', '-')} has no effect beside --with {measurement}.",
                    "Leave it out.",
                )
        usual = {}
    with results_only(), Progress("loading") as watcher:
        found = measure(
            subject,
            data,
            method=measurement,
            hyper=given,
            judge=judge,
            reference=reference,
            samples=samples,
            max_new_tokens=max_new_tokens,
            limit=limit,
            columns=mapping or None,
            beta=beta,
            seed=seed,
            condition=condition,
            device=device,
            dtype=dtype,
            sampler=sampler,
            trust_remote_code=trust_remote_code,
            progress=watcher.progress,
            **usual,
        )
    if json:
        emit(found)
        return
    from polyalign.reports.tables import evaluation_table

    out().print(evaluation_table(found).rich())


SAMPLE = epilog(
    "polyalign sample runs/dpo 'Write a haiku about rain.'",
    "polyalign sample smollm2 'Hello!' --n 3 --temperature 0.7",
    "polyalign sample runs/dpo --prompts prompts.jsonl --json",
    "polyalign sample runs/reward-augmented 'Say hello.' --condition 7",
    "echo 'Say hello.' | polyalign sample runs/dpo",
)


def sample(
    subject: Subject,
    prompt: Annotated[
        list[str] | None, typer.Argument(help="Prompts; without any, lines of stdin.")
    ] = None,
    prompts: Annotated[
        str | None, typer.Option(metavar="FILE", help="Take the prompts of a feedback file.")
    ] = None,
    n: Annotated[int, typer.Option(help="Answers to each prompt.")] = 1,
    temperature: Annotated[float, typer.Option(help="0: the most likely tokens.")] = 1.0,
    top_p: Annotated[float, typer.Option(help="Nucleus.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Most likely tokens drawn from; 0: all.")] = 0,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens of an answer.")] = 128,
    seed: Annotated[int, typer.Option(help="Another seed, other answers.")] = 0,
    limit: Annotated[int | None, typer.Option(help="Use the first N prompts.")] = None,
    condition: Condition = None,
    sampler: Sampler = None,
    json: Json = False,
) -> None:
    """Answers of a run's model, or of any model."""
    from polyalign.api import asked_with
    from polyalign.api import sample as draw

    written = asked_with(subject, condition)
    asked = _prompts(list(prompt or ()), prompts, limit)
    with results_only(), waiting("sampling"):
        answers = draw(
            subject,
            asked,
            n=n,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            max_new_tokens=max_new_tokens,
            seed=seed,
            condition=condition,
            sampler=sampler,
        )
    if json:
        told = {} if written is None else {"condition": written}
        emit([{"prompt": p, **told, "answers": a} for p, a in zip(asked, answers, strict=True)])
        return
    if written is not None:
        note(f"asked with: {written}")
    from polyalign.feedback.payloads import text_of

    console = out()
    for question, many in zip(asked, answers, strict=True):
        for answer in many:
            if len(asked) * n > 1:
                shown = question if isinstance(question, str) else text_of(question)
                console.print(f"> {shown}", style="bold", markup=False, soft_wrap=True)
            console.print(answer, markup=False, soft_wrap=True)


def _prompts(given: list[str], file: str | None, limit: int | None) -> list[Any]:
    if file is not None:
        if given:
            raise OptionError("Prompts are given twice.", "Give words or --prompts FILE.")
        from polyalign.evaluation.api import prompts_of
        from polyalign.feedback import read

        with results_only():
            return [record.prompt for record in prompts_of(read(file, limit=limit))]
    if not given and not sys.stdin.isatty():
        given = [line.rstrip("\n") for line in sys.stdin if line.strip()]
    if not given:
        raise DataError("There is no prompt.", "Write one: polyalign sample MODEL 'your prompt'")
    return given[:limit]


REPORT = epilog(
    "polyalign report runs/dpo",
    "polyalign report runs/dpo runs/simpo --output compared.html",
)


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…", help="Run folders.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The page (default: in the first run).")
    ] = None,
    title: Annotated[str | None, typer.Option(help="Heading of the page.")] = None,
    json: Json = False,
) -> None:
    """Write a self-contained page about one run, or several side by side, and print a table."""
    from polyalign.reports.html import report as write
    from polyalign.reports.rundata import read_run
    from polyalign.reports.tables import runs_table

    with results_only(), waiting("drawing"):
        path = write(runs, output, title=title)
        shown = runs_table([read_run(run) for run in runs])
    if json:
        emit({"report": str(path), "runs": shown.to_json()})
    else:
        out().print(shown.rich())
        say(f"report: {path}")
