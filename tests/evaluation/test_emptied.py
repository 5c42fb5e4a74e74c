"""T14 in evaluation: an answer that the length limits leave nothing of is no certain answer."""

from __future__ import annotations

import pytest

from polyalign.errors import DataError
from polyalign.evaluation.api import evaluate
from polyalign.evaluation.likelihood import perplexity
from polyalign.evaluation.ranking import ranking
from polyalign.feedback.records import Demonstration, Pair
from tests.policies import tiny

LONG = "the cat ran after the dog and the dog ran after the cat over there " * 2
PAIRS = [
    Pair(key="short", prompt="the cat", chosen=" yes", rejected=" no, never"),
    Pair(key="long", prompt=LONG, chosen=" yes", rejected=" no"),
    Pair(key="other", prompt="a", chosen=" prompt ends here", rejected=" no"),
]


@pytest.fixture(scope="module")
def policy():
    return tiny.policy(max_length=24)


def test_t14_pairs_with_an_emptied_answer_are_left_out_and_counted(policy):
    assert not policy.encode(LONG, " yes").mask.any()
    found = ranking(policy, policy.freeze(), PAIRS)
    assert found.keys == ("short", "other")
    assert (found.chosen < 0).all()
    assert (found.rejected < 0).all()
    alone = ranking(policy, None, [PAIRS[0], PAIRS[2]])
    told, kept = found.to_json(), alone.to_json()
    assert (told["pairs"], told["emptied"], kept["emptied"]) == (2, 1, 0)
    for by in ("likelihood", "mean_likelihood"):
        assert told["accuracy"][by] == kept["accuracy"][by]


def test_t14_emptied_answers_lower_no_perplexity(policy):
    shown = [Demonstration(key=p.key, prompt=p.prompt, completion=p.chosen) for p in PAIRS]
    found, kept = perplexity(policy, shown), perplexity(policy, [shown[0], shown[2]])
    assert found.emptied == 1
    assert found.nll.tolist() == kept.nll.tolist()
    assert (found.steps > 0).all()


def test_t14_nothing_left_is_said_and_not_scored(policy):
    with pytest.raises(DataError, match=r"No pair can be ranked.*Raise max_length"):
        ranking(policy, None, [PAIRS[1]])
    with pytest.raises(DataError, match=r"No answer can be scored.*Raise max_length"):
        perplexity(policy, [Demonstration(key="long", prompt=LONG, completion=" yes")])


def test_t14_the_evaluation_tells_how_many_were_emptied(policy):
    found = evaluate(policy, PAIRS, reference=policy.freeze(), samples=0)
    assert found["data"]["records"] == 3
    assert found["ranking"]["emptied"] == found["ranking_reference"]["emptied"] == 1
    assert found["ranking"]["accuracy"]["implicit"]["value"] == 0.5
