"""``polyalign data``: understand feedback, and make other feedback of it, before training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from polyalign.cli.group import epilog, group
from polyalign.cli.methods import Json
from polyalign.cli.options import assigned
from polyalign.cli.progress import waiting
from polyalign.cli.screen import emit, note, out, results_only, say, table
from polyalign.errors import DataError, OptionError

data = group(
    "Feedback: check it, count it, convert it, split it, make pairs of it.",
    "polyalign data check pairs.jsonl --model smollm2 --max-length 1024",
    "polyalign data check pairs.jsonl --fix clean.jsonl",
    "polyalign data split pairs.jsonl --test 0.1",
    "polyalign data pair scored.jsonl --rule best-worst --output pairs.jsonl",
)

Files = Annotated[list[str], typer.Argument(metavar="FILE…", help="Files, folders or hub names.")]
Columns = Annotated[
    list[str] | None,
    typer.Option(metavar="OURS=YOURS", help="Our name of a column and yours (may be repeated)."),
]
Kind = Annotated[str | None, typer.Option(help="Read the rows as this kind: pairs, binary, …")]
Limit = Annotated[int | None, typer.Option(metavar="N", help="Read only the first N rows.")]
Split = Annotated[str | None, typer.Option(help="The part of a datasets folder or hub set.")]


def _read(
    files: Sequence[str],
    columns: Sequence[str] | None,
    kind: str | None,
    limit: int | None,
    split: str | None,
) -> Any:
    from polyalign.feedback import read

    mapping = dict(assigned(text, "--columns") for text in columns or ())
    return read(list(files), split=split, kind=kind, columns=mapping or None, limit=limit)


@data.command(
    epilog=epilog(
        "polyalign data check pairs.jsonl",
        "polyalign data check train.jsonl --against test.jsonl",
        "polyalign data check pairs.jsonl --model smollm2 --max-length 512",
        "polyalign data check pairs.jsonl --fix clean.jsonl",
        "polyalign data check scores.csv --columns prompt=question --json",
    )
)
def check(
    files: Files,
    against: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="The other part of a split: shared prompts are told."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Also check this model's chat template.")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(metavar="N", help="Count what would be cut at N tokens.")
    ] = None,
    max_prompt_length: Annotated[
        int | None, typer.Option(metavar="N", help="The same for the prompt alone.")
    ] = None,
    near: Annotated[
        bool, typer.Option("--near/--no-near", help="Look for near duplicates too.")
    ] = True,
    fix: Annotated[
        Path | None,
        typer.Option(metavar="OUT", help="Write clean rows here, the others beside them."),
    ] = None,
    columns: Columns = None,
    kind: Kind = None,
    limit: Limit = None,
    split: Split = None,
    json: Json = False,
) -> None:
    """Say what format the feedback has, and what is wrong or risky, with counts and examples.

    The exit status is 1 when something must be mended before training.
    """
    from polyalign.feedback import check as look
    from polyalign.feedback import fix as mend

    if model is None and (max_length is not None or max_prompt_length is not None):
        raise OptionError(
            "A length in tokens needs a tokenizer, and no model is named.", "Add --model MODEL."
        )
    with results_only(), waiting("reading"):
        found = _read(files, columns, kind, limit, split)
        other = _read(against, columns, kind, None, split) if against else None
    tokenizer = None
    if model is not None:
        from polyalign.policies.language.models import load_tokenizer

        with results_only(), waiting(f"loading the tokenizer of {model}"):
            tokenizer = load_tokenizer(model)
    with results_only(), waiting(f"checking {len(found):,} rows"):
        report = look(
            found,
            against=other,
            tokenizer=tokenizer,
            max_length=max_length,
            max_prompt_length=max_prompt_length,
            near=near,
        )
    told = report.to_dict()
    if fix is not None:
        fixed = mend(found, report)
        target, rejects = fixed.write(fix)
        told["fixed"] = {
            "clean": str(target),
            "rows": len(fixed.clean),
            "rejects": str(rejects) if rejects else None,
            "removed": len(fixed.rejects),
        }
    if json:
        emit(told)
    else:
        styles = {"error": "bold red", "warning": "yellow", "note": "cyan"}
        console = out()
        for line in report.render():
            style = styles.get(line.split(" ", 1)[0])
            console.print(line, markup=False, soft_wrap=True, style=style)
        if fix is not None:
            _tell_fixed(told["fixed"])
    if report.errors and fix is None:
        raise typer.Exit(1)


def _tell_fixed(fixed: dict[str, Any]) -> None:
    say(f"\n{fixed['rows']:,} clean rows: {fixed['clean']}")
    if fixed["rejects"]:
        say(f"{fixed['removed']:,} rows left out, with reasons: {fixed['rejects']}")


@data.command(
    epilog=epilog("polyalign data stats pairs.jsonl", "polyalign data stats f.csv --json")
)
def stats(
    files: Files,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Measure lengths in this model's tokens.")
    ] = None,
    columns: Columns = None,
    kind: Kind = None,
    limit: Limit = None,
    split: Split = None,
    json: Json = False,
) -> None:
    """Figures of the feedback: sizes, lengths, labels, length bias, agreement of annotators."""
    from polyalign.feedback import stats as figures

    with results_only(), waiting("reading"):
        found = _read(files, columns, kind, limit, split)
        options: dict[str, Any] = {}
        if model is not None:
            options = {"length": _tokens_of(model), "unit": "tokens"}
        told = figures(found, **options)
    if json:
        emit(told.to_dict())
        return
    say(f"{told.source}: {told.rows:,} {told.kind} ({told.format})")
    figures_of = {"different prompts": told.prompts, "malformed rows": told.rejected}
    table(["", ""], [*figures_of.items(), *told.counts.items()])
    if told.numbers:
        heads = ["", "median", "5%", "95%", "least", "most"]
        rows = [
            (name, *(getattr(s, part) for part in ("median", "q05", "q95", "low", "high")))
            for name, s in told.numbers.items()
        ]
        table(heads, rows, right=heads[1:])


def _tokens_of(model: str) -> Callable[[Any], int]:
    from polyalign.feedback.payloads import text_of
    from polyalign.policies.language.models import load_tokenizer

    tokenizer = load_tokenizer(model)
    return lambda payload: len(tokenizer(text_of(payload), add_special_tokens=False)["input_ids"])


@data.command(
    epilog=epilog(
        "polyalign data convert votes.jsonl --to pairs --output pairs.jsonl",
        "polyalign data convert hh.jsonl.gz --output trl.parquet",
        "polyalign data convert scored.jsonl --to binary --threshold 0.5 --output thumbs.jsonl",
    )
)
def convert(
    files: Files,
    output: Annotated[Path, typer.Option("--output", "-o", help="A file (.jsonl, .parquet, …).")],
    to: Annotated[
        str | None, typer.Option(help="The kind to make; without it only the form changes.")
    ] = None,
    rule: Annotated[str | None, typer.Option(help="scored to pairs: the pairing rule.")] = None,
    threshold: Annotated[
        float | None, typer.Option(help="scored to binary: good from this score on.")
    ] = None,
    ties: Annotated[
        str | None, typer.Option(help="votes to pairs: ties are ignored or counted.")
    ] = None,
    min_gap: Annotated[float, typer.Option(help="scored to pairs: least gap of scores.")] = 0.0,
    seed: Annotated[int, typer.Option(help="of random choices")] = 0,
    columns: Columns = None,
    kind: Kind = None,
    limit: Limit = None,
    split: Split = None,
    json: Json = False,
) -> None:
    """Write feedback in TRL's form, as it is or as another kind."""
    from polyalign.feedback import convert as change

    with results_only(), waiting("converting"):
        found = _read(files, columns, kind, limit, split)
        choices: dict[str, Any] = {"rule": rule, "threshold": threshold, "ties": ties}
        given = {name: value for name, value in choices.items() if value is not None}
        if to is None and (given or min_gap):
            raise OptionError(
                f"--{next(iter(given), 'min-gap')} has a meaning only with --to.", "Add --to KIND."
            )
        made = change(found, to, seed=seed, min_gap=min_gap, **given) if to else found
    _written(made, output, found, json)


