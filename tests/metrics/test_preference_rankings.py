"""Ranking, idealised ranking and difficulty of pairs, from the card."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyalign.errors import DataError, OptionError
from polyalign.metrics.preference_rankings import (
    difficulty,
    dpo_loss,
    idealised_log_ratio,
    loss_to_reach,
    ranked,
)

numbers = st.floats(-60, 0)


def test_a_tie_counts_as_ranked_rightly():
    assert ranked([-1.0, -1.0, -2.0], [-1.0, -2.0, -1.0]).tolist() == [1, 1, 0]


def test_raters_split_in_half_ask_for_nearly_equal_probabilities():
    half = [0.5, 0.5, 0.5]
    w, l = np.log([0.105, 0.3, 0.1]), np.log([0.1, 0.1, 0.12])  # noqa: E741
    assert ranked(w, l, half).tolist() == [1, 0, 0]
    assert ranked(w, l, half, tie=0.5).tolist() == [1, 1, 1]


def test_where_most_raters_prefer_the_other_answer_the_order_is_turned():
    assert ranked([-1.0, -2.0], [-2.0, -1.0], [0.2, 0.2]).tolist() == [0, 1]


@given(numbers, numbers, numbers, numbers, st.floats(0.01, 5))
def test_a_pair_is_ranked_rightly_exactly_when_its_loss_is_low_enough(pw, pl, rw, rl, beta):
    h = (pw - pl) - (rw - rl)
    c = rl - rw
    if abs(h - c) < 1e-6:
        return  # a tie up to rounding
    reached = dpo_loss([h], beta) <= loss_to_reach([c], beta)
    assert bool(reached[0]) == bool(ranked([pw], [pl])[0])


def test_the_loss_to_reach_is_the_cards():
    np.testing.assert_allclose(
        loss_to_reach([5.0, 30.0, 0.0], 0.1), [0.474077, 0.048587, 0.693147], 1e-5
    )
    assert difficulty([-3.0], [-1.0]).tolist() == [2.0]


@given(st.floats(-30, -0.01), st.floats(0.01, 2))
def test_a_reference_that_is_right_needs_no_more_than_a_loss_below_log_2(c, beta):
    assert loss_to_reach([c], beta)[0] >= math.log(2)


def test_the_idealised_ratio_is_the_cards():
    rf_w, rf_l, a, beta = -4.0, -2.5, 0.8, 0.5
    ratio = math.exp(rf_w - rf_l) * (a / (1 - a)) ** (1 / beta)
    found = idealised_log_ratio([rf_w], [rf_l], beta, [a])
    np.testing.assert_allclose(np.exp(found), [ratio], rtol=1e-12)


def test_unanimous_raters_use_the_small_remainder_so_a_far_reference_can_still_win():
    found = idealised_log_ratio([-100.0, -5.0], [0.0, 0.0], 1.0)
    np.testing.assert_allclose(found, [math.log(1 / 0.001) - 100, math.log(1 / 0.001) - 5])
    assert (found > 0).tolist() == [False, True]
    assert (idealised_log_ratio([-100.0], [0.0], 0.05) > 0).tolist() == [True]


def test_equal_references_and_split_raters_are_right_as_they_are_and_wrong_at_best():
    assert ranked([-1.0], [-1.0]).tolist() == [1]
    assert (idealised_log_ratio([-1.0], [-1.0], 0.1, [0.5]) > 0).tolist() == [False]


def test_implicit_accuracy_and_ranking_accuracy_differ():
    # The policy moved the right way (h = 1 > 0) and still ranks the pair wrongly.
    lp_w, lp_l, rf_w, rf_l = -5.0, -2.0, -6.0, -2.0
    assert (lp_w - rf_w) - (lp_l - rf_l) > 0
    assert ranked([lp_w], [lp_l]).tolist() == [0]


@pytest.mark.parametrize("a", [0.0, -0.1, 1.1, math.nan])
def test_a_share_outside_its_range_is_refused(a):
    with pytest.raises(DataError, match="Shares lie above 0"):
        idealised_log_ratio([-1.0], [-1.0], 0.1, [a])


def test_a_beta_of_zero_is_refused():
    with pytest.raises(OptionError, match="Use beta > 0"):
        idealised_log_ratio([-1.0], [-1.0], 0.0)
