import numpy as np
import pytest
import scipy.stats as st

from polyalign.metrics.association import correlation, pearson, ranks, spearman

rng = np.random.default_rng(0)
x = rng.integers(0, 8, size=60).astype(float)
y = x + rng.normal(size=60) * 3


def test_correlations_equal_scipys():
    assert pearson(x, y) == pytest.approx(st.pearsonr(x, y).statistic)
    assert spearman(x, y) == pytest.approx(st.spearmanr(x, y).statistic)
    assert ranks(x).tolist() == st.rankdata(x).tolist()


def test_the_interval_is_near_fishers():
    e = correlation(x, y, draws=4000)
    half = 1.96 / np.sqrt(57)
    fisher = np.tanh([np.arctanh(e.value) - half, np.arctanh(e.value) + half])
    assert (e.low, e.high) == pytest.approx(tuple(fisher), abs=0.07)


def test_a_constant_has_no_correlation():
    e = correlation([1, 1, 1, 1], [1, 2, 3, 4])
    assert np.isnan(e.value)
    assert (e.low, e.high) == (-1.0, 1.0)
