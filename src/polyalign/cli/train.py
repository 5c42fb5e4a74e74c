"""``polyalign train``: align a model with a method; also checks a plan and continues a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from polyalign.cli.group import epilog
from polyalign.cli.methods import Json, complete_method
from polyalign.cli.options import assigned, near_option, read_yaml, values_of, with_flags
from polyalign.cli.progress import Progress, span
from polyalign.cli.screen import emit, figure, first_process, note, results_only, say, table
from polyalign.errors import OptionError, RunError

EXAMPLES = epilog(
    "polyalign train dpo -m smollm2 -d pairs.jsonl -o runs/dpo",
    "polyalign train simpo -m smollm2 -d pairs.jsonl -o runs/simpo beta=2 --lr 5e-6 --epochs 2",
    "polyalign train grpo -m smollm2 -d prompts.jsonl -o runs/grpo --judge reward.py:score",
    "polyalign train --config run.yaml --seed 1 -o runs/again",
    "polyalign train dpo -m smollm2 -d pairs.jsonl -o runs/dpo --dry-run",
    "polyalign train --resume runs/dpo",
)


class Train(TyperCommand):
    """The command, which looks an unknown flag up among the method's options too."""

    def near(self, option: str, context: Any) -> str:
        """A mend for a flag that is not there, or nothing."""
        return near_option(option, next((a for a in context.args if "=" not in a), None))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        # Kept for `near`: when an option is unknown, the parser has not named the method yet.
        ctx.args = [arg for arg in args[:1] if not arg.startswith("-")]
        return super().parse_args(ctx, args)


@with_flags
def train(
    method: Annotated[
        str | None,
        typer.Argument(
            metavar="METHOD",
            help="Id, alias, or FILE.py:function; see polyalign methods.",
            autocompletion=complete_method,
        ),
    ] = None,
    hyper: Annotated[
        list[str] | None,
        typer.Argument(metavar="name=value", help="The method's options, e.g. beta=0.2"),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE.yaml", help="Read options from a file first.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print the plan, and stop.")
    ] = False,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Continue the run in this folder.")
    ] = None,
    replan: Annotated[
        bool,
        typer.Option("--replan", help="Continue although the plan has changed (not bit for bit)."),
    ] = False,
    json: Json = False,
    **given: Any,
) -> None:
    """Align a model with METHOD on your feedback, and leave a run folder with the model in it.

    The method's options are written name=value, all others with dashes. A file with the same
    content can be given by --config; flags and name=value go before it.
    """
    from polyalign import api

    words = list(hyper or ())
    if method is not None and "=" in method and ".py:" not in method:
        words, method = [method, *words], None
    values = _merged(config, resume, method, words, values_of(given))
    if replan and resume is None:
        raise OptionError("--replan has a meaning only with --resume.", "Leave it out.")
    name = values.pop("method", None)
    if name is None:
        raise OptionError(
            "polyalign train needs a METHOD.",
            "For example: polyalign train dpo …; see: polyalign methods",
        )
    if dry_run:
        with results_only(), Progress("reading and planning") as watcher:
            plan = api.plan(name, watcher=watcher, **values)
        if not first_process():
            return
        emit(plan) if json else show_plan(plan)
        return
    with results_only(), Progress("getting ready") as watcher:
        run = api.train(name, watcher=watcher, resume=resume is not None, replan=replan, **values)
    if not first_process():
        return
    if json:
        emit(summary(run))
    else:
        show_run(run)


def _merged(
    config: Path | None,
    resume: Path | None,
    method: str | None,
    words: list[str],
    flags: dict[str, Any],
) -> dict[str, Any]:
    """All options in one: a resumed run's, then the file's, then flags and ``name=value``."""
    values: dict[str, Any] = {}
    if resume is not None:
        if not (resume / "config.yaml").is_file():
            raise RunError(
                f"{resume} is not a run folder that can be continued: it has no config.yaml.",
                "Give the folder that polyalign train --output made.",
            )
        values = read_yaml(resume / "config.yaml")
        if method is not None and method != values.get("method"):
            raise RunError(
                f"The run in {resume} is {values.get('method')}, not {method}.",
                "Leave the method out, or start a new run with another --output.",
            )
        if flags.get("output", str(resume)) != str(resume):
            raise OptionError(
                "--output and --resume name two folders.", "Leave --output out to continue a run."
            )
    if config is not None:
        values |= read_yaml(config)
    if method is not None:
        if config is not None and values.get("method") not in (None, method):
            # The file's options belong to another method.
            values.pop("hyper", None)
        values["method"] = method
    if "lora" in flags and isinstance(values.get("lora"), dict):
        flags = flags | {"lora": values["lora"] | flags["lora"]}
    values |= flags
    if resume is not None:
        values["output"] = str(resume)
    for name, value in (assigned(word, "polyalign train") for word in words):
        inside = values.get("hyper")
        if isinstance(inside, dict) and name in inside:
            values["hyper"] = inside | {name: value}
        else:
            values[name] = value
    return values


