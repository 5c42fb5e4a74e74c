"""implicit-reward-sft against its card, worked out by hand in float64."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from polyalign import objective
from polyalign.errors import OptionError, PolyalignWarning
from tests.methods.by_hand import close

DRAW = np.random.default_rng(0)
SIZE, B = 5, 0.3
A = {"lp": -DRAW.uniform(1, 6, SIZE), "rf": -DRAW.uniform(1, 6, SIZE)}
L_ = A["lp"] - A["rf"]

PHI = {
    "pearson": (lambda t: t - t**2 / 4, lambda t: 1 - t / 2),
    "hellinger": (lambda t: t / (1 + t), lambda t: (1 + t) ** -2.0),
    "reverse-kl": (lambda t: -np.exp(-(t + 1)), lambda t: np.exp(-(t + 1))),
    "js": (lambda t: np.log(2 - np.exp(-t)), lambda t: np.exp(-t) / (2 - np.exp(-t))),
}


@pytest.mark.parametrize("f", PHI)
def test_loss_and_gradient_are_the_cards(f):
    b = 0.05  # keeps every t inside the domains
    phi, weight = PHI[f]
    t = b * L_
    result = objective("implicit-reward-sft", f=f, b=b)(A)
    close(result.per_unit, -phi(t))
    close(result.gradients["lp"], -b / SIZE * weight(t))
    close(result.metrics["weights"], weight(t).mean())


def test_total_variation_is_plain_imitation_times_b_and_asks_for_no_reference():
    result = objective("implicit-reward-sft", f="tv", b=B)({"lp": A["lp"]})
    sft = objective("sft", reduction="sum")(lp=A["lp"], n=[1] * SIZE)
    close(result.per_unit, B * sft.per_unit)
    close(result.gradients["lp"], B * sft.gradients["lp"])


@pytest.mark.parametrize(
    ("f", "weight"),
    [("tv", 1), ("pearson", 1), ("hellinger", 1), ("reverse-kl", 1 / math.e), ("js", 1)],
)
def test_weights_where_policy_is_reference_are_the_cards(f, weight):
    same = {"lp": A["rf"]} | ({} if f == "tv" else {"rf": A["rf"]})
    result = objective("implicit-reward-sft", f=f, b=B)(same)
    close(result.gradients["lp"], -B * weight / SIZE)


F = {
    "pearson": lambda u: (u - 1) ** 2,
    "hellinger": lambda u: (np.sqrt(u) - 1) ** 2,
    "reverse-kl": lambda u: u * np.log(u) if u > 0 else 0.0,
    "js": lambda u: (u * np.log(u) if u > 0 else 0.0) - (1 + u) * np.log((1 + u) / 2),
}


@pytest.mark.parametrize("f", F)
@pytest.mark.parametrize("t", [-0.4, -0.1, 0.3, 1.2])
def test_phi_is_minus_the_conjugate_of_f_at_minus_t(f, t):
    found = minimize_scalar(
        lambda u: -(-t * u - F[f](u)), bounds=(0, 60), method="bounded", options={"xatol": 1e-10}
    )
    result = objective("implicit-reward-sft", f=f, b=1.0)(lp=[t], rf=[0.0])
    close(result.value, -found.fun, 1e-6)


def test_pearson_stops_at_two_and_turns_back_unless_it_saturates():
    def slope(t, **hyper):
        found = objective("implicit-reward-sft", b=0.1, **hyper)(lp=[t / 0.1], rf=[0.0])
        return found.gradients["lp"][0]

    close(slope(2.0), 0.0, 1e-12)
    assert slope(3.0) > 0
    close([slope(2.0, saturate=True), slope(5.0, saturate=True)], 0.0, 1e-12)
    close(objective("implicit-reward-sft", saturate=True, b=1.0)(lp=[5.0], rf=[0.0]).value, -1.0)


@pytest.mark.parametrize(("f", "end"), [("hellinger", -1.0), ("js", -math.log(2))])
def test_beyond_the_domain_the_loss_goes_on_along_its_tangent(f, end):
    phi, weight = PHI[f]
    edge = 0.9 * end
    with pytest.warns(PolyalignWarning, match="100% of the examples lie outside"):
        result = objective("implicit-reward-sft", f=f, b=1.0)(lp=[3 * end], rf=[0.0])
    close(result.value, -(phi(edge) + weight(edge) * (3 * end - edge)))
    close(result.gradients["lp"], -weight(edge))
    assert result.metrics["outside"] == 1.0
    assert objective("implicit-reward-sft", f=f, b=1.0)(lp=[0.0], rf=[0.0]).metrics["outside"] == 0


@given(st.floats(-3, 3), st.floats(0.01, 1), st.sampled_from(sorted(PHI)))
def test_more_implicit_reward_never_costs_more_before_the_stop(t, step, f):
    if f == "pearson" and t + step > 2:
        return
    at = objective("implicit-reward-sft", f=f, b=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PolyalignWarning)
        assert at(lp=[t + step], rf=[0.0]).value <= at(lp=[t], rf=[0.0]).value + 1e-12


def test_bad_input_is_refused():
    with pytest.raises(OptionError, match="is not allowed"):
        objective("implicit-reward-sft", b=0.0)
    with pytest.raises(OptionError, match="needs the array 'rf'"):
        objective("implicit-reward-sft")({"lp": A["lp"]})
    with pytest.raises(OptionError, match="saturate has no place in f=js"):
        objective("implicit-reward-sft", f="js", saturate=True)
