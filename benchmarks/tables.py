"""The tables of the speed benchmark: what is measured, and how it is printed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

Stored = list[dict[str, Any]]
DPO = {"work": "train", "method": "dpo"}
LONG = {"max_length": 2048}


@dataclass(frozen=True)
class Line:
    """One line of a table: a side and what it is told, over the table's own settings."""

    name: str
    side: str
    spec: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """Lines measured in turn; ``needed`` is the work of the floor (see :func:`work.needed`).

    ``unit`` is what is counted a step: the table's "batch" of it. ``clock`` is what is compared:
    CPU seconds ("cpu"), or seconds ("wall") where a GPU computes.
    """

    title: str
    spec: dict[str, Any]
    lines: tuple[Line, ...]
    needed: str | None = None
    unit: str = "pairs"
    clock: str = "cpu"


THREE = (
    Line("polyalign", "polyalign"),
    Line("TRL default", "default"),
    Line("TRL best", "best"),
)

GPU = {"device": "cuda", "dtype": "bfloat16", "model": "random-llama-1b", "batch": 16, "steps": 8}


def _coupled(name: str, method: str, **hyper: Any) -> Line:
    return Line(name, "polyalign", {"method": method, "hyper": hyper})


TABLES: dict[str, Table] = {
    "dpo-lora": Table(
        "DPO, LoRA r=16 on all linear layers", {**DPO, "lora": True, "lr": 1e-4}, THREE, "lora"
    ),
    "dpo-full": Table("DPO, all weights", {**DPO, "lora": False, "lr": 1e-6}, THREE, "full"),
    "group": Table(
        "Update on groups of 8 completions, LoRA r=16",
        {"work": "group", "lora": True, "lr": 1e-5, "n": 8, "batch": 1},
        THREE,
        "alone",
        "groups",
    ),
    "reference": Table(
        "Reference pass", {"work": "reference", "lora": False, "lr": 0.0}, THREE, "reference"
    ),
    "coupled": Table(
        "Coupled and costlier objectives against DPO, LoRA r=16; oreo's value is a second network",
        {"work": "train", "lora": True, "lr": 1e-4},
        (
            _coupled("dpo", "dpo"),
            _coupled("kto (statistics)", "kto"),
            _coupled("aot (whole batch)", "aot"),
            _coupled("tdpo (live reference)", "tdpo"),
            _coupled("oreo (value head)", "oreo"),
        ),
    ),
    "quantised": Table(
        "Bases in few bits (DPO, LoRA r=16), averages in few bits (DPO, all weights)",
        {**DPO, "lora": True, "lr": 1e-4},
        (
            Line("LoRA, base in float32", "polyalign"),
            Line("LoRA, base in 8 bits", "polyalign", {"quantize": "8bit"}),
            Line("LoRA, base in 4 bits", "polyalign", {"quantize": "4bit"}),
            Line("all weights, adamw", "polyalign", {"lora": False, "lr": 1e-6}),
            Line(
                "all weights, adamw_8bit",
                "polyalign",
                {"lora": False, "lr": 1e-6, "optimizer": "adamw_8bit"},
            ),
        ),
    ),
    "sampling": Table(
        "Sampling 8 completions a prompt, every row 64 new tokens",
        {"work": "sample", "prompts": 32, "n": 8, "new": 64, "stops": []},
        (
            Line("polyalign", "polyalign"),
            *(Line(f"generate, {n} rows", "generate", {"rows": n}) for n in (16, 32, 64, 128)),
        ),
        unit="tokens",
    ),
    "sampling-early": Table(
        "Sampling 8 completions a prompt, rows end early (a frequent token ends them)",
        {"work": "sample", "prompts": 32, "n": 8, "new": 64, "stops": [2, 28, 30, 198]},
        (
            Line("polyalign", "polyalign"),
            *(Line(f"generate, {n} rows", "generate", {"rows": n}) for n in (16, 32, 64, 256)),
        ),
        unit="tokens",
    ),
    "sampling-lora": Table(
        "Sampling from a policy with an adapter (LoRA r=16), every row 64 new tokens",
        {"work": "sample", "prompts": 32, "n": 8, "new": 64, "stops": [], "lora": True},
        (
            Line("polyalign", "polyalign"),
            *(Line(f"generate, {n} rows", "generate", {"rows": n}) for n in (16, 32, 64)),
        ),
        unit="tokens",
    ),
    "memory": Table(
        "Memory: what a run's plan says and what the run took",
        {"work": "memory", "lr": 0.0},
        tuple(
            Line(name, "polyalign", spec)
            for name, spec in (
                ("LoRA, as planned", {"options": {}}),
                ("LoRA, micro=2048", {"options": {"micro": 2048}}),
                ("LoRA, memory=1700MB", {"options": {"memory": "1700MB"}}),
                ("LoRA, memory=1500MB", {"options": {"memory": "1500MB"}}),
                ("LoRA, contexts of 1500 tokens", {"options": LONG, "made": [1500, 60]}),
                (
                    "LoRA, contexts of 1500 tokens, checkpointing",
                    {"options": {**LONG, "checkpointing": True}, "made": [1500, 60]},
                ),
                (
                    "LoRA, contexts of 1500 tokens, memory=1700MB",
                    {"options": {**LONG, "memory": "1700MB"}, "made": [1500, 60]},
                ),
                ("all weights", {"options": {"full": True}}),
                ("all weights, checkpointing", {"options": {"full": True, "checkpointing": True}}),
            )
        ),
        unit="bytes",
    ),
    "compile": Table(
        "torch.compile: gradients of adapters (LoRA r=16) through the layers alone, 768 tokens",
        {"work": "trunk", "lora": True, "lr": 0.0, "places": 768},
        (
            Line("our layers", "polyalign", {"how": "ours"}),
            Line("the model's own layers", "polyalign", {"how": "own"}),
            Line("the model's own layers, compiled", "polyalign", {"how": "compiled"}),
        ),
        unit="places",
    ),
    "growth": Table(
        "How cost grows: gradients of a small random Llama, 64 new tokens a completion",
        {"work": "grow", "lr": 0.0},
        tuple(
            Line(
                f"context {s}, {k} completions, vocabulary {v // 1000}k",
                "polyalign",
                {"context": s, "completions": k, "vocabulary": v},
            )
            for s, k, v in (
                *((s, 4, 32000) for s in (128, 512, 2048, 4096)),
                *((512, k, 32000) for k in (1, 2, 8, 16)),
                *((512, 4, v) for v in (64000, 128000, 256000)),
            )
        ),
        unit="places",
    ),
    "gpu-lora": Table(
        "On a GPU: DPO, LoRA r=16, random Llama of 1.0 billion parameters",
        {**DPO, **GPU, "lora": True, "lr": 1e-4},
        THREE,
        "lora",
        clock="wall",
    ),
    "gpu-full": Table(
        "On a GPU: DPO, all weights, random Llama of 1.0 billion parameters",
        {**DPO, **GPU, "lora": False, "lr": 1e-6},
        THREE,
        "full",
        clock="wall",
    ),
    "gpu-group": Table(
        "On a GPU: update on groups of 8 completions, LoRA r=16, random Llama of 1.0 billion",
        {**GPU, "work": "group", "lora": True, "lr": 1e-5, "n": 8, "batch": 4},
        THREE,
        "alone",
        "groups",
        clock="wall",
    ),
}