def show_plan(found: dict[str, Any]) -> None:
    """The resolved configuration and what it will take."""
    plan, config = found["plan"], found["config"]
    said = {
        "method": f"{plan['method']} {_words(plan['hyper'])}".strip(),
        "model": f"{config['model']} ({plan['parameters'] / 1e6:,.1f} M parameters)",
        "trained": _trained(plan),
        "data": f"{', '.join(config['data'])}: {plan['records']:,} examples"
        + (f", {plan['dropped']:,} left out" if plan["dropped"] else "")
        + (f", {plan['truncated']:,} cut" if plan["truncated"] else ""),
        "tokens": f"{plan['tokens']:,} in all; the longest example has {plan['longest']:,}",
        "steps": f"{plan['steps']:,} of {plan['batch']} examples"
        + f" in micro-batches of at most {plan['micro']:,} tokens",
        "learning rate": f"{plan['lr']:g}, {plan['schedule']}, warm-up {plan['warmup']:g}",
        "optimizer": plan["optimizer"],
        "reference": ", ".join(plan["references"]) or "none",
        "machine": f"{plan['device']}, {plan['threads']} threads, {plan['dtype']}",
        "processes": _processes(plan),
        "memory": f"about {plan['memory_bytes'] / 2**30:.1f} GiB"
        + f" of {plan['memory_limit'] / 2**30:.1f} GiB"
        + (", activations computed again" if plan["checkpointing"] else ""),
        "time": f"about {span(plan['seconds'])}",
        "output": str(config["output"]),
    }
    table(["", ""], said.items())
    for line in plan["notes"]:
        note(line)
    note("Nothing was trained. Without --dry-run it is.")


def _words(hyper: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in hyper.items())


def _processes(plan: dict[str, Any]) -> str:
    held = "its part of the weights" if plan["fsdp"] else "the whole model"
    return "1" if plan["processes"] == 1 else f"{plan['processes']}, each with {held}"


def _trained(plan: dict[str, Any]) -> str:
    if plan["full"]:
        return "all weights"
    lora = plan["lora"]
    base = f" on a base in {plan['quantize']}" if plan.get("quantize") else ""
    return f"adapters of rank {lora['r']} ({plan['trainable'] / 1e6:,.2f} M parameters){base}"


def summary(run: Any) -> dict[str, Any]:
    """A finished run in a few figures."""
    rows = [row for row in run.metrics if row.get("split") == "train"]
    held = [row for row in run.metrics if row.get("split") == "eval"]
    return {
        "run": str(run.folder),
        "final": str(run.folder / "final"),
        "method": run.plan["method"],
        "steps": rows[-1]["step"] if rows else 0,
        "first": rows[0] if rows else None,
        "last": rows[-1] if rows else None,
        "eval_first": held[0] if held else None,
        "eval_last": held[-1] if held else None,
    }


PLACES = {"step", "epoch", "stage", "time", "tokens", "split", "update"}


def show_run(run: Any) -> None:
    """First and last value of every metric, and where everything lies."""
    told = summary(run)
    lines = []
    for first, last in (("first", "last"), ("eval_first", "eval_last")):
        if told[first] and told[last]:
            lines += [
                (name, figure(told[first].get(name)), figure(value))
                for name, value in told[last].items()
                if name not in PLACES and isinstance(value, (int, float))
            ]
    if lines:
        table(["metric", "first", "last"], lines, right=["first", "last"])
    say(f"\nmodel:   {told['final']}")
    say(f"report:  {run.folder / 'report.html'}")
    say(f"try it:  polyalign sample {run.folder} 'your prompt'")
