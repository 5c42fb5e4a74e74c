"""Every offline method on the real small model: it learns 8 units, and turned labels gain nothing.

    python -m benchmarks.methods                  (all that are not measured yet)
    python -m benchmarks.methods --only dpo kto
    python -m benchmarks.methods --table          (only show the table of what is measured)

A method is trained for 30 steps on the same 8 units, the shortest human-scored answers of
`multi_scores`, and for 10 steps with half of their labels turned round; model and reference are
loaded once, and the adapter begins anew for each run. Measured: the loss and the method's own
statistic (margin, accuracy, likelihood) at the first and at the last step, and for the turned
labels the held-out ranking of 60 other pairs before and after, by mean log-probability a token.
Results are appended to a file in benchmarks/measured/, so the command continues where it was
stopped; the section of RESULTS.md is written when all are there.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import write_section

STORED = Path(__file__).parent / "measured" / "methods.jsonl"
UNITS, STEPS, TURNED_STEPS, HELD_OUT, LR = 8, 30, 10, 60, 5e-4
SYSTEM = {"role": "system", "content": "Answer in one sentence."}
SLOWER = {"dro": 2e-5}
"""Learning rates of methods that diverge at LR (dro regresses scores: its docstring says so)."""
AGAINST = {
    "discopop": "its slope at the start points the wrong way, to a margin of -0.119 (see its card)"
}
"""Methods whose theory promises the other side, and why."""
STATISTICS = (
    ("rewards/margins", +1),
    ("rewards/accuracies", +1),
    ("logps/target", +1),
    ("nll", -1),
    ("nll_loss", -1),
)
"""Metrics that tell whether a method learns its units, and their side; the first one counts."""


def examples(folder: Path, file: str) -> Iterator[dict[str, Any]]:
    """Prompts with three different answers, best first, with their scores in [0, 1]."""
    with gzip.open(folder / f"{file}.jsonl.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            if row["task"] == "topical_chat":
                continue
            seen: dict[str, dict[str, float]] = {}
            for answer in row["responses"]:
                seen.setdefault(answer["content"].strip(), answer["scores"])
            best = sorted(seen.items(), key=lambda item: -sum(item[1].values()))
            total = [sum(scores.values()) for _, scores in best]
            if len(best) >= 2 and total[0] > total[-1]:
                yield {"id": row["id"], "prompt": [SYSTEM, *row["prompt"]], "answers": best}


def shortest(folder: Path, file: str, n: int, sizes: frozenset[int]) -> list[dict[str, Any]]:
    """The ``n`` examples with the fewest characters among those with so many answers."""
    found = [row for row in examples(folder, file) if len(row["answers"]) in sizes]

    def length(row: dict[str, Any]) -> int:
        return len(row["prompt"][1]["content"]) + sum(len(answer) for answer, _ in row["answers"])

    return sorted(found, key=length)[:n]


def pair_rows(found: Sequence[dict[str, Any]], turned: frozenset[int]) -> list[dict[str, Any]]:
    """Best and worst answers as pairs, with every number and further answer a method may read."""
    rows = []
    for i, row in enumerate(found):
        (best, high), (worst, low) = row["answers"][0], row["answers"][-1]
        middle = row["answers"][len(row["answers"]) // 2][0]
        if i in turned:
            best, high, worst, low = worst, low, best, high
        gap = high["overall"] - low["overall"]
        rows.append(
            {
                "prompt": row["prompt"],
                "chosen": _says(best),
                "rejected": _says(worst),
                "gold": _says(best),
                "source_chosen": _says(middle),
                "score_chosen": high["overall"],
                "score_rejected": low["overall"],
                "strength": 1 / (1 + math.exp(-gap)),
                "m_w": high["naturalness"] / 10,
                "m_l": low["naturalness"] / 10,
                "trace": i % 2,
                "dimension": "ab"[i % 2],
            }
        )
    return rows


def list_rows(found: Sequence[dict[str, Any]], turned: frozenset[int]) -> list[dict[str, Any]]:
    """All answers with scores in [0, 1]; turned lists carry them in the opposite order."""
    rows = []
    for i, row in enumerate(found):
        scores = [sum(s.values()) / (6 * len(s)) for _, s in row["answers"]]
        rows.append(
            {
                "prompt": row["prompt"],
                "completions": [_says(answer) for answer, _ in row["answers"]],
                "scores": scores[::-1] if i in turned else scores,
            }
        )
    return rows


def quadruple_rows(found: Sequence[dict[str, Any]], turned: frozenset[int]) -> list[dict[str, Any]]:
    """Two prompts with the best answer to each; turned ones have them the wrong way round."""
    rows = []
    for i, (one, two) in enumerate(zip(found, [*found[1:], found[0]], strict=True)):
        answers = [_says(one["answers"][0][0]), _says(two["answers"][0][0])]
        first, second = answers[::-1] if i in turned else answers
        rows.append(
            {
                "prompt_1": one["prompt"],
                "prompt_2": two["prompt"],
                "completion_1": first,
                "completion_2": second,
            }
        )
    return rows


def _says(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def units(kind: str, found: Sequence[dict[str, Any]], turned: frozenset[int]) -> list[Any]:
    """Records of the kind that a method learns from."""
    import polyalign as pa
    from polyalign.feedback import convert

    if kind == "scored":
        return list(pa.read(list_rows(found, turned)))
    if kind == "quadruples":
        return list(pa.read(quadruple_rows(found, turned)))
    pairs = pa.read(pair_rows(found, turned))
    return list(pairs if kind == "pairs" else convert(pairs, kind))


def trained(declaration: Any, policy: Any, records: list[Any], steps: int) -> list[dict[str, Any]]:
    """The rows of so many steps from where the policy is."""
    from polyalign.loops.run import run
    from polyalign.loops.session import Quiet, Session, Settings
    from polyalign.protocols import Sampling

    hooks = Quiet()
    settings = Settings(
        batch=2 * len(records),  # all of them, where a method makes two of each as well
        epochs=steps,
        max_steps=steps,
        lr=SLOWER.get(declaration.id, LR),
        budget=4096,
        warmup=0.1,
        sampling=Sampling(max_steps=24),
    )
    session = Session(
        lambda progress: declaration(progress=progress), policy, records, settings, hooks=hooks
    )
    run(session)
    return [row for row in hooks.rows if row["split"] == "train"]


def measure(id: str, policy: Any, start: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    """One row of the table."""
    from polyalign.evaluation.ranking import accuracy_gain, ranking
    from polyalign.feedback.records import kind_name
    from polyalign.methods import get

    began, declaration = time.process_time(), get(id)
    kind = kind_name(declaration().stages[0] and declaration.feedback)
    policy.load(start)
    rows = trained(declaration, policy, units(kind, data["train"], frozenset()), STEPS)
    first, last = rows[0], rows[-1]
    name, side = next(((n, s) for n, s in STATISTICS if n in last), ("loss", -1))
    policy.load(start)
    coin = frozenset(random.Random(0).sample(range(UNITS), UNITS // 2))
    trained(declaration, policy, units(kind, data["train"], coin), TURNED_STEPS)
    after = ranking(policy, None, data["held_out"])
    gain = accuracy_gain(after, data["before"])
    return {
        "method": id,
        "kind": kind,
        "steps": len(rows),
        "loss": [first["loss"], last["loss"]],
        "statistic": [name, side, first[name], last[name]],
        "shuffled": gain.to_json(),
        "cpu_s": round(time.process_time() - began, 1),
    }


def offline_methods() -> list[str]:
    """Ids of the methods that train a language model on given feedback."""
    from polyalign.methods import catalogue

    return [
        id
        for id, entry in catalogue().items()
        if entry.get("kind", "train") == "train"
        and entry["feedback"] not in ("prompts", "transitions")
    ]


def stored() -> dict[str, dict[str, Any]]:
    """What is measured already, the newest of each method."""
    if not STORED.exists():
        return {}
    return {row["method"]: row for row in map(json.loads, STORED.read_text().splitlines())}


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The section of RESULTS.md."""
    lines = [
        f"SmolLM2-135M-Instruct, adapters of rank 16, the {UNITS} shortest units of `multi_scores` "
        f"(prompts with three human-scored answers), {STEPS} steps of all units, lr {LR:g} "
        f"({', '.join(f'{id} {lr:g}' for id, lr in SLOWER.items())}), each method's own "
        f"defaults. Turned labels: half of the units turned round, "
        f"{TURNED_STEPS} steps, then the ranking of {HELD_OUT} held-out pairs by mean "
        "log-probability a token, change against the base with its 95 % interval. `yes` says that "
        "the statistic moved to the side that the method promises and that the interval for "
        "turned labels does not lie above 0. "
        "Command: `python -m benchmarks.methods`.",
        "",
        "| method | learns from | loss, first -> last | its statistic, first -> last | learns | "
        "turned labels, held out | gains nothing | CPU s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for id in sorted(rows):
        row = rows[id]
        name, side, first, last = row["statistic"]
        side = -side if id in AGAINST else side
        gain = row["shuffled"]
        lines.append(
            f"| {id} | {row['kind']} | {row['loss'][0]:.4g} -> {row['loss'][1]:.4g} | {name} "
            f"{first:.4g} -> {last:.4g} | {'yes' if side * (last - first) > 0 else 'NO'} | "
            f"{gain['value']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}] | "
            f"{'yes' if gain['low'] <= 0 else 'NO'} | {row['cpu_s']:.0f} |"
        )
    notes = [f"{id}: {why}." for id, why in AGAINST.items() if id in rows]
    return "\n".join([*lines, "", *notes] if notes else lines)


def main() -> None:
    """Parse, measure what is missing, append, write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/multi_scores"))
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--again", action="store_true", help="measure anew what is stored")
    parser.add_argument("--table", action="store_true", help="only show the table")
    args = parser.parse_args()
    if not args.table:
        missing = [id for id in args.only or offline_methods() if args.again or id not in stored()]
        if missing:
            run(args, missing)
    found = stored()
    print(f"\n{table(found)}\n")
    if set(found) >= set(offline_methods()):
        write_section("Every method on a real model", table(found))


def run(args: argparse.Namespace, ids: Sequence[str]) -> None:
    """Measure some methods with one loaded model, appending each when it is done."""
    import polyalign as pa
    from polyalign.evaluation.ranking import ranking
    from polyalign.policies.language.adapters import LoraSpec
    from polyalign.policies.language.policy import LanguagePolicy

    policy = LanguagePolicy.from_pretrained(args.model, lora=LoraSpec(), max_length=256)
    start = {name: value.clone() for name, value in policy.tensors().items()}
    # Lists of three answers, so that every method has what it compares.
    train = shortest(args.data, "train", UNITS, frozenset({3}))
    others = pair_rows(shortest(args.data, "test", HELD_OUT, frozenset({2})), frozenset())
    held_out = list(pa.read([{k: r[k] for k in ("prompt", "chosen", "rejected")} for r in others]))
    data = {"train": train, "held_out": held_out, "before": ranking(policy, None, held_out)}
    for id in ids:
        row = measure(id, policy, start, data)
        STORED.parent.mkdir(exist_ok=True)
        with STORED.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
