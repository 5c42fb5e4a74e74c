"""Speed and memory, polyalign and TRL in turn on the same rows.

    python -m benchmarks.run                       (every table; what is stored is not run again)
    python -m benchmarks.run dpo-lora sampling     (some tables)
    python -m benchmarks.run dpo-lora --again      (measure anew)
    python -m benchmarks.run --write               (write RESULTS.md from what is stored)

Each side of each line runs in a process of its own, and the sides take turns, repetition after
repetition. A line's speed and memory come from the same processes. Reported are medians with the
smallest and largest, over all measured steps of all repetitions; the first step of a process warms
up, unless it is the only one. CPU seconds are the figure to compare where other work runs on the
machine, wall seconds where it does not. The floor is the number of floating-point operations that
the work cannot do without, over the rate at which this machine multiplied matrices between the
repetitions.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.results import write_section
from benchmarks.tables import TABLES, Table, render

STORED = Path(__file__).parent / "speed.jsonl"


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
            row = _child(spec, args)
            rate = _rate(args) if table.needed else None
            row |= {"table": name, "line": line.name, "spec": spec, "rate": rate}
            row |= {"versions": _versions(), "at": time.strftime("%Y-%m-%d %H:%M", time.gmtime())}
            with STORED.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            took = sum(x["cpu"] for x in row["steps"])
            print(
                f"{name}: {line.name}: {took:.1f} CPU seconds, {row['peak_mib']:.0f} MiB",
                flush=True,
            )


def _spec(table: Table, args: argparse.Namespace) -> dict[str, Any]:
    common = {
        "model": args.model,
        "data": args.data,
        "batch": args.batch,
        "steps": args.steps,
        "threads": args.threads,
    }
    common |= table.spec
    if args.prompts:
        common["prompts"] = args.prompts
    return common


def stored(name: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """What is stored of a table with these settings."""
    if not STORED.exists():
        return []
    rows = [json.loads(text) for text in STORED.read_text("utf-8").splitlines()]
    wanted = _spec(TABLES[name], args)
    return [
        r
        for r in rows
        if r["table"] == name
        and all(r["spec"].get(k) == v for k, v in wanted.items() if k not in ("method", "hyper"))
    ]


def _child(spec: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    threads = str(args.threads)
    environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    command = [sys.executable, "-m", "benchmarks.child", json.dumps(spec)]
    root = Path(__file__).parent.parent
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=root)
    if done.returncode:
        sys.exit(f"{' '.join(command[:3])} '{command[3]}' failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _rate(args: argparse.Namespace) -> float:
    """Matrix products: operations a CPU second of all threads, in a process of their own."""
    return float(
        _child({"side": "polyalign", "work": "rate", "threads": args.threads}, args)["rate"]
    )


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "transformers", "peft", "trl")}


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
    made = table.spec["work"] == "grow"
    names = ("steps",) if made else ("batch", "steps", "prompts", "n", "new")
    settings = ", ".join(f"{k} {spec[k]}" for k in names if k in spec)
    real = "" if made else f"Model `{spec['model']}`, data `{spec['data']}`, "
    said = [
        f"{real}float32, {settings}; {platform.machine()}, {os.cpu_count()} cores, "
        f"{args.threads} {'thread' if args.threads == 1 else 'threads'}; "
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


def _flags(args: argparse.Namespace) -> str:
    parser = _parser()
    return "".join(
        f" --{key} {getattr(args, key)}"
        for key in ("model", "data", "batch", "steps", "threads", "repeats", "prompts")
        if getattr(args, key) != parser.get_default(key)
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=", ".join(TABLES))
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--data", default="hh_harmless")
    parser.add_argument("--batch", type=int, default=4, help="pairs a step")
    parser.add_argument("--steps", type=int, default=3, help="steps a process, the first warms up")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=0, help="prompts of the sampling tables")
    parser.add_argument("--only", nargs="*", help="lines of the tables")
    parser.add_argument("--again", action="store_true", help="forget what is stored")
    parser.add_argument("--write", action="store_true", help="only write what is stored")
    return parser


def main() -> None:
    """Measure, print, write."""
    args = _parser().parse_args()
    unknown = [name for name in args.tables if name not in TABLES]
    if unknown:
        sys.exit(f"There is no table {unknown[0]}. Tables: {', '.join(TABLES)}.")
    for name in args.tables or TABLES:
        table = TABLES[name]
        if args.again and STORED.exists():
            gone = [json.dumps(r) for r in stored(name, args)]
            kept = [x for x in STORED.read_text("utf-8").splitlines() if x not in gone]
            STORED.write_text("".join(x + "\n" for x in kept), "utf-8")
        if not args.write:
            measure(name, table, args)
        if stored(name, args):
            text = section(name, table, args)
            print(f"\n{table.title}\n{text}\n")
            write_section(f"Speed: {table.title}", text)


if __name__ == "__main__":
    main()
