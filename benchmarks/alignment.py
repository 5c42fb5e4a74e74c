"""Held-out ranking accuracy before and after training on real human pairs.

    python -m benchmarks.alignment --data ../shared/data/hh_harmless

Every method is trained from the same model on the same first pairs of the training file and
measured on the same held-out pairs. Two rankings are reported: by the mean log-probability a token
(defined for every model, also before training), and by the implicit reward log policy - log base
(undefined before training). Intervals are 95% bootstraps over prompts. Finished runs are kept, so
the command continues where it was stopped. On so few noisy pairs "no difference" is a result.
"""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.results import write_section

RUNS: dict[str, dict[str, Any]] = {
    "dpo": {"method": "dpo"},
    "simpo": {"method": "simpo"},
    "kto": {"method": "kto"},
    "ipo": {"method": "ipo"},
    "orpo": {"method": "orpo"},
    "slic": {"method": "slic"},
    "dpo, all weights": {"method": "dpo", "full": True},
}


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Train what is not trained yet and measure everything, as rows of the table."""
    import polyalign as pa
    from polyalign.evaluation.ranking import accuracy_gain, ranking
    from polyalign.policies.language.policy import LanguagePolicy

    out = Path(args.output)
    out.mkdir(parents=True, exist_ok=True)
    held_out = list(pa.read(str(args.data / "test.jsonl.gz"), limit=args.test))
    limits = {"max_length": args.max_length}
    base_policy = LanguagePolicy.from_pretrained(args.model, frozen=True, **limits)
    base = ranking(base_policy, None, held_out)
    del base_policy
    rows = [{"run": "base", "pairs": 0, **_accuracies(base, None)}]
    for name, options in RUNS.items():
        if args.only and name not in args.only:
            continue
        folder = out / name.replace(", ", "-").replace(" ", "-")
        done = folder / "measured.json"
        if not done.exists():
            chosen = dict(options)
            run = pa.train(
                chosen.pop("method"),
                model=args.model,
                data=str(args.data / "train.jsonl.gz"),
                output=folder,
                limit=args.pairs,
                samples=2,
                max_new_tokens=48,
                resume=folder.exists(),
                **limits,
                **chosen,
            )
            trained = LanguagePolicy.from_pretrained(run.folder / "final", frozen=True, **limits)
            after = ranking(trained, None, held_out)
            after = replace(after, chosen_ref=base.chosen, rejected_ref=base.rejected)
            first, last = _ends(run.metrics)
            row = {
                "run": name,
                "pairs": args.pairs,
                **_accuracies(after, accuracy_gain(after, base)),
                "seconds": round(last["time"]),
                "loss": [first["loss"], last["loss"]],
                "lr": run.plan["lr"],
                "batch": run.plan["batch"],
            }
            done.write_text(json.dumps(row, indent=1))
        rows.append(json.loads(done.read_text()))
    return rows


def _accuracies(found: Any, gain: Any) -> dict[str, Any]:
    data = found.to_json()
    row = {"likelihood": data["accuracy"]["mean_likelihood"]}
    if gain is not None:
        row["gain"] = gain.to_json()
        row["implicit"] = data["accuracy"]["implicit"]
    return row


def _ends(metrics: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    rows = [row for row in metrics if row["split"] == "train"]
    return rows[0], rows[-1]


def table(rows: list[dict[str, Any]], args: argparse.Namespace) -> str:
    """The section of RESULTS.md."""
    import torch
    import transformers

    def figure(value: dict[str, Any] | None) -> str:
        if value is None:
            return "-"
        return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"

    lines = [
        f"{args.pairs} training pairs and {args.test} held-out pairs of `{args.data.name}`, model "
        f"`{args.model}`, defaults of each method, learning rate and batch by polyalign's rule. "
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"transformers {transformers.__version__}. Command: "
        f"`python -m benchmarks.alignment --data ../shared/data/{args.data.name} "
        f"--pairs {args.pairs} --test {args.test}`.",
        "",
        "| run | accuracy by mean log-probability | change against base | p | accuracy by implicit "
        "reward | loss first -> last step | lr | training seconds (shared machine) |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        gain = row.get("gain")
        loss = row.get("loss")
        lines.append(
            f"| {row['run']} | {figure(row['likelihood'])} | {figure(gain)} | "
            f"{'-' if gain is None else format(gain['p'], '.3f')} | {figure(row.get('implicit'))} "
            "| "
            f"{'-' if loss is None else f'{loss[0]:.3f} -> {loss[1]:.3f}'} | {row.get('lr', '-')} "
            "| "
            f"{row.get('seconds', '-')} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/hh_harmless"))
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--test", type=int, default=150)
    parser.add_argument("--max-length", type=int, default=384, dest="max_length")
    parser.add_argument("--output", default="runs/alignment")
    parser.add_argument("--only", nargs="*")
    args = parser.parse_args()
    text = table(measure(args), args)
    print(text)
    write_section("Alignment on real pairs", text)


if __name__ == "__main__":
    main()
