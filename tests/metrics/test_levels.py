import numpy as np
import pytest
import scipy.stats as st

from polyalign.metrics.comparison import sign_flip_test
from polyalign.metrics.intervals import bootstrap
from polyalign.metrics.levels import (
    SeedVariance,
    crossed_bootstrap,
    crossed_difference,
    detectable,
    mcnemar,
    seed_variance,
    standard_error,
    student_p,
    student_quantile,
)


def runs(rng, seeds: int, items: int, *, gain: float = 0.0, seed_sd: float = 0.0, q=None):
    """Successes [S, N] of one method, whose seeds shift its success rate."""
    q = np.full(items, 0.5) if q is None else q
    return np.stack(
        [
            (rng.random(items) < np.clip(q + gain + seed_sd * rng.normal(), 0, 1)).astype(float)
            for _ in range(seeds)
        ]
    )


@pytest.mark.parametrize("df", [1, 2.5, 10, 60, 500])
@pytest.mark.parametrize("t", [0.1, 1.0, 2.5, 6.0])
def test_students_tail_is_scipys(df, t):
    assert student_p(t, df) == pytest.approx(2 * st.t.sf(t, df), rel=1e-9, abs=1e-12)
    assert student_p(-t, df) == student_p(t, df)


@pytest.mark.parametrize("df", [1, 4, 30])
def test_students_quantile_is_scipys(df):
    assert student_quantile(0.95, df) == pytest.approx(st.t.ppf(0.975, df), rel=1e-9)


def test_mcnemars_test_is_the_binomial_test_of_the_pairs_that_differ():
    rng = np.random.default_rng(0)
    a, b = (rng.random(60) < 0.6).astype(float), (rng.random(60) < 0.4).astype(float)
    wins, losses = int(((a == 1) & (b == 0)).sum()), int(((a == 0) & (b == 1)).sum())
    assert mcnemar(a, b) == pytest.approx(st.binomtest(wins, wins + losses).pvalue)


def test_mcnemars_test_is_the_exact_sign_flip_test():
    a, b = np.array([1, 1, 1, 0, 1, 0, 1, 1.0]), np.array([0, 0, 1, 0, 1, 1, 0, 0.0])
    assert mcnemar(a, b) == pytest.approx(sign_flip_test(a - b))
    assert mcnemar(a, a) == 1.0


def test_one_seed_has_the_interval_of_the_bootstrap_over_prompts():
    y = np.random.default_rng(0).normal(size=40)
    cluster = [i // 2 for i in range(40)]
    assert crossed_bootstrap(y, cluster) == bootstrap(y, cluster)


def test_the_two_level_interval_has_the_standard_error_of_the_crossed_layout():
    # Known components: seeds 0.3, items 1, rest 0.5; the mean of S x N has variance
    # 0.09/S + 1/N + 0.25/(SN). Averaged over many data sets the bootstrap must see it.
    rng = np.random.default_rng(1)
    s, n, widths = 4, 50, []
    for i in range(150):
        y = 0.3 * rng.normal(size=(s, 1)) + rng.normal(size=(1, n)) + 0.5 * rng.normal(size=(s, n))
        e = crossed_bootstrap(y, draws=300, seed=i)
        widths.append(((e.high - e.low) / (2 * 1.96)) ** 2)
    truth = 0.09 / s + 1 / n + 0.25 / (s * n)
    assert np.mean(widths) == pytest.approx(truth, rel=0.2)


def test_seeds_that_agree_exactly_leave_the_interval_of_one():
    y = np.random.default_rng(0).normal(size=60)
    one, three = crossed_bootstrap(y, draws=4000), crossed_bootstrap(np.stack([y] * 3), draws=4000)
    assert three.high - three.low == pytest.approx(one.high - one.low, rel=0.06)


def test_the_seeds_variance_is_found_beside_the_scatter_of_answers():
    rng = np.random.default_rng(2)
    groups = [
        0.4 * rng.normal(size=(3, 1)) + rng.normal(size=(1, 80)) + rng.normal(size=(3, 80))
        for _ in range(300)
    ]
    found = seed_variance(groups)
    assert found.df == 600
    assert found.variance == pytest.approx(0.16, rel=0.12)


def test_without_a_repeated_run_nothing_is_known_of_seeds():
    assert seed_variance([np.zeros((1, 5)), np.ones(5)]) == SeedVariance(0.0, 0)


def test_the_standard_error_without_seeds_is_that_of_a_paired_t_test():
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=30), rng.normal(size=30)
    error, df = standard_error(a, b)
    assert (a - b).mean() / error == pytest.approx(st.ttest_rel(a, b).statistic)
    assert df == pytest.approx(29)


def test_a_base_model_has_no_seed():
    a, b = np.ones((2, 10)) * np.arange(10), np.zeros((1, 10))
    noise = SeedVariance(0.5, 4)
    base, _ = standard_error(a, b, None, noise, trained=(True, False))
    both, _ = standard_error(a, b, None, noise)
    alone, _ = standard_error(a, b)
    assert base**2 - alone**2 == pytest.approx(0.25)
    assert both**2 - alone**2 == pytest.approx(0.75)


def test_two_identical_methods_get_no_winner_at_the_stated_rate():
    # Training runs of one and the same method, whose seeds alone shift success by 8 points:
    # a test of prompts only would call a third of these pairs different.
    rng = np.random.default_rng(7)
    named = by_prompts = 0
    rounds = 300
    for _ in range(rounds):
        q = rng.beta(1, 1, size=100)
        groups = [runs(rng, 2, 100, seed_sd=0.08, q=q) for _ in range(4)]
        found = seed_variance(groups)
        named += crossed_difference(groups[0], groups[1], None, found, draws=100).p < 0.05
        d = groups[0].mean(0) - groups[1].mean(0)
        by_prompts += sign_flip_test(d, draws=200) < 0.05
    assert named / rounds <= 0.05 + 2.6 * (0.05 * 0.95 / rounds) ** 0.5
    assert by_prompts / rounds > 0.2


def test_a_planted_better_method_is_found():
    rng = np.random.default_rng(5)
    found = 0
    for _ in range(40):
        q = rng.uniform(0.1, 0.6, size=150)
        groups = [runs(rng, 3, 150, gain=g, seed_sd=0.02, q=q) for g in (0.2, 0.0, 0.0)]
        noise = seed_variance(groups)
        test = crossed_difference(groups[0], groups[1], None, noise, draws=200)
        found += test.p < 0.05 and test.value > 0
        assert test.low <= test.value <= test.high
    assert found >= 32  # the design's power for this difference is above 0.9


def test_the_detectable_difference_is_detected_with_the_stated_power():
    rng = np.random.default_rng(6)
    n, hits = 80, 0
    gap = detectable(1 / n**0.5)
    assert gap == pytest.approx((st.norm.ppf(0.975) + st.norm.ppf(0.8)) / n**0.5, rel=1e-6)
    for _ in range(400):
        d = rng.normal(gap, 1, size=n)
        hits += abs(d.mean()) * n**0.5 > 1.96
    assert hits / 400 == pytest.approx(0.8, abs=0.06)


def test_one_prompt_says_nothing():
    test = crossed_difference([1.0, 1.0], [0.0, 0.0], ["same", "same"])
    assert test.p == 1.0
    assert test.high == float("inf")
