import math

import numpy as np
import pytest

from polyalign.evaluation.ranking import accuracy_gain, ranking
from polyalign.feedback.records import Pair
from tests.evaluation.fake import Letters


def pairs(*rows):
    return [Pair(key=str(i), prompt=p, chosen=c, rejected=r) for i, (p, c, r) in enumerate(rows)]


GOOD = pairs(("p", "aab", "bb"), ("q", "ab", "bbb"), ("r", "aa", "ba"))


def test_the_implicit_reward_is_the_log_ratio_to_the_reference():
    policy, reference = Letters(a=4), Letters()
    found = ranking(policy, reference, GOOD)
    chosen, rejected = found.scores("implicit")
    per = {c: policy.law["abcdefgh".index(c)] - reference.law["abcdefgh".index(c)] for c in "ab"}
    end = policy.law[8] - reference.law[8]
    assert chosen[0] == pytest.approx(float(2 * per["a"] + per["b"] + end))
    assert rejected[0] == pytest.approx(float(2 * per["b"] + end))


def test_likelihood_by_sum_prefers_short_answers_and_by_mean_does_not():
    found = ranking(Letters(), None, pairs(("p", "aaaa", "a"), ("q", "bbbb", "b")))
    assert found.wins("likelihood").tolist() == [0.0, 0.0]
    assert found.wins("mean_likelihood").tolist() == [0.5, 0.5]


def test_a_policy_is_a_tie_against_itself():
    found = ranking(Letters(a=2), Letters(a=2), GOOD).to_json()
    assert found["accuracy"]["implicit"]["value"] == 0.5
    assert found["rewards/margins"]["value"] == 0.0


def test_t49_exchanging_chosen_and_rejected_exchanges_every_figure():
    policy, reference = Letters(a=4, end=0.3), Letters()
    swapped = [Pair(key=p.key, prompt=p.prompt, chosen=p.rejected, rejected=p.chosen) for p in GOOD]
    one, two = ranking(policy, reference, GOOD), ranking(policy, reference, swapped)
    a, b = one.to_json(), two.to_json()
    for by in ("implicit", "likelihood", "mean_likelihood"):
        assert a["accuracy"][by]["value"] == pytest.approx(1 - b["accuracy"][by]["value"])
    assert a["logps/chosen"] == b["logps/rejected"]
    assert a["rewards/margins"]["value"] == pytest.approx(-b["rewards/margins"]["value"])
    assert a["accuracy"]["implicit"]["value"] == 1.0


def test_without_a_reference_there_is_no_implicit_reward():
    assert set(ranking(Letters(), None, GOOD).to_json()["accuracy"]) == {
        "likelihood",
        "mean_likelihood",
    }


def test_accuracy_does_not_depend_on_beta_but_calibration_does():
    policy, reference = Letters(a=4), Letters()
    one = ranking(policy, reference, GOOD, beta=0.1).to_json()
    two = ranking(policy, reference, GOOD, beta=2.0).to_json()
    assert one["accuracy"] == two["accuracy"]
    assert two["calibration"]["brier"] < one["calibration"]["brier"] < 0.25


def test_intervals_count_prompts_not_pairs():
    same = pairs(*[("p", "a", "b")] * 6, *[("q", "b", "a")] * 6)
    found = ranking(Letters(a=3), None, same).to_json()
    assert (found["pairs"], found["prompts"]) == (12, 2)
    accuracy = found["accuracy"]["likelihood"]
    assert (accuracy["value"], accuracy["low"], accuracy["high"]) == (0.5, 0.0, 1.0)


def test_the_gain_is_paired_and_needs_the_same_pairs():
    before, after = ranking(Letters(), None, GOOD), ranking(Letters(a=4), None, GOOD)
    gain = accuracy_gain(after, before)
    assert gain.value == pytest.approx(0.5)
    assert gain.p == 0.25
    with pytest.raises(ValueError, match="different pairs"):
        accuracy_gain(after, ranking(Letters(), None, GOOD[:2]))


def test_the_figures_are_plain_json():
    import json

    text = json.dumps(ranking(Letters(a=2), Letters(), GOOD).to_json(), allow_nan=False)
    assert math.isfinite(len(text))
    counts = json.loads(text)["margins"]["counts"]
    assert np.sum(counts) == 3
