import numpy as np
import pytest

from polyalign.metrics.divergence import k1, k3, sequence_kl

p = np.array([0.5, 0.3, 0.2])
r = np.array([0.2, 0.2, 0.6])
exact = float((p * np.log(p / r)).sum())


@pytest.mark.parametrize("estimator", [k1, k3])
def test_estimators_are_unbiased_by_enumeration(estimator):
    """T19: values against exact enumeration on a three-token vocabulary."""
    assert float((p * estimator(np.log(p), np.log(r))).sum()) == pytest.approx(exact)


def test_k3_is_never_negative_and_k1_may_be():
    assert (k3(np.log(p), np.log(r)) >= 0).all()
    assert (k1(np.log(p), np.log(r)) < 0).any()


def test_identical_policies_have_divergence_zero():
    logp = np.log(np.random.default_rng(0).random((4, 6)))
    for name in ("k1", "k3"):
        assert sequence_kl(logp, logp, np.ones((4, 6)), estimator=name)[0].tolist() == [0.0] * 4


def test_masked_steps_do_not_count_even_when_not_a_number():
    logp = np.array([[-1.0, np.nan]])
    kl, steps = sequence_kl(logp, np.array([[-2.0, -3.0]]), np.array([[True, False]]))
    assert (kl.tolist(), steps.tolist()) == ([1.0], [1.0])


def test_a_sequence_sums_its_steps_and_does_not_average_them():
    """T21: token level taken for sequence level."""
    kl, _ = sequence_kl(np.full((1, 5), -1.0), np.full((1, 5), -1.5), np.ones((1, 5)))
    assert kl.tolist() == [2.5]


def test_two_step_sequences_estimate_the_divergence_of_whole_sequences():
    logp = np.log(np.array([[p[a], p[b]] for a in range(3) for b in range(3)]))
    ref = np.log(np.array([[r[a], r[b]] for a in range(3) for b in range(3)]))
    weight = np.exp(logp.sum(1))
    for name in ("k1", "k3"):
        kl, _ = sequence_kl(logp, ref, np.ones((9, 2)), estimator=name)
        assert float(weight @ kl) == pytest.approx(2 * exact)
