"""The demo: align a real small language model, and measure honestly what it gained and lost.

    make demo                      (or: .venv/bin/python demo/run_demo.py --output demo-output)

What is decided before anything runs, here and not after looking:

- primary method: ``PRIMARY``; primary metric: the share of *new instructions of trained kinds* that
  a sampled answer follows, judged by a program; the gain counts when the paired sign-flip test over
  instructions against the base gives p < 0.05 after Holm's correction over the whole table.
- the same method on shuffled labels must not gain: chosen and rejected are swapped by a coin.

Learning rate and batch were chosen on a fifth of the *training* instructions, kept out of training
for that; the held-out instructions were not used for it.

The feedback (demo/data) is the model's own answers to instructions that a program can verify. The
rows are the base, SFT on the chosen answers, best-of-4 of the base (a ceiling of what picking
could give: the verifier itself picks), three preference methods and the shuffled control. Held-out
instructions are of two sorts, reported apart: new ones of trained kinds, and kinds never trained.
What was lost is told too: perplexity on the base's own ordinary answers, and length.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
DATA = HERE / "data"

PRIMARY = "dpo"
METHODS: dict[str, dict[str, Any]] = {
    "sft": {"lr": 2e-4},
    "dpo": {"lr": 3e-4, "beta": 0.1},
    "simpo": {"lr": 1e-4},
    "orpo": {"lr": 2e-4},
}
COMMON: dict[str, Any] = {"batch": 8, "epochs": 1, "seed": 0, "samples": 4, "max_new_tokens": 48}
PAIRS = 160
SAMPLES = {"new": 1, "kinds": 1}
SAMPLES_BASE = {"new": 4, "kinds": 4}
TEMPERATURE = 0.7


def rows(name: str) -> list[dict[str, Any]]:
    """The rows of one shipped file."""
    with gzip.open(DATA / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def shuffled(pairs: Sequence[dict[str, Any]], seed: int = 0) -> list[dict[str, Any]]:
    """The pairs with chosen and rejected swapped by a fair coin: labels that say nothing."""
    coin = random.Random(seed)
    return [
        {**pair, "chosen": pair["rejected"], "rejected": pair["chosen"]}
        if coin.random() < 0.5
        else pair
        for pair in pairs
    ]


def measure(
    policy: Any, prompts: Any, ordinary: Any, n: dict[str, int], watcher: Any
) -> dict[str, Any]:
    """Success on both held-out sorts, perplexity on ordinary answers, length."""
    from polyalign.evaluation.generation import verified
    from polyalign.evaluation.likelihood import perplexity
    from polyalign.judges.load import load_judge
    from polyalign.protocols import Sampling

    judge = load_judge("verifier")
    how = Sampling(temperature=TEMPERATURE, max_steps=COMMON["max_new_tokens"])
    found = {
        sort: verified(policy, part, judge, n[sort], how, progress=watcher.progress)
        for sort, part in prompts.items()
    }
    return found | {"ordinary": perplexity(policy, ordinary, progress=watcher.progress)}


def cells(found: dict[str, Any], best_of: int | None = None) -> dict[str, Any]:
    """One row of the table: a value an instruction, so that rows are compared pair by pair."""
    from polyalign.reports.comparison import Values

    out: dict[str, Any] = {}
    for sort in ("new", "kinds"):
        judged = found[sort]
        values = judged.per_prompt() if best_of is None else judged.best_of(best_of)
        out[sort] = Values(list(values), [p.key for p in judged.samples.prompts])
    if best_of is None:
        ordinary = found["ordinary"]
        out["perplexity"] = Values(ordinary.nll, list(ordinary.cluster), ordinary.steps)
        out["length"] = float(found["new"].samples.steps.mean())
    return out


def main() -> int:
    """Train, measure, print the table, write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("demo-output"))
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--limit", type=int, help=f"use N pairs (default {PAIRS})")
    parser.add_argument("--heldout", type=int, help="use the first N held-out instructions")
    args = parser.parse_args()

    from polyalign.cli.progress import Progress
    from polyalign.cli.screen import one_line_warnings, silence_libraries

    silence_libraries()
    with one_line_warnings(), Progress("demo") as watcher:
        return run(args, watcher)


