import numpy as np
import pytest
import scipy.stats as st
from hypothesis import given
from hypothesis import strategies as some

from polyalign.metrics.comparison import (
    holm,
    outcome,
    paired_difference,
    ranking_accuracy,
    sign_flip_test,
    win_rate,
)


def test_the_exact_sign_flip_test_equals_scipys_permutation_test():
    d = np.array([0.4, -0.1, 0.7, 0.3, 0.2, -0.5, 0.9, 0.6])
    theirs = st.permutation_test(
        (d,), np.sum, permutation_type="samples", n_resamples=np.inf, alternative="two-sided"
    )
    assert sign_flip_test(d) == pytest.approx(theirs.pvalue)


def test_the_drawn_sign_flip_test_is_near_the_t_test_for_normal_differences():
    d = np.random.default_rng(1).normal(0.25, 1, size=90)
    assert sign_flip_test(d) == pytest.approx(st.ttest_1samp(d, 0).pvalue, abs=0.015)


def test_no_difference_is_no_evidence():
    assert sign_flip_test([0.0] * 20) == 1.0
    assert sign_flip_test([]) == 1.0


def test_the_sign_flip_test_rejects_a_true_null_at_its_level():
    generator = np.random.default_rng(0)
    p = [sign_flip_test(generator.normal(size=20), draws=400, seed=i) for i in range(300)]
    assert np.mean(np.array(p) <= 0.05) <= 0.09


def test_copies_of_a_prompt_are_one_piece_of_evidence():
    d = np.array([0.5, 0.2, 0.3])
    cluster = np.repeat(np.arange(3), 10).tolist()
    assert sign_flip_test(np.repeat(d, 10), cluster) == sign_flip_test(d) == 0.25


def test_a_paired_difference_changes_sign_when_the_two_are_exchanged():
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(2, 40))
    one, two = paired_difference(a, b), paired_difference(b, a)
    assert one.value == pytest.approx(-two.value)
    assert (one.low, one.high) == pytest.approx((-two.high, -two.low))
    assert one.p == two.p


def test_pairs_of_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match="equal lengths"):
        paired_difference([1, 2], [1])


@pytest.mark.parametrize(
    ("raw", "adjusted"),
    [([0.01, 0.02, 0.03, 0.04], [0.04, 0.06, 0.06, 0.06]), ([0.6, 0.7], [1.0, 1.0]), ([], [])],
)
def test_holm_by_hand(raw, adjusted):
    assert holm(raw) == pytest.approx(adjusted)


@given(some.lists(some.floats(0, 1), max_size=12))
def test_holm_keeps_order_and_never_lowers_a_p_value(p):
    q = holm(p)
    assert all(x <= y or y == 1.0 for x, y in zip(p, q))
    order = np.argsort(p, kind="stable")
    assert all(q[i] <= q[j] for i, j in zip(order, order[1:]))


def test_ties_count_half_in_ranking_accuracy():
    e = ranking_accuracy([2.0, 1.0, 0.0], [1.0, 1.0, 1.0])
    assert (e.value, e.n) == (0.5, 3)


def test_a_ranking_is_unchanged_by_any_increasing_transformation():
    generator = np.random.default_rng(0)
    c, r = generator.normal(size=(2, 30))
    assert ranking_accuracy(c, r) == ranking_accuracy(np.exp(c), np.exp(r))


def test_an_unknown_score_is_an_unknown_outcome():
    assert np.isnan(outcome([np.nan, 1.0], [1.0, 0.0])).tolist() == [True, False]


def test_the_win_rate_of_equals_is_one_half():
    assert win_rate([0.5] * 10).value == 0.5