@data.command(
    epilog=epilog(
        "polyalign data split pairs.jsonl",
        "polyalign data split pairs.jsonl --test 0.2 --seed 1 --output parts/",
    )
)
def split(
    files: Files,
    test: Annotated[float, typer.Option(help="Share of the prompts in the test part.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Another seed, another split.")] = 0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of train and test (here).")
    ] = None,
    columns: Columns = None,
    kind: Kind = None,
    json: Json = False,
) -> None:
    """Split feedback by prompt, so that no prompt stands in both parts."""
    from polyalign.feedback import split as divide
    from polyalign.feedback import write

    with results_only(), waiting("splitting"):
        found = _read(files, columns, kind, None, None)
        parts = dict(zip(("train", "test"), divide(found, test, seed), strict=True))
        folder = output or Path()
        stem = Path(files[0]).name.split(".")[0]
        told = {
            name: {"file": str(write(part, folder / f"{stem}.{name}.jsonl")), "rows": len(part)}
            for name, part in parts.items()
        }
    if json:
        emit(told)
    else:
        table(["part", "rows", "file"], [(n, t["rows"], t["file"]) for n, t in told.items()])


@data.command(
    epilog=epilog(
        "polyalign data pair scored.jsonl --output pairs.jsonl",
        "polyalign data pair verified.jsonl --rule correct-incorrect --output pairs.jsonl",
        "polyalign data pair scored.jsonl --rule all --min-gap 1 --output pairs.jsonl",
    )
)
def pair(
    files: Files,
    output: Annotated[Path, typer.Option("--output", "-o", help="A file (.jsonl, .parquet, …).")],
    rule: Annotated[
        str,
        typer.Option(
            help="best-worst, best-random, all, adjacent, correct-incorrect, or second-worst (the "
            "best of three answers or more is kept beside the pair as gold)."
        ),
    ] = "best-worst",
    min_gap: Annotated[float, typer.Option(help="Least gap of scores that makes a pair.")] = 0.0,
    seed: Annotated[int, typer.Option(help="of random choices")] = 0,
    columns: Columns = None,
    kind: Kind = None,
    limit: Limit = None,
    split: Split = None,
    json: Json = False,
) -> None:
    """Make pairs of scored, ranked or verified answers by a named rule."""
    from polyalign.feedback import pair as couple

    with results_only(), waiting("pairing"):
        found = _read(files, columns, kind, limit, split)
        made = couple(found, rule, seed=seed, min_gap=min_gap)
    _written(made, output, found, json)


def _written(made: Any, output: Path, found: Any, json: bool) -> None:
    from polyalign.feedback import kind_name, write

    if not len(made):
        raise DataError(
            f"{found.source} gives no {kind_name(made.kind)}.", "Look: polyalign data stats"
        )
    with results_only(), waiting("writing"):
        target = write(made, output)
    told = {
        "file": str(target),
        "rows": len(made),
        "kind": kind_name(made.kind),
        "from": len(found),
        "malformed": len(found.rejects),
        "notes": list(made.notes),
    }
    if json:
        emit(told)
        return
    for line in made.notes:
        note(line)
    if found.rejects:
        note(f"{len(found.rejects):,} malformed rows were left out; see: polyalign data check")
    say(f"{told['rows']:,} {told['kind']} from {told['from']:,} rows: {target}")
