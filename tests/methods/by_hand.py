"""Elementary functions and random arrays for losses worked out by hand, in numpy alone."""

import numpy as np


def sig(z):
    return 1.0 / (1.0 + np.exp(-np.asarray(z, dtype=np.float64)))


def neg_logsig(z):
    """-log sigmoid(z), written as log(1 + exp(-z)) without overflow."""
    return np.logaddexp(0.0, -np.asarray(z, dtype=np.float64))


def pairs(seed=0, size=5):
    """Summed log-probabilities, reference ones and lengths of pairs of unequal lengths."""
    draw = np.random.default_rng(seed)
    n_w, n_l = draw.integers(2, 9, size), draw.integers(2, 9, size)
    return {
        "lp_w": -draw.uniform(0.3, 2.5, size) * n_w,
        "lp_l": -draw.uniform(0.3, 2.5, size) * n_l,
        "rf_w": -draw.uniform(0.3, 2.5, size) * n_w,
        "rf_l": -draw.uniform(0.3, 2.5, size) * n_l,
        "n_w": n_w,
        "n_l": n_l,
    }


def close(got, expected, tolerance=1e-9):
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)


def central(loss, arrays, name, step=1e-5):
    """The gradient of a numpy loss of a dictionary of arrays by one of them, fourth order."""
    at = np.asarray(arrays[name], dtype=np.float64)
    out = np.zeros_like(at)
    for place in np.ndindex(at.shape):

        def moved(k, place=place):
            other = at.copy()
            other[place] += k * step
            return loss({**arrays, name: other})

        out[place] = (8 * (moved(1) - moved(-1)) - (moved(2) - moved(-2))) / (12 * step)
    return out
