"""Verifiers: strict programs that say whether an answer follows an instruction."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyalign.errors import DataError, OptionError
from polyalign.judges.verifiers import VERIFIERS, Verifier, check_spec, verify

CASES = [
    ("exact_words", {"n": 3}, ["Green tea, please.", "a well-known - trick"], ["two words", ""]),
    ("at_most_words", {"n": 2}, ["Yes", "Oh no!"], ["one two three", "...", ""]),
    ("at_least_words", {"n": 2}, ["Oh no!"], ["Yes"]),
    (
        "exact_sentences",
        {"n": 2},
        ["It is 3.50 today. Really?", 'He said "no." She left.'],
        ["One only.", "One. Two", "One. Two. Three."],
    ),
    ("one_sentence", {}, ["It rains.", "What?!"], ["It rains", "It\nrains.", "It. Rains."]),
    (
        "bullets",
        {"n": 2},
        ["- a\n- b", "* a\n\n* b", "• a\n• b"],
        ["- a", "Here:\n- a\n- b", "-a\n-b"],
    ),
    ("numbered", {"n": 2}, ["1. a\n2. b", "1) a\n2) b"], ["1. a\n3. b", "2. a\n1. b", "1. a 2. b"]),
    (
        "comma_list",
        {"n": 3},
        ["cat, dog, cow", "Cat, dog, and cow."],
        ["cat, dog", "cat, cat, dog", "cat,\ndog, cow", "cat, dog, a cow that gave much milk"],
    ),
    (
        "json_keys",
        {"keys": ["a", "b"]},
        ['{"a": 1, "b": "x"}', '{"b": false, "a": 0}'],
        [
            '{"a": 1}',
            '{"a": 1, "b": ""}',
            '```{"a": 1, "b": 2}```',
            "[1]",
            '{"a": 1, "b": 2, "c": 3}',
        ],
    ),
    ("quoted", {}, ['"Hi there."', "“Hi.”"], ['"Hi', 'Say "hi"', '"a" and "b"', '""', "'Hi'"]),
    ("bracketed", {}, ["[a b]"], ["a [b]", "[]", "[a] [b]"]),
    ("one_line", {}, ["a b"], ["a\nb"]),
    ("lowercase", {}, ["all small 1!"], ["One capital", "123"]),
    ("uppercase", {}, ["ALL BIG 1!"], ["ONE small", "123"]),
    (
        "begins_with",
        {"phrase": "Every day"},
        ["Every day, I run.", '"every day" it is'],
        ["Every days", "On every day"],
    ),
    (
        "ends_with",
        {"phrase": "art"},
        ["I like art.", "ART", 'It is "art"!'],
        ["a party", "art is", "smart"],
    ),
    ("begins_with_letter", {"letter": "B"}, ["Bees hum.", '"bees"'], ["A bee"]),
    ("ends_with_mark", {"mark": "!"}, ["Wow!"], ["Wow.", "Wow! yes"]),
    ("question", {}, ["Why?"], ["Why? Because.", "Why", "One. Two?"]),
    ("include", {"phrases": ["old", "big"]}, ["Big and OLD."], ["big and bold", "big"]),
    ("include_times", {"phrase": "red", "n": 2}, ["Red, red rose"], ["red", "red bored"]),
    ("avoid", {"phrases": ["the", "of"]}, ["Then often"], ["The end", "cup of tea"]),
    ("avoid_characters", {"characters": "e,"}, ["a big cat"], ["Eat", "a, b"]),
    (
        "repeat",
        {"sentence": "It is noon."},
        ["It is noon.", "It  is\nnoon."],
        ["It is noon", '"It is noon."'],
    ),
    ("one_of", {"options": ["yes", "no"]}, ["Yes.", "no"], ["Yes, it is", "maybe"]),
    ("number", {"value": 12}, ["12", "12.", "12.0"], ["twelve", "12 apples", "13", "x = 12"]),
    ("number", {}, ["-3.5", "1,000"], ["about 3"]),
    (
        "final_number",
        {"value": 1000},
        ["So 5 + 995 = 1,000.", "#### 1000"],
        ["1000 is 5 more than 995"],
    ),
    ("contains", {"part": "Ab"}, ["xAbx"], ["ab"]),
    ("regex", {"pattern": r"\d+ cats"}, ["3 cats"], ["I have 3 cats"]),
    (
        "all_of",
        {"of": [{"kind": "lowercase"}, {"kind": "exact_words", "n": 2}]},
        ["two words"],
        ["Two words", "three small words"],
    ),
]


def test_every_verifier_has_its_cases():
    assert {kind for kind, *_ in CASES} == set(VERIFIERS)


@pytest.mark.parametrize(("kind", "entries", "right", "wrong"), CASES)
def test_a_verifier_accepts_what_follows_and_refuses_what_nearly_does(kind, entries, right, wrong):
    spec = {"kind": kind, **entries}
    assert {text: verify(spec, text) for text in right} == dict.fromkeys(right, 1.0)
    assert {text: verify(spec, text) for text in wrong} == dict.fromkeys(wrong, 0.0)


@pytest.mark.parametrize(("kind", "entries", "right", "wrong"), CASES)
def test_spaces_around_an_answer_change_nothing_and_no_answer_follows_nothing(
    kind, entries, right, wrong
):
    spec = {"kind": kind, **entries}
    assert all(verify(spec, f" \n{text}\n ") == verify(spec, text) for text in right + wrong)
    assert verify(spec, " \n") == 0.0


@given(text=st.text(max_size=40))
def test_any_text_is_judged_zero_or_one(text):
    for kind, entries, *_ in CASES:
        assert verify({"kind": kind, **entries}, text) in (0.0, 1.0)


@given(st.lists(st.from_regex(r"[a-z]{1,6}", fullmatch=True), min_size=1, max_size=9))
def test_joined_words_are_counted_back(parts):
    assert verify({"kind": "exact_words", "n": len(parts)}, " ".join(parts)) == 1.0


def test_a_misspelt_kind_gets_the_nearest_name():
    with pytest.raises(OptionError, match="Did you mean lowercase?"):
        verify({"kind": "lowercases"}, "x")


@pytest.mark.parametrize("spec", [{"kind": "exact_words"}, {"kind": "exact_words", "m": 3}])
def test_missing_and_unknown_entries_are_refused_with_the_right_ones(spec):
    with pytest.raises(OptionError, match="It takes: n."):
        check_spec(spec)


def test_the_specs_inside_a_spec_are_checked_too():
    with pytest.raises(OptionError, match="There is no verifier nonesuch"):
        check_spec({"kind": "all_of", "of": [{"kind": "nonesuch"}]})


def test_the_judge_reads_each_prompts_own_spec():
    meta = [{"spec": {"kind": "lowercase"}}, {"spec": json.dumps({"kind": "uppercase"})}]
    assert Verifier().scores(["p", "q"], ["small", "small"], meta) == [1.0, 0.0]


def test_the_judge_reads_the_words_of_a_conversation():
    answer = ({"role": "assistant", "content": "small"},)
    assert Verifier().scores(["p"], [answer], [{"spec": {"kind": "lowercase"}}]) == [1.0]


def test_an_answer_that_was_cut_off_follows_nothing():
    meta = [{"spec": {"kind": "lowercase"}, "finished": False}]
    assert Verifier().scores(["p"], ["small"], meta) == [0.0]


def test_the_verdict_holds_one_score_for_each_answer():
    verdict = Verifier(spec={"kind": "lowercase"})(["p", "q"], ["a", "A"], [{}, {}])
    assert verdict.score.tolist() == [1.0, 0.0]


def test_a_prompt_without_a_spec_is_a_data_error():
    with pytest.raises(DataError, match="Prompt 2 has no verifier in its column 'spec'"):
        Verifier().scores(["p", "q"], ["a", "a"], [{"spec": {"kind": "lowercase"}}, {}])
