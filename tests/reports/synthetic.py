"""Run folders made of formulas, for tests of what people look at."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import yaml


def history(steps: int = 60, seed: int = 0, fall: float = 0.0, speed: float = 1.0) -> list[dict]:
    """Training and evaluation rows; ``fall`` pushes both log-probabilities down."""
    draw = random.Random(seed)
    rows: list[dict[str, Any]] = []
    for step in range(steps + 1):
        t = 1 - math.exp(-3 * speed * step / steps)
        margin, down = 0.9 * t, fall * t
        values = {
            "loss": 0.693 - 0.28 * t,
            "rewards/chosen": 0.4 * margin - down,
            "rewards/rejected": -0.6 * margin - down,
            "rewards/margins": margin,
            "rewards/accuracies": 0.5 + 0.22 * t,
            "logps/chosen": -142 + 4 * margin - 10 * down,
            "logps/rejected": -131 - 6 * margin - 10 * down,
        }
        place = {
            "step": step, "epoch": round(2 * step / steps, 3), "stage": 0,
            "time": round(4.1 * step, 1), "tokens": 4200 * step,
        }  # fmt: skip
        if step:
            noisy = {
                name: x + draw.gauss(0, 18 if "logps" in name else 0.06)
                for name, x in values.items()
            }
            noisy |= {"lr": 1e-4 * min(step / 6, (steps - step + 1) / steps),
                      "grad_norm": 2 + draw.random(), "entropy": 1.9 - 0.2 * t,
                      "clip_ratio/high": 0.01 * draw.random()}  # fmt: skip
            rows.append({**place, "split": "train", **noisy})
        if step % (steps // 6) == 0:
            rows.append({**place, "split": "eval", **{f"eval_{k}": v for k, v in values.items()}})
    return rows


def run_folder(
    path: Path,
    *,
    fall: float = 0.0,
    seed: int = 0,
    steps: int = 60,
    speed: float = 1.0,
    **config: Any,
) -> Path:
    """A finished run with everything in it but weights and an evaluation."""
    path.mkdir(parents=True)
    options = {
        "method": "dpo", "hyper": {"beta": 0.1}, "model": "/home/somebody/models/smollm2",
        "data": ["data/human_pairs.jsonl"], "output": str(path), "lr": 1e-4, "seed": seed,
    } | config  # fmt: skip
    plan = {
        "method": options["method"], "hyper": options["hyper"], "model": "3f2a9c0d11e24b77",
        "records": 480, "dropped": 2, "truncated": 5, "tokens": 252000, "steps": steps, "batch": 16,
        "epochs": 2.0, "lr": 1e-4, "full": False, "lora": {"r": 16, "alpha": 32.0},
        "parameters": 134515008, "trainable": 4884480, "device": "cpu", "dtype": "float32",
        "threads": 2, "processes": 1, "seed": seed, "torch": "2.13.0", "python": "3.11.2",
        "notes": ["data/human_pairs.jsonl: 482 examples, preference pairs.",
                  "5 examples are cut at max_length=512."],
    }  # fmt: skip
    (path / "config.yaml").write_text(yaml.safe_dump(options, sort_keys=False))
    (path / "plan.json").write_text(json.dumps(plan))
    lines(path / "metrics.jsonl", history(steps, seed, fall, speed))
    lines(path / "samples.jsonl", SAMPLES)
    (path / "final").mkdir()
    (path / "final" / "polyalign.json").write_text(
        json.dumps({"method": options["method"], "base": options["model"], "steps": steps})
    )
    return path


def lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


SAMPLES = [
    {
        "key": "1",
        "prompt": [{"role": "user", "content": "How do I keep basil alive on a window sill?"}],
        "before": [{"role": "assistant", "content": "Basil is a plant. " * 9}],
        "after": [
            {
                "role": "assistant",
                "content": "Give it the sunniest window you have, water it when the top centimetre "
                "of soil is dry, and pinch off the tips every week:\n\n- it grows bushier\n"
                "- it does not flower, which makes the leaves bitter",
            }
        ],
    },
    {
        "key": "2",
        "prompt": "Say <b>hello</b> in HTML & nothing else.",
        "before": "<script>alert('before')</script>",
        "after": "<b>hello</b>",
    },
]


def estimate(value: float, half: float, n: int = 400) -> dict[str, Any]:
    return {"value": value, "low": value - half, "high": value + half, "n": n, "clusters": n,
            "level": 0.95}  # fmt: skip


def evaluation() -> dict[str, Any]:
    """An evaluation.json with everything that one can hold."""
    bins = [
        {"low": i / 10, "high": (i + 1) / 10, "n": 60, "predicted": i / 10 + 0.05,
         "observed": 0.5 + 0.8 * (i / 10 - 0.45), "observed_low": 0.42 + 0.8 * (i / 10 - 0.45),
         "observed_high": 0.58 + 0.8 * (i / 10 - 0.45)}
        for i in range(2, 8)
    ]  # fmt: skip
    edges = [-2 + i / 6 for i in range(25)]
    counts = [round(60 * math.exp(-((e - 0.4) ** 2))) for e in edges[:-1]]
    gain = {"value": 0.041, "low": 0.012, "high": 0.07, "p": 0.0041, "n": 400}
    return {
        "subject": "run", "reference": "smollm2",
        "data": {"source": "heldout.jsonl", "kind": "pairs", "records": 400, "rejected": 0},
        "ranking": {
            "pairs": 400, "prompts": 396, "beta": 0.1,
            "accuracy": {"implicit": estimate(0.618, 0.047), "likelihood": estimate(0.52, 0.049),
                         "mean_likelihood": estimate(0.571, 0.048)},
            "margins": {"edges": edges, "counts": counts},
            "calibration": {"expected_error": 0.03, "brier": 0.24, "bins": bins},
        },
        "ranking_reference": {
            "pairs": 400,
            "accuracy": {"likelihood": estimate(0.515, 0.049),
                         "mean_likelihood": estimate(0.53, 0.049)},
        },
        "ranking_gain": {"likelihood": gain | {"value": 0.005, "low": -0.01, "p": 0.6},
                         "mean_likelihood": gain},
        "divergence": {"samples": 64, "kl": estimate(2.31, 0.6, 64)},
        "judge": {
            "name": "verifier", "success": estimate(0.47, 0.05), "abstained": 0,
            "by_kind": {"exact_words": estimate(0.31, 0.08, 130), "lowercase": estimate(0.6, 0.07)},
            "length": {"mean": 41.2}, "win_rate": estimate(0.58, 0.03),
            "baseline": {"success": estimate(0.33, 0.05), "length": {"mean": 55.0},
                         "by_kind": {"exact_words": estimate(0.2, 0.07, 130)}},
            "difference": gain | {"value": 0.14, "low": 0.1, "high": 0.18, "p": 0.0001},
            "answers": [],
        },
    }  # fmt: skip