def run(args: argparse.Namespace, watcher: Any) -> int:
    """The demo itself."""
    import polyalign as pa
    from polyalign.cli.screen import out as screen
    from polyalign.feedback import convert
    from polyalign.policies.language.models import get_model
    from polyalign.policies.language.policy import LanguagePolicy
    from polyalign.reports.comparison import Column, Entry, compare
    from polyalign.reports.html import report

    began = time.monotonic()
    args.output.mkdir(parents=True, exist_ok=True)
    watcher.note(f"1/3 The model: {args.model}")
    get_model(args.model)
    # In one fixed random order, so that every kind is among the first PAIRS.
    every = rows("train")
    pairs = random.Random(0).sample(every, len(every))[: args.limit or PAIRS]
    held_out = {
        "new": list(pa.read(rows("heldout_new")[: args.heldout])),
        "kinds": list(pa.read(rows("heldout_kinds")[: args.heldout])),
    }
    ordinary = list(convert(pa.read(rows("ordinary")), "demonstrations"))
    watcher.note(
        f"2/3 {len(pairs)} pairs; held out: {len(held_out['new'])} new instructions of trained "
        "kinds, "
        f"{len(held_out['kinds'])} of kinds never trained. Primary method: {PRIMARY}; primary "
        "metric: "
        "new instructions of trained kinds that are followed."
    )
    base = LanguagePolicy.from_pretrained(args.model, frozen=True)
    before = measure(base, held_out, ordinary, SAMPLES_BASE, watcher)
    del base
    entries = [
        Entry("base", cells(before)),
        Entry(
            "best of 4 of the base",
            cells(before, best_of=4),
            "the verifier picks among four answers: what picking alone could give",
        ),
    ]
    folders = []
    jobs = {name: (name, options, pairs) for name, options in METHODS.items()}
    control = f"{PRIMARY}, shuffled labels"
    jobs[control] = (PRIMARY, METHODS[PRIMARY], shuffled(pairs))
    for name, (method, options, data) in jobs.items():
        watcher.note(f"3/3 Training: {name}")
        folder = args.output / name.replace(", ", "-").replace(" ", "-")
        file = args.output / f"{folder.name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in data), "utf-8")
        run = pa.train(
            method,
            model=args.model,
            data=str(file),
            output=folder,
            resume=folder.exists(),
            watcher=watcher,
            **COMMON,
            **options,
        )
        found = measure(run.policy(), held_out, ordinary, SAMPLES, watcher)
        label = "SFT on chosen" if method == "sft" else name
        entries.append(Entry(label, cells(found), "primary" if name == PRIMARY else ""))
        folders.append(folder)
    table = compare(
        "Instructions followed (held out)",
        (
            Column("new", "new instructions, trained kinds", help="the primary metric"),
            Column("kinds", "kinds never trained"),
            Column("perplexity", "perplexity, ordinary answers", "low", "number"),
            Column("length", "mean answer tokens", None, "number", test=False),
        ),
        entries,
        "base",
    )
    page = report(
        folders,
        args.output / "report.html",
        comparison=table,
        title=f"polyalign demo: {args.model} learns to follow instructions",
    )
    (args.output / "table.json").write_text(json.dumps(table.to_json(), indent=1), "utf-8")
    screen().print(table.rich())
    for line in verdict(table, control):
        screen().print(line)
    minutes = (time.monotonic() - began) / 60
    screen().print(f"Report: {page} ({minutes:.1f} minutes)")
    return 0


def verdict(table: Any, control: str) -> list[str]:
    """What the table says of the primary method and of its control, in plain words."""
    found = {name: shown[0] for name, _, shown in table.rows}
    lines = []
    for name in (PRIMARY, control):
        cell = found[name]
        gain = cell.difference["value"]
        what = {
            "better": "a gain beyond luck",
            "worse": "a loss beyond luck",
            "": "no difference beyond luck",
        }[cell.verdict]
        lines.append(
            f"{name}: {100 * gain:+.1f} points against the base on the primary metric "
            f"[{100 * cell.difference['low']:+.1f}, {100 * cell.difference['high']:+.1f}], "
            f"p = {cell.p:.4f} after Holm's correction: {what}."
        )
    return lines


if __name__ == "__main__":
    sys.exit(main())
