"""The feedback that ships with the demo is what its README says."""

from __future__ import annotations

from pathlib import Path

import pytest

from demo.instructions import HELDOUT, NEVER_TRAINED, TRAIN, TRAINED, instructions
from demo.make_feedback import heldout_rows, pairs_of, read, training_rows
from polyalign.judges.verifiers import check_spec, verify

DATA = Path(__file__).resolve().parents[2] / "demo" / "data"


def rows(name: str) -> list[dict]:
    return read(DATA / name)


def asked(row: dict) -> str:
    (turn,) = row["prompt"]
    assert turn["role"] == "user"
    return turn["content"]


def test_in_every_pair_the_chosen_answer_follows_and_the_rejected_does_not():
    for pair in rows("train.jsonl.gz"):
        judged = [verify(pair["spec"], pair[side][0]["content"]) for side in ("chosen", "rejected")]
        assert judged == [1.0, 0.0], pair["id"]


def test_no_pair_occurs_twice_and_no_prompt_more_than_twice():
    pairs = rows("train.jsonl.gz")
    answers = [(asked(p), p[side][0]["content"]) for p in pairs for side in ("chosen", "rejected")]
    assert len(set(answers)) == len(answers)
    prompts = [asked(pair) for pair in pairs]
    assert max(prompts.count(prompt) for prompt in prompts) <= 2


def test_length_says_little_about_which_answer_is_chosen():
    lengths = [
        [len(pair[side][0]["content"]) for side in ("chosen", "rejected")]
        for pair in rows("train.jsonl.gz")
    ]
    longer = sum((chosen > rejected) + (chosen == rejected) / 2 for chosen, rejected in lengths)
    assert 0.35 < longer / len(lengths) < 0.65


def test_the_heldout_files_are_those_that_the_script_makes():
    new, kinds = heldout_rows()
    assert rows("heldout_new.jsonl.gz") == new
    assert rows("heldout_kinds.jsonl.gz") == kinds


def test_the_pairs_belong_to_the_instructions_that_the_script_makes():
    made = {row["id"]: row for row in training_rows()}
    for pair in rows("train.jsonl.gz"):
        row = made[pair["id"].rsplit("-", 1)[0]]
        assert (pair["prompt"], pair["spec"], pair["kind"]) == (
            row["prompt"], row["spec"], row["kind"],
        )  # fmt: skip


def test_nothing_held_out_was_trained():
    trained, heldout = {asked(p) for p in rows("train.jsonl.gz")}, [*rows("heldout_new.jsonl.gz")]
    heldout += rows("heldout_kinds.jsonl.gz")
    assert not trained & {asked(row) for row in heldout}
    for side in ("topics", "endings", "openings", "inclusions", "forbidden"):
        assert not set(getattr(TRAIN, side)) & set(getattr(HELDOUT, side)), side
    assert not set(TRAINED) & set(NEVER_TRAINED)
    assert {row["kind"] for row in rows("train.jsonl.gz")} == set(TRAINED)
    assert {row["kind"] for row in rows("heldout_kinds.jsonl.gz")} == set(NEVER_TRAINED)


@pytest.mark.parametrize("kind", TRAINED)
def test_instructions_are_the_same_for_the_same_seed_and_all_different(kind):
    first = list(instructions(kind, HELDOUT, 10, seed=3))
    assert first == list(instructions(kind, HELDOUT, 10, seed=3))
    assert len({asked(row) for row in first}) == 10
    for row in first:
        check_spec(row["spec"])


def test_cut_off_answers_and_repeated_ones_make_no_pairs():
    row = {"id": "x-001", "kind": "question", "prompt": [], "spec": {"kind": "question"}}
    answers = [("Why?", 2, True), ("Why?", 2, True), ("How?", 2, False), ("No.", 2, True)]
    pairs = pairs_of(row | {"answers": [*answers, ("A cut", 48, False)]})
    assert [(p["chosen"][0]["content"], p["rejected"][0]["content"]) for p in pairs] == [
        ("Why?", "No.")
    ]


def test_each_chosen_answer_meets_the_rejected_one_nearest_in_length():
    row = {"id": "x-001", "kind": "question", "prompt": [], "spec": {"kind": "question"}}
    answers = [("Why is it so?", 5, True), ("No.", 2, True), ("It is so.", 5, True)]
    (pair,) = pairs_of(row | {"answers": answers})
    assert pair["rejected"][0]["content"] == "It is so."
