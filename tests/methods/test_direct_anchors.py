"""cpo and rpo against their cards, worked out by hand in float64."""

import math

import numpy as np
import pytest

from polyalign import objective
from polyalign.errors import OptionError
from tests.methods.by_hand import central, close, neg_logsig, pairs, sig

SIZE = 6
A = pairs(seed=13, size=SIZE)
SUMS = {k: A[k] for k in ("lp_w", "lp_l")}
FREE = {k: A[k] for k in ("lp_w", "lp_l", "n_w", "n_l")}
PLAIN = {k: v for k, v in A.items() if k[0] != "n"}


def by_token(a):
    return -a["lp_w"].sum() / A["n_w"].sum()


def by_sum(a):
    return -a["lp_w"].mean()


@pytest.mark.parametrize("form", ["paper", "code"])
@pytest.mark.parametrize("eps", [0.0, 0.2])
def test_cpo_loss_and_gradient_are_the_cards(form, eps):
    beta, alpha = 0.3, 0.6
    z = beta * (A["lp_w"] - A["lp_l"])
    value = (1 - eps) * neg_logsig(z) + eps * neg_logsig(-z)
    nll, pull = (by_sum, 1 / SIZE) if form == "paper" else (by_token, 1 / A["n_w"].sum())
    cpo = objective("cpo", form=form, beta=beta, alpha=alpha, label_smoothing=eps)
    result = cpo(SUMS if form == "paper" else FREE)
    close(result.value, value.mean() + alpha * nll(A))
    close(result.metrics["nll_loss"], nll(A))
    push = beta / SIZE * (eps - sig(-z))
    close(result.gradients["lp_w"], push - alpha * pull)
    close(result.gradients["lp_l"], -push)


def test_cpos_links_are_the_cards():
    beta, alpha = 0.05, 0.6

    def hinge(a):
        return np.maximum(0, 1 - beta * (a["lp_w"] - a["lp_l"])).mean() + alpha * by_sum(a)

    def ipo(a):
        gap = a["lp_w"] / A["n_w"] - a["lp_l"] / A["n_l"]
        return ((gap - 1 / (2 * beta)) ** 2).mean() + alpha * by_sum(a)

    for link, loss, arrays in (("hinge", hinge, SUMS), ("ipo", ipo, FREE)):
        result = objective("cpo", link=link, beta=beta, alpha=alpha)(arrays)
        close(result.value, loss(A))
        for name in ("lp_w", "lp_l"):
            close(result.gradients[name], central(loss, SUMS, name), 1e-6)


def test_cpo_without_its_anchor_is_dpo_with_a_uniform_reference():
    uniform = dict(PLAIN, rf_w=np.full(SIZE, -7.0), rf_l=np.full(SIZE, -7.0))
    cpo = objective("cpo", beta=0.3, alpha=0)(SUMS)
    close(cpo.per_unit, objective("dpo", beta=0.3)(uniform).per_unit)


def test_cpo_for_a_vanishing_beta_is_imitation_and_log_2():
    result = objective("cpo", beta=1e-12)(SUMS)
    close(result.value, by_sum(A) + math.log(2))


def test_cpo_with_a_hinge_is_slic_up_to_a_factor():
    beta = 0.5
    cpo = objective("cpo", link="hinge", beta=beta, alpha=0.2)(SUMS)
    slic = objective("slic", delta=1 / beta, lam=0.2 / beta)(SUMS)
    close(cpo.per_unit, beta * slic.per_unit)


def test_cpo_with_one_length_and_no_anchor_is_simpo_with_beta_over_the_length():
    equal = dict(FREE, n_w=np.full(SIZE, 4), n_l=np.full(SIZE, 4))
    cpo = objective("cpo", beta=0.5, alpha=0)(SUMS)
    close(cpo.per_unit, objective("simpo", beta=2.0, gamma_beta_ratio=0)(equal).per_unit)


