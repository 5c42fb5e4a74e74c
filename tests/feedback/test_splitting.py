"""Splitting by prompt."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyalign.errors import DataError, OptionError
from polyalign.feedback import Quadruple, read, split
from polyalign.feedback.splitting import prompt_identity

ROWS = [
    {"id": f"{i}-{k}", "prompt": f"prompt {i}", "chosen": f"a{k}", "rejected": "b"}
    for i in range(200)
    for k in range(2)
]


def test_no_prompt_stands_in_two_parts_and_no_row_is_lost() -> None:
    train, test = split(read(ROWS), test=0.2, seed=3)
    assert len(train) + len(test) == len(ROWS)
    assert not {r.prompt for r in train} & {r.prompt for r in test}
    assert 0.1 < len(test) / len(ROWS) < 0.3


@given(st.permutations(range(20)))
def test_a_split_does_not_depend_on_the_order_of_rows(order: list[int]) -> None:
    rows = ROWS[:20]
    expected = {r.key for r in split(read(rows), test=0.4)[1]}
    assert {r.key for r in split(read([rows[i] for i in order]), test=0.4)[1]} == expected


def test_added_rows_move_no_row_to_the_other_part() -> None:
    before = {r.key for r in split(read(ROWS[:300]))[1]}
    after = {r.key for r in split(read(ROWS))[1]}
    assert before <= after


def test_another_seed_gives_another_split() -> None:
    parts = [{r.key for r in split(read(ROWS), seed=seed)[1]} for seed in (0, 1)]
    assert parts[0] != parts[1]


def test_white_space_and_form_make_no_other_prompt() -> None:
    turn = ({"role": "user", "content": "a  b\n"},)
    assert prompt_identity("a b") == prompt_identity(turn)
    assert prompt_identity("a b") != prompt_identity("a c")


def test_prompts_tied_by_quadruples_stay_together() -> None:
    rows = [
        Quadruple(key=f"{i}", prompts=(f"p{i}", f"p{i + 1}"), completions=("a", "b"))
        for i in range(0, 40)
        if i % 4 != 3
    ]
    train, test = split(rows, test=0.5)
    seen = [{p for r in part for p in r.prompts} for part in (train, test)]
    assert not seen[0] & seen[1]


def test_texts_without_a_prompt_are_split_by_themselves() -> None:
    train, test = split(read([{"text": f"text {i}"} for i in range(100)]), test=0.3)
    assert len(train) > 40
    assert len(test) > 10


def test_an_empty_part_and_a_wrong_share_are_errors() -> None:
    with pytest.raises(DataError, match="part would be empty.*has 1 prompts"):
        split(read(ROWS[:2]))
    with pytest.raises(OptionError, match=r"test share is 1\.5"):
        split(read(ROWS), test=1.5)
