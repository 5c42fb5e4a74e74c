"""iopo against its card."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyalign import objective
from polyalign.errors import OptionError
from tests.methods.by_hand import close, neg_logsig, sig

DRAW = np.random.default_rng(0)
R = {f"r_{ij}": DRAW.normal(0, 3, 4) for ij in ("11", "12", "21", "22")}


def test_iopo_loss_and_gradient_are_the_cards():
    z = 0.2 * (R["r_11"] + R["r_22"] - R["r_12"] - R["r_21"])
    result = objective("iopo", beta=0.2)(R)
    close(result.per_unit, neg_logsig(z))
    for ij, sign in (("11", 1), ("22", 1), ("12", -1), ("21", -1)):
        close(result.gradients[f"r_{ij}"], -sign * 0.2 / 4 * sig(-z))


def test_iopo_reads_log_probabilities_and_references_too():
    split = {f"lp_{k[2:]}": v - 5 for k, v in R.items()}
    split |= {f"rf_{k[2:]}": np.full(4, -5.0) for k in R}
    close(objective("iopo")(split).per_unit, objective("iopo")(R).per_unit)


@given(st.lists(st.floats(-20, 20), min_size=4, max_size=4))
def test_iopo_ignores_terms_of_a_prompt_or_of_an_answer(terms):
    a, b, c, d = terms  # of x1, of x2, of y1, of y2
    moved = {
        "r_11": R["r_11"] + a + c,
        "r_12": R["r_12"] + a + d,
        "r_21": R["r_21"] + b + c,
        "r_22": R["r_22"] + b + d,
    }
    close(objective("iopo")(moved).per_unit, objective("iopo")(R).per_unit)


def test_iopo_does_not_change_when_both_indices_swap():
    swapped = {"r_11": R["r_22"], "r_22": R["r_11"], "r_12": R["r_21"], "r_21": R["r_12"]}
    close(objective("iopo")(swapped).per_unit, objective("iopo")(R).per_unit)


def test_iopo_flips_sign_when_the_answers_swap():
    swapped = {"r_11": R["r_12"], "r_12": R["r_11"], "r_21": R["r_22"], "r_22": R["r_21"]}
    z = 0.1 * (R["r_11"] + R["r_22"] - R["r_12"] - R["r_21"])
    close(objective("iopo")(swapped).per_unit, neg_logsig(-z))


def test_iopo_of_a_symmetric_quadruple_is_dpo_at_twice_beta():
    both = {"r_11": [2.0], "r_22": [2.0], "r_12": [0.5], "r_21": [0.5]}
    dpo = objective("dpo", beta=0.2)(lp_w=[2.0], lp_l=[0.5], rf_w=[0.0], rf_l=[0.0])
    close(objective("iopo", beta=0.1)(both).value, dpo.value)


@given(st.lists(st.floats(-50, 50), min_size=4, max_size=4))
def test_iopo_is_at_most_the_sum_of_its_two_dpo_losses(r):
    r_11, r_12, r_21, r_22 = r
    whole = objective("iopo", beta=0.3)(r_11=[r_11], r_12=[r_12], r_21=[r_21], r_22=[r_22]).value
    parts = neg_logsig(0.3 * (r_11 - r_12)) + neg_logsig(0.3 * (r_22 - r_21))
    assert whole <= parts + 1e-12


def test_iopo_refuses_three_of_its_four():
    with pytest.raises(OptionError, match="needs the array 'lp_22'"):
        objective("iopo")({k: v for k, v in R.items() if k != "r_22"})


def z_of(beta):
    return beta * (R["r_11"] + R["r_22"] - R["r_12"] - R["r_21"])


LINKS = {
    ("robust", 0.2): lambda z, b: (0.8 * neg_logsig(z) - 0.2 * neg_logsig(-z)) / 0.6,
    ("exo", 0.1): lambda z, b: (
        sig(z) * (-neg_logsig(z) - np.log(0.9)) + sig(-z) * (-neg_logsig(-z) - np.log(0.1))
    ),
    ("hinge", 0.0): lambda z, b: np.maximum(0, 1 - z),
    ("ipo", 0.0): lambda z, b: (z / b - 1 / (2 * b)) ** 2,
    ("sigmoid", 0.2): lambda z, b: 0.8 * neg_logsig(z) + 0.2 * neg_logsig(-z),
}


@pytest.mark.parametrize(("link", "eps"), LINKS)
def test_the_other_losses_of_the_trainer(link, eps):
    beta = 0.3
    found = objective("iopo", beta=beta, link=link, label_smoothing=eps)(R)
    close(found.per_unit, LINKS[link, eps](z_of(beta), beta))


def test_links_without_a_label_refuse_smoothing_and_exo_asks_for_it():
    for link in ("hinge", "ipo"):
        with pytest.raises(OptionError, match=f"no place in link={link}"):
            objective("iopo", link=link, label_smoothing=0.1)
    with pytest.raises(OptionError, match="link=exo needs label_smoothing"):
        objective("iopo", link="exo")
