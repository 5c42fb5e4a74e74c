"""What stands in metrics.jsonl is what the words say, and means are over examples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from polyalign.api import declaration_of
from polyalign.policies.language.policy import LanguagePolicy
from polyalign.runs.training import train
from polyalign.types import Rows
from tests.runs.kit import config, write_pairs

BETA = 0.5


def sums(policy: LanguagePolicy, rows: list[dict[str, Any]], side: str) -> torch.Tensor:
    """Summed log-probability of one side's answer of each pair, scored one by one, [P]."""
    found = []
    for row in rows:
        one = policy.encode(tuple(row["prompt"]), tuple(row[side]))
        with torch.no_grad():
            found.append(policy.score(Rows.collate([one])).logp.sum())
    return torch.stack(found).double()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> dict[str, Any]:
    """A run of three steps, evaluated after each on held-out pairs of uneven lengths."""
    folder = tmp_path_factory.mktemp("metrics")
    data = write_pairs(folder / "pairs.jsonl", 12)
    held = write_pairs(folder / "held.jsonl", 7)
    options = config(
        "dpo", tiny_llama, data, folder / "run", batch=4, epochs=1, micro=50, beta=BETA,
        eval_data=str(held), eval_every=1, samples=0,
    )  # fmt: skip
    run = train(declaration_of("dpo"), options)

    def read(file: Path) -> list[dict[str, Any]]:
        return [json.loads(line) for line in file.read_text("utf-8").splitlines()]

    return {
        "train": [row for row in run.metrics() if row["split"] == "train"],
        "eval": [row for row in run.metrics() if row["split"] == "eval"],
        "held": read(held),
        "base": LanguagePolicy.from_pretrained(tiny_llama, frozen=True),
        "final": LanguagePolicy.from_pretrained(run / "final", frozen=True),
    }


def test_t49_chosen_and_rejected_stand_under_their_own_names(made):
    """Before the first update, and after the last, by scoring every answer alone."""
    for row, policy in ((made["eval"][0], made["base"]), (made["eval"][-1], made["final"])):
        for side in ("chosen", "rejected"):
            now = sums(policy, made["held"], side)
            start = sums(made["base"], made["held"], side)
            assert row[f"eval_logps/{side}"] == pytest.approx(float(now.mean()), abs=1e-3)
            reward = float(BETA * (now - start).mean())
            assert row[f"eval_rewards/{side}"] == pytest.approx(reward, abs=1e-3)
    last = made["eval"][-1]
    assert last["eval_rewards/chosen"] > last["eval_rewards/rejected"]
    assert last["eval_logps/chosen"] != pytest.approx(last["eval_logps/rejected"], abs=0.5)


def test_t49_evaluation_is_one_mean_over_examples_and_not_of_micro_batches(made):
    final, base, held = made["final"], made["base"], made["held"]
    margin = BETA * (
        (sums(final, held, "chosen") - sums(base, held, "chosen"))
        - (sums(final, held, "rejected") - sums(base, held, "rejected"))
    )
    last = made["eval"][-1]
    loss = -torch.nn.functional.logsigmoid(margin)
    assert last["eval_loss"] == pytest.approx(float(loss.mean()), abs=1e-4)
    assert last["eval_rewards/margins"] == pytest.approx(float(margin.mean()), abs=1e-3)
    assert last["eval_rewards/accuracies"] == pytest.approx(float((margin > 0).double().mean()))


def test_t49_evaluation_rows_are_never_taken_for_training(made):
    assert [row["step"] for row in made["eval"]] == [0, 1, 2, 3]
    assert [row["step"] for row in made["train"]] == [1, 2, 3]
    for row in made["eval"]:
        assert {"eval_loss", "eval_rewards/chosen"} <= set(row)
        assert not {"loss", "grad_norm", "lr", "rewards/chosen"} & set(row)
    for row in made["train"]:
        assert not any(name.startswith("eval_") for name in row)


def test_t49_a_steps_row_is_over_its_whole_step_and_not_over_the_last_micro_batch(tmp_path, made):
    """Accumulation windows: the first step of all pairs is the base's mean over all pairs."""
    data = tmp_path / "pairs.jsonl"
    data.write_text("\n".join(map(json.dumps, made["held"])), "utf-8")
    base = made["base"].model.config._name_or_path
    options = config(
        "dpo", Path(base), data, tmp_path / "run", batch=7, max_steps=1, micro=40, samples=0
    )
    (row,) = train(declaration_of("dpo"), options).metrics()
    for side in ("chosen", "rejected"):
        expected = float(sums(made["base"], made["held"], side).mean())
        assert row[f"logps/{side}"] == pytest.approx(expected, abs=1e-3)


def test_t14_t20_answers_that_a_limit_empties_are_counted_listed_and_change_nothing(
    tmp_path, tiny_llama
):
    """The rest trains exactly as if the emptied pairs had never been there."""
    kept = [
        {"prompt": f"say {i}", "chosen": "good " * (1 + i % 3), "rejected": "bad"} for i in range(6)
    ]
    long = {"prompt": "x" * 80, "chosen": "yes", "rejected": "no"}
    rows = {}
    for name, pairs in {"with": [*kept, long], "without": kept}.items():
        data = tmp_path / f"{name}.jsonl"
        data.write_text("\n".join(map(json.dumps, pairs)), "utf-8")
        options = config(
            "dpo", tiny_llama, data, tmp_path / name, max_length=40, max_prompt_length=None,
            samples=0,
        )  # fmt: skip
        run = train(declaration_of("dpo"), options)
        rows[name] = [{k: row[k] for k in ("loss", "logps/chosen")} for row in run.metrics()]
        if name == "with":
            (listed,) = [
                json.loads(x) for x in (run / "rejects.jsonl").read_text("utf-8").splitlines()
            ]
            assert "no token left" in listed["reason"]
            assert listed["record"]["prompt"] == long["prompt"]
            assert run.plan()["dropped"] == 1
            assert run.plan()["records"] == 6
    assert rows["with"] == rows["without"]


def test_t14_held_out_answers_that_a_limit_empties_are_told(tmp_path, tiny_llama):
    from polyalign.runs.folder import Silent
    from polyalign.runs.training import prepare

    data = write_pairs(tmp_path / "pairs.jsonl", 4)
    held = tmp_path / "held.jsonl"
    rows = [json.loads(line) for line in data.read_text("utf-8").splitlines()]
    rows[2]["prompt"][0]["content"] *= 40
    held.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    options = config("dpo", tiny_llama, data, tmp_path / "run", eval_data=str(held), max_length=90)
    ready = prepare(declaration_of("dpo"), options, Silent())
    assert len(ready.held_out) == 3
    told = "held out: 1 examples are left out, as max_length=90 leaves them no answer."
    assert told in ready.plan["notes"]
