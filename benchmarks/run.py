"""Speed and memory, polyalign and TRL in turn on the same rows.

    python -m benchmarks.run                       (every table that this machine can measure)
    python -m benchmarks.run dpo-lora sampling     (some tables)
    python -m benchmarks.run dpo-lora --again      (measure anew)
    python -m benchmarks.run --write               (write RESULTS.md from what is measured)

Each side of each line runs in a process of its own, and the sides take turns, repetition after
repetition. A line's speed and memory come from the same processes. Reported are medians with the
smallest and largest, over all measured steps of all repetitions; the first step of a process warms
up, unless it is the only one. CPU seconds are the figure to compare where other work runs on the
machine, wall seconds where it does not, and on a GPU. The floor is the number of floating-point
operations that the work cannot do without, over the rate at which this machine multiplied matrices
between the repetitions.

What was measured lies in benchmarks/measured/ (not in the repository), so a command that was
interrupted goes on where it stopped. A section of RESULTS.md is written when its table is whole.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import write_section
from benchmarks.tables import TABLES, Table, render

STORED = Path(__file__).parent / "measured" / "speed.jsonl"

DEFAULTS: dict[str, Any] = {
    "model": "smollm2", "data": "hh_harmless", "batch": 4, "steps": 3, "threads": 2,
}  # fmt: skip
"""Settings that neither a table nor the command line gives."""

READS = {
    "train": ("data", "batch", "steps"),
    "group": ("data", "batch", "steps", "n"),
    "reference": ("data", "batch", "steps"),
    "sample": ("data", "prompts", "n", "new"),
    "memory": ("data", "batch", "steps"),
    "grow": ("steps",),
    "trunk": ("steps",),
}
"""What each kind of work reads, beside its model, threads and repetitions."""


def measure(name: str, table: Table, args: argparse.Namespace) -> None:
    """Run what is not stored yet of a table."""
    done = stored(name, args)
    for repetition in range(args.repeats):
        for line in table.lines:
            if args.only and line.name not in args.only:
                continue
            had = [r for r in done if r["line"] == line.name]
            if len(had) > repetition:
                continue
            spec = _spec(table, args) | line.spec | {"side": line.side}
            row = _child(spec)
            rate = _rate(spec) if table.needed else None
            row |= {"table": name, "line": line.name, "spec": spec, "rate": rate}
            row |= {"versions": _versions(), "at": time.strftime("%Y-%m-%d %H:%M", time.gmtime())}
            STORED.parent.mkdir(exist_ok=True)
            with STORED.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            took = sum(x[table.clock] for x in row["steps"])
            print(
                f"{name}: {line.name}: {took:.1f} {table.clock} seconds, {row['peak_mib']:.0f} MiB",
                flush=True,
            )


def _spec(table: Table, args: argparse.Namespace) -> dict[str, Any]:
    return DEFAULTS | table.spec | _given(args)


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that the command line gives."""
    names = ("model", "data", "batch", "steps", "threads", "prompts")
    return {k: getattr(args, k) for k in names if getattr(args, k) is not None}


def refused(names: Sequence[str], args: argparse.Namespace) -> str | None:
    """Why these tables cannot be measured so, in a sentence."""
    unknown = [name for name in names if name not in TABLES]
    if unknown:
        return f"There is no table {unknown[0]}. Tables: {', '.join(TABLES)}."
    known = [line.name for name in names for line in TABLES[name].lines]
    strange = [name for name in args.only or () if name not in known]
    if strange:
        return f"There is no line '{strange[0]}'. Lines: {'; '.join(known)}."
    for name in names:
        for setting in _given(args):
            work = TABLES[name].spec["work"]
            if setting not in ("model", "threads", *READS[work]):
                return f"Table {name} has no {setting}; leave --{setting} out."
        if not args.write and not possible(TABLES[name]):
            return f"Table {name} wants a GPU, and PyTorch finds none here."
        sides = {
            line.side for line in TABLES[name].lines if line.name in (args.only or [line.name])
        }
        if not args.write and sides & {"default", "best"} and "trl" not in _versions():
            return f"Table {name} compares with TRL: pip install -e '.[bench]' (make bench does)."
    return None


def possible(table: Table) -> bool:
    """Whether the table's device is here."""
    import torch

    return table.spec.get("device") != "cuda" or torch.cuda.is_available()