def render(table: Table, stored: Stored, needed: float | None) -> str:
    """The lines of a table as Markdown: medians over all measured steps, spreads in brackets."""
    if table.unit == "tokens":
        return _sampling(table, stored)
    if table.unit == "bytes":
        return _memory(table, stored)
    if table.unit == "places":
        return _growth(table, stored)
    rates = [r["rate"] for r in stored if r["rate"]]
    rate = statistics.median(rates) if rates else 0.0
    on_gpu = table.clock == "wall"
    second = "second" if on_gpu else "CPU second"
    lines = [
        f"| | {table.unit} a CPU second | {table.unit} a second | {second}s a step | "
        f"peak memory MiB | first losses | gradient norms | {second}s over the floor |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for line in table.lines:
        mine = [r for r in stored if r["line"] == line.name]
        if not mine:
            lines.append(f"| {line.name} | not measured |" + " |" * 6)
            continue
        batch = mine[0]["spec"]["batch"]
        cpu, wall = _steps(mine, "cpu"), _steps(mine, "wall")
        took = wall if on_gpu else cpu
        floor = "-" if needed is None else f"{statistics.median(took) * rate / needed:.2f}"
        lines.append(
            f"| {line.name} | {_figure([batch / x for x in cpu], 3)} | "
            f"{_figure([batch / x for x in wall], 3)} | {_figure(took, 1 + 2 * on_gpu)} | "
            f"{_figure([r['peak_mib'] for r in mine], 0)} | {_few(mine[0], 'losses')} | "
            f"{_few(mine[0], 'norms')} | {floor} |"
        )
    lines.append("")
    lines.append(_ratios(table, stored) or _over_first(table, stored))
    if rates:
        lines.append(
            f"\nMatrix products ran at {rate / 1e9:.0f} GFLOP a {second} "
            f"({min(rates) / 1e9:.0f}-{max(rates) / 1e9:.0f})"
            + ("." if needed is None else f"; a step needs {needed / 1e12:.2f} TFLOP.")
        )
    return "\n".join(lines)


def _over_first(table: Table, stored: Stored) -> str:
    """CPU time and memory of each line over the first one's."""

    def medians(line: Line) -> tuple[float, float] | None:
        mine = [r for r in stored if r["line"] == line.name]
        memory = [r["peak_mib"] for r in mine]
        return (statistics.median(_steps(mine, "cpu")), statistics.median(memory)) if mine else None

    first, *others = table.lines
    base = medians(first)
    found = [(line.name, medians(line)) for line in others]
    said = [
        f"{name} {one[0] / base[0]:.2f}x the time and {one[1] / base[1]:.2f}x the memory"
        for name, one in found
        if base and one
    ]
    return f"Against {first.name}: {'; '.join(said)}." if said else ""


def _sampling(table: Table, stored: Stored) -> str:
    lines = [
        "| | tokens | tokens a CPU second | tokens a second | peak memory MiB |",
        "| --- | --- | --- | --- | --- |",
    ]
    best: dict[str, float] = {}
    for line in table.lines:
        mine = [r for r in stored if r["line"] == line.name]
        if not mine:
            lines.append(f"| {line.name} | not measured | | | |")
            continue
        tokens = mine[0]["tokens"]
        cpu = [r["tokens"] / r["steps"][0]["cpu"] for r in mine]
        wall = [r["tokens"] / r["steps"][0]["wall"] for r in mine]
        best[line.name] = statistics.median(cpu)
        lines.append(
            f"| {line.name} | {tokens} | {_figure(cpu, 1)} | {_figure(wall, 1)} | "
            f"{_figure([r['peak_mib'] for r in mine], 0)} |"
        )
    others = {k: v for k, v in best.items() if k != "polyalign"}
    if "polyalign" in best and others:
        peer = max(others, key=lambda k: others[k])
        lines += ["", f"polyalign: {best['polyalign'] / others[peer]:.2f}x {peer} (its best)."]
    return "\n".join(lines)


def _memory(table: Table, stored: Stored) -> str:
    lines = [
        "| | micro-batch, tokens | computed again | limit MiB | planned MiB | measured MiB | "
        "planned / measured |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for line in table.lines:
        mine = [r for r in stored if r["line"] == line.name]
        if not mine:
            lines.append(f"| {line.name} | not measured |" + " |" * 5)
            continue
        plan, told = mine[-1]["plan"], "memory" in mine[-1]["spec"]["options"]
        planned = plan["memory_bytes"] / 2**20
        measured = statistics.median(r["peak_mib"] for r in mine)
        limit = f"{plan['memory_limit'] / 2**20:.0f}" if told else "-"
        again = "yes" if plan["checkpointing"] else "no"
        lines.append(
            f"| {line.name} | {plan['micro']} | {again} | {limit} | {planned:.0f} | "
            f"{measured:.0f} | {planned / measured:.2f} |"
        )
    lines += ["", "Whole runs of `dpo`, with their last checkpoint and the saved model."]
    return "\n".join(lines)


def _growth(table: Table, stored: Stored) -> str:
    lines = [
        "| | places computed | CPU seconds a step | microseconds a place | peak memory MiB |",
        "| --- | --- | --- | --- | --- |",
    ]
    for line in table.lines:
        mine = [r for r in stored if r["line"] == line.name]
        if not mine:
            lines.append(f"| {line.name} | not measured | | | |")
            continue
        cpu, places = _steps(mine, "cpu"), mine[0]["places"]
        lines.append(
            f"| {line.name} | {places} | {_figure(cpu, 2)} | "
            f"{_figure([x / places * 1e6 for x in cpu], 0)} | "
            f"{_figure([r['peak_mib'] for r in mine], 0)} |"
        )
    if "how" in table.lines[0].spec:
        warm = [f"{r['line']} {r['steps'][0]['cpu']:.0f}" for r in stored]
        first = f"CPU seconds of the first step: {', '.join(warm)}."
        return "\n".join([*lines, "", _over_first(table, stored), first])
    lines += [
        "",
        "Hidden size 128, 4 layers; embeddings and output head are constant. Their weights alone "
        "take 1 KiB a token of the vocabulary (31 MiB at 32k, 250 MiB at 256k).",
    ]
    return "\n".join(lines)


def _ratios(table: Table, stored: Stored) -> str:
    """polyalign against each peer, by seconds a step and by memory."""
    ours = [r for r in stored if r["line"] == "polyalign"]
    said = []
    for line in table.lines:
        mine = [r for r in stored if r["line"] == line.name]
        if line.side == "polyalign" or not mine or not ours:
            continue
        clock = table.clock
        speed = statistics.median(_steps(mine, clock)) / statistics.median(_steps(ours, clock))
        memory = statistics.median(r["peak_mib"] for r in ours) / statistics.median(
            r["peak_mib"] for r in mine
        )
        said.append(f"{speed:.2f}x the speed and {memory:.2f} of the memory of {line.name}")
    return f"polyalign: {'; '.join(said)}." if said else ""


def _steps(mine: Stored, key: str) -> list[float]:
    """Seconds of the measured steps; the first one of each process only warms up."""
    return [x[key] for r in mine for x in (r["steps"][1:] or r["steps"])]


def _figure(values: Sequence[float], digits: int) -> str:
    middle = f"{statistics.median(values):.{digits}f}"
    if len(values) == 1:
        return middle
    return f"{middle} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


def _few(row: dict[str, Any], key: str) -> str:
    show: Callable[[float], str] = lambda x: f"{x:.4f}"  # noqa: E731
    return ", ".join(show(x) for x in row.get(key, [])[:3]) or "-"
