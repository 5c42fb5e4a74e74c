"""Pairing rules and conversions between kinds."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyalign.errors import DataError, OptionError
from polyalign.feedback import (
    AUTOMATIC,
    RULES,
    Binary,
    Pair,
    Quadruple,
    Scored,
    Steps,
    Votes,
    convert,
    pair,
    read,
    to_trl,
)
from polyalign.feedback.conversion import CONVERSIONS, majority

scores = st.lists(st.integers(0, 4).map(float), min_size=1, max_size=6)


def scored(values: list[float], key: str = "k") -> Scored:
    texts = tuple(f"answer {i}" for i in range(len(values)))
    return Scored(key=key, prompt="p", completions=texts, scores=tuple(values))


@given(
    scores,
    st.sampled_from(sorted(set(RULES) - {"correct-incorrect", "second-worst"})),
    st.integers(0, 9),
)
def test_a_rule_puts_only_better_against_worse(values: list[float], rule: str, seed: int) -> None:
    pairs = RULES[rule](values, random.Random(seed))
    assert all(values[i] > values[j] for i, j in pairs)
    # Every rule finds something to learn from, unless all scores are tied.
    assert bool(pairs) == (len(set(values)) > 1)


def test_each_rule_makes_its_pairs() -> None:
    rng = random.Random(0)
    values = [1.0, 3.0, 2.0]
    assert RULES["best-worst"](values, rng) == [(1, 0)]
    assert RULES["best-random"](values, rng)[0][0] == 1
    assert sorted(RULES["all"](values, rng)) == [(1, 0), (1, 2), (2, 0)]
    assert sorted(RULES["adjacent"](values, rng)) == [(1, 2), (2, 0)]
    right_wrong = RULES["correct-incorrect"]([1.0, 0.0, 1.0, 0.0], rng)
    assert sorted(i for i, _ in right_wrong) == [0, 2]
    assert sorted(j for _, j in right_wrong) == [1, 3]


@given(scores, st.integers(0, 9))
def test_second_worst_leaves_the_best_of_three_as_gold(values: list[float], seed: int) -> None:
    made = (
        list(pair([scored(values)], "second-worst", seed=seed))
        if len(values) > 2 and sorted(values)[-2] > min(values)
        else []
    )
    if not made:
        assert RULES["second-worst"](values, random.Random(seed)) == []
        return
    (only,) = made
    gold, chosen, rejected = (
        values[int(str(text).split()[-1])]
        for text in (only.others["gold"], only.chosen, only.rejected)
    )
    assert (gold, chosen, rejected) == (max(values), sorted(values)[-2], min(values))
    assert len({only.others["gold"], only.chosen, only.rejected}) == 3


def test_second_worst_makes_nothing_of_fewer_than_three_different_answers() -> None:
    twice = Scored(key="k", prompt="p", completions=("a", "a", "b"), scores=(3.0, 2.0, 1.0))
    with pytest.raises(DataError, match="No pairs come out"):
        pair([scored([3.0, 1.0]), twice], "second-worst")


def test_pairs_keep_scores_and_gap_and_obey_min_gap() -> None:
    rows = [scored([1.0, 3.0], "wide"), scored([1.0, 1.5], "narrow")]
    assert len(pair(rows)) == 2
    (only,) = pair(rows, min_gap=1.0)
    assert only.key == "wide-1-0"
    assert only.fields == {"score_chosen": 3.0, "score_rejected": 1.0, "margin": 2.0}


def test_pairs_are_a_function_of_seed_and_key_not_of_order() -> None:
    rows = [scored([3.0, 1.0, 1.0, 1.0, 0.0], f"k{i}") for i in range(30)]
    first = {p.key for p in pair(rows, "best-random", seed=1)}
    assert first == {p.key for p in pair(rows[::-1], "best-random", seed=1)}
    assert first != {p.key for p in pair(rows, "best-random", seed=2)}


def test_identical_answers_make_no_pair() -> None:
    row = Scored(key="k", prompt="p", completions=("a", "a", "b"), scores=(2.0, 1.0, 0.0))
    assert {(p.chosen, p.rejected) for p in pair([row], "all")} == {("a", "b")}


def test_mistakes_in_pairing_name_their_mend() -> None:
    with pytest.raises(OptionError, match="Did you mean best-worst"):
        pair([scored([1.0, 2.0])], "best-wurst")
    with pytest.raises(OptionError, match="min_gap is -1"):
        pair([scored([1.0, 2.0])], min_gap=-1.0)
    with pytest.raises(DataError, match="scores of 0 and 1 only"):
        pair([scored([1.0, 2.0])], "correct-incorrect")
    with pytest.raises(DataError, match="not of pairs"):
        pair([Pair(key="k", prompt="p", chosen="a", rejected="b")])
    with pytest.raises(DataError, match="No pairs come out"):
        pair([scored([1.0, 1.0])])


VOTES = [("w1", 0, 1, 1.0), ("w2", 0, 1, 1.0), ("w3", 0, 1, 0.0), ("w4", 0, 1, 0.5)]


def test_votes_become_pairs_by_majority_and_ties_are_counted() -> None:
    rows = [
        Votes(key="a", prompt="p", completions=("x", "y"), votes=tuple(VOTES)),
        Votes(key="t", prompt="p", completions=("x", "y"), votes=(VOTES[0], VOTES[2])),
    ]
    pairs = convert(rows, Pair)
    (only,) = pairs
    assert (only.key, only.chosen, only.fields["agreement"]) == ("a", "x", 0.5)
    assert any("1 comparisons without a majority" in note for note in pairs.notes)


def test_a_vote_names_its_answers_in_either_order() -> None:
    swapped = Votes(key="k", prompt="p", completions=("x", "y"), votes=(("w", 1, 0, 1.0),))
    assert convert([swapped], "pairs")[0].chosen == "y"


def test_ties_count_when_asked() -> None:
    outcomes = {1.0: 1, 0.5: 2}
    assert majority(outcomes) == 1.0
    assert majority(outcomes, "counted") == 0.5


def test_a_pair_becomes_two_thumbs_or_a_demonstration() -> None:
    row = Pair(key="k", prompt="p", chosen="a", rejected="b", weight=0.5)
    thumbs = list(convert([row], Binary))
    assert [(t.key, t.completion, t.label, t.weight) for t in thumbs] == [
        ("k/chosen", "a", True, 0.5),
        ("k/rejected", "b", False, 0.5),
    ]
    assert convert([row], "demonstrations")[0].completion == "a"


def test_scores_become_thumbs_by_a_threshold_that_must_be_given() -> None:
    labels = [b.label for b in convert([scored([1.0, 2.0, 3.0])], "binary", threshold=2.0)]
    assert labels == [False, True, True]
    with pytest.raises(OptionError, match="none is given"):
        convert([scored([1.0, 2.0])], "binary")


def test_a_quadruple_becomes_a_pair_under_each_prompt() -> None:
    row = Quadruple(key="k", prompts=("p", "q"), completions=("P", "Q"))
    pairs = [(r.prompt, r.chosen, r.rejected) for r in convert([row], "pairs")]
    assert pairs == [("p", "P", "Q"), ("q", "Q", "P")]


def test_steps_make_one_answer_that_is_good_when_every_step_is() -> None:
    row = Steps(key="k", prompt="p", steps=("a", "b"), labels=(True, False))
    (answer,) = convert([row], "binary")
    assert (answer.completion, answer.label) == ("a\nb", False)


def test_an_option_of_another_conversion_is_refused() -> None:
    row = Pair(key="k", prompt="p", chosen="a", rejected="b")
    with pytest.raises(OptionError, match="threshold has no meaning for pairs -> binary"):
        convert([row], "binary", threshold=1.0)


def test_an_impossible_conversion_says_what_is_possible() -> None:
    with pytest.raises(DataError, match="prompts cannot be converted to pairs"):
        convert(read([{"prompt": "p"}]), "pairs")
    with pytest.raises(DataError, match="They can become: binary"):
        convert([Pair(key="k", prompt="p", chosen="a", rejected="b")], "votes")


def test_every_conversion_gives_its_kind_and_automatic_ones_say_what_they_do() -> None:
    examples = read_examples()
    for (start, to), conversion in CONVERSIONS.items():
        made = conversion.expand(examples[start])
        assert made, (start, to)
        assert all(type(record) is to for record in made)
        keys = [record.key for record in made]
        assert len(set(keys)) == len(keys)
    assert set(AUTOMATIC) <= set(CONVERSIONS)
    assert all(AUTOMATIC.values())


def read_examples() -> dict[type, object]:
    rows = [
        {"prompt": "p", "completion": "c"},
        {"prompt": "p", "chosen": "a", "rejected": "b"},
        {"prompt": "p", "completion": "c", "label": True},
        {"prompt": "p", "completions": ["a", "b"], "scores": [1, 0]},
        {"prompt": "p", "responses": ["a", "b"], "annotations": [{"label": "a"}]},
        {"prompt": "p", "completions": ["a", "b"], "labels": [True, True]},
        {"prompt_1": "p", "prompt_2": "q", "completion_1": "a", "completion_2": "b"},
    ]
    records = [read([row])[0] for row in rows]
    return {type(record): record for record in records}


def test_rows_in_trl_form_are_read_back_equal() -> None:
    for record in read_examples().values():
        (row,) = to_trl([record])
        assert read([row])[0] == record
