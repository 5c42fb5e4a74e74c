"""Every method that learns from given feedback trains from files, by its declaration alone."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from polyalign.api import declaration_of
from polyalign.feedback.records import kind_name
from polyalign.methods import catalogue
from polyalign.runs import plan
from polyalign.runs.training import train
from tests.runs.kit import config

COUNT = 8


def turn(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def row(kind: str, i: int) -> dict[str, Any]:
    """One example with every column that a method of this kind may read."""
    asked = {"prompt": [{"role": "user", "content": f"Say {i % 4}"}]}
    good, bad = "good " * (1 + i % 3) + str(i), "bad " * (1 + i % 4)
    match kind:
        case "pairs":
            return asked | {
                "chosen": turn(good),
                "rejected": turn(bad),
                "gold": turn("the best"),
                "source_chosen": turn("another's best"),
                "score_chosen": 9.0 - i % 3,
                "score_rejected": 1.0 + i % 2,
                "margin": 0.5,
                "strength": 0.9,
                "trace": i // 4 % 2,
                "m_w": 0.7,
                "m_l": 0.2,
                "dimension": "brief" if i % 2 else "kind",
            }
        case "binary":
            return asked | {"completion": turn(good if i % 2 else bad), "label": bool(i % 2)}
        case "scored":
            answers = [turn(good), turn(bad), turn("fair")]
            return asked | {"completions": answers, "scores": [3.0 + i, 1.0, 2.0]}
        case "demonstrations":
            return asked | {"completion": turn(good)}
        case "quadruples":
            other = [{"role": "user", "content": f"Do {i}"}]
            return {
                "prompt_1": asked["prompt"],
                "prompt_2": other,
                "completion_1": turn(good),
                "completion_2": turn(bad),
            }
    raise ValueError(kind)


KINDS = ("pairs", "binary", "scored", "demonstrations", "quadruples")


@pytest.fixture(autouse=True)
def no_estimate(monkeypatch):
    """How long a run will take is measured on the machine, which takes longer than these runs."""
    monkeypatch.setattr(plan, "_speed", lambda device: 1e9)


IDS = [
    id
    for id, entry in catalogue().items()
    if entry.get("kind", "train") == "train" and entry["feedback"] in KINDS
]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("feedback")
    made = {}
    for kind in KINDS:
        made[kind] = folder / f"{kind}.jsonl"
        made[kind].write_text("\n".join(json.dumps(row(kind, i)) for i in range(COUNT)), "utf-8")
    return made


@pytest.mark.parametrize("id", IDS)
def test_it_trains_and_is_evaluated_from_files(id, files, tiny_llama, tmp_path):
    declared = declaration_of(id)
    data = files[kind_name(declared.feedback)]
    run = train(
        declared,
        config(
            id, tiny_llama, data, tmp_path / "run",
            max_steps=2, epochs=1, batch=4, eval_data=str(data), eval_every=2, samples=0,
            save_every=0,
        ),
    )  # fmt: skip
    rows = run.metrics()
    trained = [r for r in rows if r["split"] == "train"]
    held_out = [r for r in rows if r["split"] == "eval"]
    assert trained
    assert held_out
    for numbers in rows:
        assert all(math.isfinite(v) for v in numbers.values() if isinstance(v, float))
    assert any("loss" in r or any(k.startswith("loss/") for k in r) for r in trained)
    assert all("eval_loss" in r for r in held_out)
    assert any(r.get("grad_norm", 0.0) > 0 for r in trained)
    assert list((run.path / "final").glob("*.safetensors"))