def test_cpo_grows_with_length():
    twice = {k: 2 * v for k, v in SUMS.items()}
    cpo, other = objective("cpo", beta=0.3, alpha=0), objective("cpo", beta=0.6, alpha=0)
    close(cpo(twice).per_unit, other(SUMS).per_unit)


@pytest.mark.parametrize("link", ["hinge", "ipo"])
def test_cpo_refuses_smoothing_where_no_label_is_smoothed(link):
    with pytest.raises(OptionError, match=f"label_smoothing has no place in link={link}"):
        objective("cpo", link=link, label_smoothing=0.1)


@pytest.mark.parametrize("eta", [0.005, 0.5, 0.0])
def test_rpo_loss_and_gradient_are_the_cards(eta):
    beta = 0.2
    z = beta * ((A["lp_w"] - A["rf_w"]) - (A["lp_l"] - A["rf_l"]))
    result = objective("rpo", beta=beta, eta=eta)(PLAIN)
    close(result.per_unit, neg_logsig(z) - eta * beta * A["lp_w"])
    close(result.gradients["lp_w"], -beta / SIZE * (sig(-z) + eta))
    close(result.gradients["lp_l"], beta / SIZE * sig(-z))


def test_rpo_without_eta_is_dpo_and_with_it_pulls_the_winner_harder():
    dpo = objective("dpo", beta=0.01)(PLAIN)
    close(objective("rpo", eta=0)(PLAIN).per_unit, dpo.per_unit)
    assert (objective("rpo")(PLAIN).gradients["lp_w"] < dpo.gradients["lp_w"]).all()


def test_rpos_default_weight_on_the_summed_likelihood_is_5e_5():
    dpo, rpo = objective("dpo", beta=0.01)(PLAIN), objective("rpo")(PLAIN)
    close(SIZE * (rpo.gradients["lp_w"] - dpo.gradients["lp_w"]), -5e-5, 1e-12)


def test_rpo_as_trl_writes_it_takes_the_mean_over_tokens_whatever_beta_is():
    dpo, trl = objective("dpo", beta=0.3)(A), objective("rpo", form="trl", beta=0.3, eta=0.1)(A)
    close(trl.value - dpo.value, 0.1 * by_token(A))


def test_rpos_baseline_may_be_a_gold_answer():
    gold = -np.linspace(3, 9, SIZE)
    rpo = objective("rpo", beta=0.2, eta=0.5, baseline="gold")
    result = rpo(PLAIN, lp_g=gold, rf_g=gold)
    close(result.value, objective("dpo", beta=0.2)(PLAIN).value - 0.5 * 0.2 * gold.mean())
    close(result.gradients["lp_g"], -0.5 * 0.2 / SIZE)
    with pytest.raises(OptionError, match="rpo needs the array 'lp_g'"):
        rpo(PLAIN)


@pytest.mark.parametrize(
    ("id", "options"),
    [
        ("cpo", {"beta": 0}),
        ("cpo", {"alpha": -1}),
        ("cpo", {"label_smoothing": 0.5}),
        ("rpo", {"beta": 0}),
        ("rpo", {"eta": -1}),
    ],
)
def test_coefficients_out_of_range_are_refused(id, options):
    (name,) = options
    with pytest.raises(OptionError, match=f"{id}: {name}="):
        objective(id, **options)


def test_a_gold_baseline_is_imitated_and_has_no_reference():
    gold = -np.linspace(3, 9, SIZE)
    rpo = objective("rpo", beta=0.2, eta=0.1, baseline="gold")
    found = rpo(PLAIN, lp_g=gold)
    z = 0.2 * ((A["lp_w"] - A["rf_w"]) - (A["lp_l"] - A["rf_l"]))
    close(found.per_unit, neg_logsig(z) - 0.1 * 0.2 * gold)
    close(found.gradients["lp_g"], np.full(SIZE, -0.1 * 0.2 / SIZE))
    close(rpo(PLAIN, lp_g=gold, rf_g=gold).per_unit, found.per_unit)
