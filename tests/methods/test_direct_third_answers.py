"""triple-po and wrpo against their cards, worked out by hand in float64."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyalign import objective
from polyalign.errors import OptionError
from polyalign.methods import get
from polyalign.recipe import Schedule
from tests.methods.by_hand import central, close, neg_logsig, pairs, sig

SIZE = 6
A = pairs(seed=17, size=SIZE)
SUMS = {k: A[k] for k in ("lp_w", "lp_l")}
FREE = {k: A[k] for k in ("lp_w", "lp_l", "n_w", "n_l")}
GOLD = {"lp_g": -np.linspace(4, 20, SIZE), "n_g": np.array([3, 4, 5, 6, 7, 8])}


def z_of(a, loss, beta=0.3, gamma=0.4):
    if loss == "tpo":
        return beta * (a["lp_w"] - a["lp_l"])
    return beta * (a["lp_w"] / A["n_w"] - a["lp_l"] / A["n_l"]) - gamma


@pytest.mark.parametrize("form", ["paper", "code"])
@pytest.mark.parametrize("loss", ["tpo", "tpo-l"])
def test_triple_po_loss_and_gradient_are_the_cards(form, loss):
    alpha = 0.6
    z = z_of(A, loss)
    n_w, n_l = (1, 1) if loss == "tpo" else (A["n_w"], A["n_l"])
    weight = np.full(SIZE, 1 / SIZE) if form == "paper" else 1 / GOLD["n_g"].sum()
    nll = -(weight * GOLD["lp_g"]).sum()
    options = {"form": form, "loss": loss, "beta": 0.3, "alpha": alpha}
    options |= {} if loss == "tpo" else {"gamma": 0.4}
    result = objective("triple-po", **options)({**FREE, **GOLD})
    close(result.value, neg_logsig(z).mean() + alpha * nll)
    push = 0.3 / SIZE * sig(-z)
    close(result.gradients["lp_w"], -push / n_w)
    close(result.gradients["lp_l"], push / n_l)
    # The preference does not touch the gold answer.
    close(result.gradients["lp_g"], -alpha * weight)


@pytest.mark.parametrize("loss", ["tpo", "tpo-l"])
def test_triple_pos_hinge_is_the_cards(loss):
    options = {"loss": loss, "beta": 0.3} | ({} if loss == "tpo" else {"gamma": 0.4})

    def hinge(a):
        return np.maximum(0, 1 - z_of(a, loss)).mean() - 0.5 * GOLD["lp_g"].mean()

    result = objective("triple-po", link="hinge", **options)({**FREE, **GOLD})
    close(result.value, hinge(A))
    close(result.gradients["lp_l"], central(hinge, SUMS, "lp_l"), 1e-7)


@pytest.mark.parametrize("form", ["paper", "code"])
def test_triple_po_whose_gold_is_the_winner_is_cpo(form):
    both = {**FREE, "lp_g": A["lp_w"], "n_g": A["n_w"]}
    triple = objective("triple-po", form=form, beta=0.2, alpha=0.7)(both)
    cpo = objective("cpo", form=form, beta=0.2, alpha=0.7)(FREE)
    close(triple.value, cpo.value)
    close(triple.gradients["lp_w"] + triple.gradients["lp_g"], cpo.gradients["lp_w"])


def test_triple_po_without_gold_needs_none_and_is_cpo_or_simpo():
    alone = objective("triple-po", alpha=0, beta=0.2)(SUMS)
    close(alone.per_unit, objective("cpo", alpha=0, beta=0.2)(SUMS).per_unit)
    long = objective("triple-po", loss="tpo-l", alpha=0, beta=2.0, gamma=0.5)(FREE)
    close(long.per_unit, objective("simpo", beta=2.0, gamma_beta_ratio=0.25)(FREE).per_unit)
    default = objective("triple-po", loss="tpo-l", alpha=0, beta=2.0)(FREE)
    assert default.value == long.value


def test_triple_po_asks_for_its_gold_answer_and_refuses_a_gamma_it_would_not_read():
    with pytest.raises(OptionError, match="triple-po needs the array 'lp_g'"):
        objective("triple-po")(SUMS)
    with pytest.raises(OptionError, match="gamma has no place in loss=tpo"):
        objective("triple-po", gamma=0.5)


def three(seed=0):
    draw = np.random.default_rng(seed)
    return {f"{name}_{s}": -draw.uniform(2, 12, SIZE) for name in ("lp", "rf") for s in "stl"}


B = three()


def ratio(a, s):
    return a[f"lp_{s}"] - a[f"rf_{s}"]


@pytest.mark.parametrize("alpha", [0.1, 0.0, 1.0, 0.6])
@pytest.mark.parametrize("eps", [0.0, 0.2])
def test_wrpo_loss_and_gradient_are_the_cards(alpha, eps):
    beta = 0.3
    z = beta * (alpha * ratio(B, "s") + (1 - alpha) * ratio(B, "t") - ratio(B, "l"))
    result = objective("wrpo", beta=beta, alpha=alpha, label_smoothing=eps)(B)
    close(result.per_unit, (1 - eps) * neg_logsig(z) + eps * neg_logsig(-z))
    push = beta / SIZE * (eps - sig(-z))
    close(result.gradients["lp_s"], push * alpha)
    close(result.gradients["lp_t"], push * (1 - alpha))
    close(result.gradients["lp_l"], -push)


def dpo_on(winner, a=B, beta=0.3):
    sides = {
        f"{n}_{to}": a[f"{n}_{s}"] for n in ("lp", "rf") for to, s in (("w", winner), ("l", "l"))
    }
    return objective("dpo", beta=beta)(sides)


def test_wrpo_is_dpo_on_one_winner_at_either_end_and_where_both_winners_are_one():
    for alpha, winner in ((0.0, "t"), (1.0, "s")):
        found = objective("wrpo", beta=0.3, alpha=alpha)(B)
        close(found.per_unit, dpo_on(winner).per_unit)
    one = dict(B, lp_s=B["lp_t"], rf_s=B["rf_t"])
    close(objective("wrpo", beta=0.3, alpha=0.4)(one).per_unit, dpo_on("t").per_unit)


@given(st.floats(0, 1), st.integers(0, 99))
def test_mixing_rewards_costs_no_more_than_mixing_losses(alpha, seed):
    b = three(seed)
    mixed = objective("wrpo", beta=0.3, alpha=alpha)(b).per_unit
    losses = alpha * dpo_on("s", b).per_unit + (1 - alpha) * dpo_on("t", b).per_unit
    assert (mixed <= losses + 1e-12).all()


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.8])
def test_wrpo_of_losses_mixes_the_two_dpo_losses_and_their_gradients(alpha):
    found = objective("wrpo", form="losses", beta=0.3, alpha=alpha)(B)
    s, t = dpo_on("s"), dpo_on("t")
    close(found.per_unit, alpha * s.per_unit + (1 - alpha) * t.per_unit)
    close(found.gradients["lp_s"], alpha * s.gradients["lp_w"])
    close(found.gradients["lp_t"], (1 - alpha) * t.gradients["lp_w"])


def test_wrpos_alpha_goes_from_0_to_a_tenth_over_the_run_unless_told_otherwise():
    declared = get("wrpo")
    assert declared().hyper["alpha"] == Schedule(0.0, 0.1)
    shares = [declared(progress=p).stages[0].updates[0].objective.share for p in (0, 0.25, 1)]
    close(shares, [0.0, 0.025, 0.1])
    assert declared(progress=0.5, alpha=0.3).stages[0].updates[0].objective.share == 0.3
    close(objective("wrpo")(B).per_unit, dpo_on("t", beta=0.01).per_unit)


def test_wrpo_needs_all_three_answers_with_their_references():
    for name in ("lp_s", "rf_s", "lp_t"):
        with pytest.raises(OptionError, match=f"wrpo needs the array '{name}'"):
            objective("wrpo")({k: v for k, v in B.items() if k != name})


@pytest.mark.parametrize(
    ("id", "options"),
    [
        ("triple-po", {"beta": 0}),
        ("triple-po", {"alpha": -1}),
        ("wrpo", {"beta": 0}),
        ("wrpo", {"alpha": 1.1}),
        ("wrpo", {"alpha": -0.1}),
        ("wrpo", {"label_smoothing": 0.5}),
    ],
)
def test_coefficients_out_of_range_are_refused(id, options):
    (name,) = options
    with pytest.raises(OptionError, match=f"{id}: {name}="):
        objective(id, **options)


@pytest.mark.parametrize("z", [-1e4, 1e4])
def test_T32_extreme_margins_stay_finite(z):
    at = {f"{n}_{s}": [0.0] for n in ("lp", "rf") for s in "stl"} | {"lp_t": [z], "lp_s": [z]}
    result = objective("wrpo", alpha=0.5)(at)
    assert math.isfinite(result.value)
    assert all(np.isfinite(g).all() for g in result.gradients.values())
