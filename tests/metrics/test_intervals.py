import numpy as np
import pytest
import scipy.stats as st
from hypothesis import given
from hypothesis import strategies as some

from polyalign.metrics.intervals import bootstrap, detectable_difference, proportion, wilson


@pytest.mark.parametrize(("k", "n"), [(0, 10), (1, 10), (5, 10), (37, 80), (80, 80), (1, 1)])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_wilson_equals_scipys(k, n, level):
    ours = wilson(k, n, level)
    theirs = st.binomtest(k, n).proportion_ci(confidence_level=level, method="wilson")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


@given(n=some.integers(1, 500), data=some.data())
def test_wilson_contains_its_proportion_and_stays_in_0_to_1(n, data):
    e = wilson(data.draw(some.integers(0, n)), n)
    assert 0 <= e.low <= e.value <= e.high <= 1


def test_wilson_of_nothing_is_not_a_number():
    e = wilson(0, 0)
    assert np.isnan(e.value)
    assert e.to_json()["value"] is None


def test_bootstrap_is_deterministic_by_seed():
    x = np.random.default_rng(3).normal(size=50)
    assert bootstrap(x, seed=4) == bootstrap(x, seed=4)
    assert bootstrap(x, seed=4) != bootstrap(x, seed=5)


def test_bootstrap_agrees_with_scipys_percentile_interval():
    x = np.random.default_rng(0).exponential(size=80)
    theirs = st.bootstrap(
        (x,), np.mean, method="percentile", n_resamples=20000, rng=np.random.default_rng(1)
    ).confidence_interval
    ours = bootstrap(x, draws=20000)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_copies_within_a_cluster_do_not_narrow_the_interval():
    x = np.random.default_rng(0).normal(size=30)
    single = bootstrap(x)
    copied = bootstrap(np.repeat(x, 8), np.repeat(np.arange(30), 8).tolist())
    assert (copied.low, copied.high) == pytest.approx((single.low, single.high))
    assert (copied.n, copied.clusters) == (240, 30)
    assert bootstrap(np.repeat(x, 8)).high < copied.high


def test_bootstrap_covers_the_true_mean_at_about_its_level():
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        centre = generator.normal(size=25)
        x = (centre[:, None] + generator.normal(size=(25, 4)) * 0.3).ravel()
        e = bootstrap(x, np.repeat(np.arange(25), 4).tolist(), draws=300)
        hits += e.low <= 0 <= e.high
    assert 0.87 <= hits / 200 <= 0.99


def test_one_cluster_has_an_infinite_interval():
    e = bootstrap([1.0, 0.0], ["a", "a"])
    assert (e.value, e.low, e.high) == (0.5, -np.inf, np.inf)


def test_a_proportion_where_all_clusters_agree_keeps_wilsons_doubt():
    e = proportion([1, 1, 1, 1], ["a", "a", "b", "b"])
    assert (e.high, e.n, e.clusters) == (1.0, 4, 2)
    assert e.low == wilson(2, 2).low < 0.5


def test_a_proportion_without_clusters_is_wilsons():
    assert proportion([1, 0, 0.5, 1]) == wilson(2.5, 4)


def test_proportion_refuses_what_is_no_proportion():
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        proportion([2.0, 0.0])


def test_labels_of_another_length_are_refused():
    with pytest.raises(ValueError, match="3 values but 2"):
        bootstrap([1, 2, 3], ["a", "b"])


def test_tensors_with_gradient_are_numbers_too():
    torch = pytest.importorskip("torch")
    x = torch.tensor([0.0, 1.0, 2.0], requires_grad=True)
    assert bootstrap(x) == bootstrap([0.0, 1.0, 2.0])


def test_detectable_difference_reaches_its_power():
    n, spread = 60, 1.7
    effect = detectable_difference(n, spread=spread)
    x = np.random.default_rng(0).normal(effect, spread, size=(4000, n))
    z = x.mean(1) / (spread / np.sqrt(n))
    assert (np.abs(z) > 1.96).mean() == pytest.approx(0.8, abs=0.02)


def test_detectable_difference_halves_with_four_times_the_examples():
    assert detectable_difference(400) == pytest.approx(detectable_difference(100) / 2)
    assert detectable_difference(0) == np.inf