def stored(name: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """What is stored of a table with these settings."""
    if not STORED.exists():
        return []
    rows = [json.loads(text) for text in STORED.read_text("utf-8").splitlines()]
    common = _spec(TABLES[name], args)
    wanted = {line.name: common | line.spec | {"side": line.side} for line in TABLES[name].lines}
    return [r for r in rows if r["table"] == name and r["spec"] == wanted.get(r["line"])]


def _child(spec: dict[str, Any]) -> dict[str, Any]:
    threads = str(spec["threads"])
    environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    command = [sys.executable, "-m", "benchmarks.child", json.dumps(spec)]
    root = Path(__file__).parent.parent
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=root)
    if done.returncode:
        sys.exit(f"{' '.join(command[:3])} '{command[3]}' failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _rate(spec: dict[str, Any]) -> float:
    """Matrix products: operations a second (on a CPU a CPU second), in a process of their own."""
    names = ("model", "threads", "device", "dtype")
    told = {k: spec[k] for k in names if k in spec}
    return float(_child(told | {"side": "polyalign", "work": "rate"})["rate"])


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("torch", "transformers", "peft", "trl"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _needed(table: Table, args: argparse.Namespace) -> float | None:
    """Operations of the measured steps, on average."""
    if table.needed is None:
        return None
    from benchmarks import ours, work
    from benchmarks.peer import encoder

    spec = _spec(table, args)
    encode = encoder(spec["model"])
    if table.spec["work"] == "group":
        steps = [
            [(len(c), [len(x) for x in xs]) for c, xs in zip(contexts, completions)]
            for contexts, completions, _ in ours.groups(spec, encode)
        ]
    else:
        records, _ = work.pairs(spec["data"], spec["batch"] * spec["steps"])
        rows = [
            (len(u["prompt_ids"]), [len(u["chosen_ids"]), len(u["rejected_ids"])])
            for u in work.units(encode, records)
        ]
        steps = [rows[i : i + spec["batch"]] for i in range(0, len(rows), spec["batch"])]
    steps = steps[1:] or steps
    config = work.model_config(spec["model"])
    return sum(work.needed(config, step, table.needed) for step in steps) / len(steps)


def section(name: str, table: Table, args: argparse.Namespace) -> str:
    """A table with its machine, versions, settings and command."""
    rows = stored(name, args)
    spec = _spec(table, args)
    versions = rows[-1]["versions"] if rows else _versions()
    loads = [r["load"] for r in rows]
    reads = READS[table.spec["work"]]
    settings = ", ".join(f"{k} {spec[k]}" for k in reads if k in spec and k != "data")
    made = table.spec["work"] == "grow"
    real = "" if made else f"Model `{spec['model']}`, "
    if "data" in reads:
        real += f"data `{spec['data']}`, "
    device = rows[-1].get("device") if rows else None
    threads = f"{spec['threads']} thread" + "s" * (spec["threads"] > 1)
    said = [
        f"{real}{spec.get('dtype', 'float32')}, {settings}; "
        f"{device or platform.machine()}, {os.cpu_count()} cores, {threads}; "
        + ", ".join(f"{k} {v}" for k, v in versions.items())
        + f". {len(rows)} processes measured"
        + (f" from {min(r['at'] for r in rows)} UTC on" if rows else "")
        + (f", load of the machine {min(loads):.0f} to {max(loads):.0f}" if loads else "")
        + ".",
        f"Command: `python -m benchmarks.run {name}{_flags(args)}`.",
        "",
        render(table, rows, _needed(table, args)),
    ]
    return "\n".join(said)


def title(table: Table, args: argparse.Namespace) -> str:
    """A section's title: the table's, and what of the work the command line changes."""
    given = {k: v for k, v in _given(args).items() if k in ("model", "data", "batch")}
    own = DEFAULTS | table.spec
    changed = [f"{k} {v}" for k, v in given.items() if own[k] != v]
    return f"Speed: {', '.join([table.title, *changed])}"


def _flags(args: argparse.Namespace) -> str:
    given = _given(args) | ({} if args.repeats == 3 else {"repeats": args.repeats})
    return "".join(f" --{key} {value}" for key, value in given.items())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=", ".join(TABLES))
    parser.add_argument("--model", help="default: the table's, smollm2 without a GPU")
    parser.add_argument("--data", help="default: hh_harmless")
    parser.add_argument("--batch", type=int, help="pairs or groups a step; default: the table's, 4")
    parser.add_argument("--steps", type=int, help="steps a process, the first warms up; default: 3")
    parser.add_argument("--repeats", type=int, default=3, help="default: 3")
    parser.add_argument("--threads", type=int, help="default: 2")
    parser.add_argument("--prompts", type=int, help="prompts of the sampling tables; default: 32")
    parser.add_argument("--only", nargs="*", help="lines of the tables")
    parser.add_argument("--again", action="store_true", help="forget what is measured")
    parser.add_argument("--write", action="store_true", help="only write what is measured")
    return parser


def main() -> None:
    """Measure, print, write."""
    args = _parser().parse_args()
    names = args.tables
    if not names:
        names = [name for name, table in TABLES.items() if args.write or possible(table)]
        left = [name for name in TABLES if name not in names]
        if left:
            print(f"Without a GPU not measured: {', '.join(left)}.", flush=True)
    why = refused(names, args)
    if why:
        sys.exit(why)
    for name in names:
        table = TABLES[name]
        if args.again and STORED.exists():
            gone = [json.dumps(r) for r in stored(name, args)]
            kept = [x for x in STORED.read_text("utf-8").splitlines() if x not in gone]
            STORED.write_text("".join(x + "\n" for x in kept), "utf-8")
        if not args.write:
            measure(name, table, args)
        found = {r["line"] for r in stored(name, args)}
        if found:
            text = section(name, table, args)
            print(f"\n{table.title}\n{text}\n")
            if len(found) == len(table.lines):
                write_section(title(table, args), text)


if __name__ == "__main__":
    main()
