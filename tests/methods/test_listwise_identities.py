"""What the listwise methods become in pairs, at the reference, at their optimum, and with ties."""

import itertools
import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from polyalign import objective
from tests.methods.by_hand import close, neg_logsig, pairs, sig
from tests.methods.lists_by_hand import (
    LENGTHS,
    LISTS,
    RATIO,
    SIZES,
    THERE,
    N,
    U,
    log_sum,
    ordered,
    softmax,
)

# Identities and limits

PAIRS = pairs(2, 6)
TWO = {
    "lp": np.stack([PAIRS["lp_w"], PAIRS["lp_l"]], 1),
    "rf": np.stack([PAIRS["rf_w"], PAIRS["rf_l"]], 1),
    "r": np.tile([1.0, 0.0], (6, 1)),
}
SUMS = {k: v for k, v in PAIRS.items() if k[0] != "n"}
D = PAIRS["lp_w"] - PAIRS["rf_w"] - PAIRS["lp_l"] + PAIRS["rf_l"]


def same(list_result, pair_result, factor=1.0):
    close(list_result.per_unit, factor * pair_result.per_unit)
    close(list_result.gradients["lp"][:, 0], factor * pair_result.gradients["lp_w"])
    close(list_result.gradients["lp"][:, 1], factor * pair_result.gradients["lp_l"])


def test_infonca_of_two_is_dpo_and_smoothed_cdpo():
    same(objective("infonca", beta=0.3, T=1e-3)(TWO), objective("dpo", beta=0.3)(SUMS))
    eps = 0.2
    cdpo = objective("dpo", loss="cdpo", label_smoothing=eps, beta=0.3)(SUMS)
    same(objective("infonca", beta=0.3, T=1 / math.log((1 - eps) / eps))(TWO), cdpo)


def test_nca_of_two_is_its_pair_form():
    same(objective("nca", beta=0.3)(TWO), objective("nca", form="pair", beta=0.3)(SUMS))


def test_exo_of_two_is_its_pair_form_and_the_cards():
    eps, beta = 0.1, 0.3
    pref = objective("exo", form="pref", beta_pi=beta, eps=eps)(SUMS)
    rw = objective("exo", beta_pi=beta, beta_r=1 / math.log((1 - eps) / eps))(TWO)
    same(rw, pref)
    z = beta * D
    value = sig(z) * (np.log(sig(z)) - np.log(1 - eps)) + sig(-z) * (np.log(sig(-z)) - np.log(eps))
    close(pref.per_unit, value)
    slope_z = sig(z) * sig(-z) * (z - np.log((1 - eps) / eps))
    close(pref.gradients["lp_w"], beta / 6 * slope_z)
    start = objective("exo", form="pref", eps=eps)(dict(SUMS, rf_w=SUMS["lp_w"], rf_l=SUMS["lp_l"]))
    close(start.value, -np.log(2) - (np.log(1 - eps) + np.log(eps)) / 2)


def test_brain_of_two_hard_labels_is_dpo_at_beta_1():
    same(objective("brain", g=1e-3)(TWO), objective("dpo", beta=1.0)(SUMS))


def test_lipo_of_two_is_dpo_or_slics_hinge():
    for variant in ("pair-logistic", "list-mle"):
        same(objective("lipo", variant=variant, beta=0.3)(TWO), objective("dpo", beta=0.3)(SUMS))
    hinge = objective("slic", form="hinge-norm", beta=0.3)(SUMS)
    same(objective("lipo", variant="pair-hinge", beta=0.3)(TWO), hinge)


def test_lipo_lambda_of_two_is_dpo_times_a_constant_whichever_way_the_rewards_stand():
    constant = 1.0 / np.log(2) - 1.0 / np.log(3)
    lam, dpo = objective("lipo", beta=0.3), objective("dpo", beta=0.3)
    same(lam(TWO), dpo(SUMS), constant)
    tied = dict(TWO, lp=TWO["rf"])
    same(lam(tied), dpo(dict(SUMS, lp_w=SUMS["rf_w"], lp_l=SUMS["rf_l"])), constant)


def test_pro_of_two_is_simpo():
    two = {"lp": TWO["lp"], "n": np.stack([PAIRS["n_w"], PAIRS["n_l"]], 1), "r": TWO["r"] * 1.7}
    arrays = {k: v for k, v in PAIRS.items() if k[:2] != "rf"}
    for form, beta in (("paper", 1.7), ("plackett-luce", 1.0)):
        simpo = objective("simpo", beta=beta, gamma_beta_ratio=0.0)(arrays)
        same(objective("pro", form=form, sft_weight=0.0)(two), simpo)


def test_without_scores_pro_is_lipos_list_mle_on_average_log_probabilities():
    mean = np.where(THERE, LISTS["lp"] / np.where(THERE, N, 1), np.nan)
    mle = objective("lipo", variant="list-mle", beta=1.0)
    zero = {"lp": mean, "rf": np.where(THERE, 0.0, np.nan), "r": LISTS["r"]}
    close(
        objective("pro", form="plackett-luce", sft_weight=0.0)(LENGTHS).per_unit,
        mle(zero).per_unit,
    )


def test_rrhf_of_two_without_imitation_is_slic_without_a_margin():
    two = {"lp": TWO["lp"], "n": np.stack([PAIRS["n_w"], PAIRS["n_l"]], 1), "r": TWO["r"]}
    gap = PAIRS["lp_l"] / PAIRS["n_l"] - PAIRS["lp_w"] / PAIRS["n_w"]
    close(objective("rrhf", nll="mean")(two).per_unit + PAIRS["lp_w"] / PAIRS["n_w"],
          np.maximum(gap, 0))  # fmt: skip


def test_exo_is_the_reverse_kl_of_infonca():
    beta, T = 0.4, 0.3
    forward = objective("infonca", beta=beta, T=T)(RATIO).per_unit
    reverse = objective("exo", beta_pi=beta, beta_r=T)(RATIO).per_unit
    for u in range(U):
        own = THERE[u]
        p = softmax(LISTS["r"][u, own] / T)
        q = softmax(beta * (LISTS["lp"] - LISTS["rf"])[u, own])
        close(forward[u] + (p * np.log(p)).sum(), (p * np.log(p / q)).sum())
        close(reverse[u], (q * np.log(q / p)).sum())


def test_at_the_reference_infonca_is_log_K_and_nca_2_log_2():
    start = dict(RATIO, lp=RATIO["rf"])
    close(objective("infonca")(start).per_unit, np.log(SIZES))
    close(objective("nca", T=0.3)(start).per_unit, np.full(U, 2 * np.log(2)))


def test_at_its_optimum_infonca_is_the_entropy_and_exo_zero():
    beta, T = 0.4, 0.3
    best = dict(RATIO, lp=RATIO["rf"] + RATIO["r"] / (beta * T) + 3.0)
    value = objective("infonca", beta=beta, T=T)(best)
    for u in range(U):
        p = softmax(LISTS["r"][u, THERE[u]] / T)
        close(value.per_unit[u], -(p * np.log(p)).sum())
    close(value.gradients["lp"], 0.0, 1e-12)
    exo_best = objective("exo", beta_pi=beta, beta_r=T)(best)
    close(exo_best.per_unit, 0.0, 1e-12)
    close(exo_best.gradients["lp"], 0.0, 1e-12)


def test_ncas_optimum_is_absolute():
    beta, T = 0.4, 0.3
    lp = LISTS["rf"].copy()
    for u in range(U):
        p = softmax(LISTS["r"][u, THERE[u]] / T)
        lp[u, THERE[u]] += np.log(SIZES[u] * p) / beta
    still = objective("nca", beta=beta, T=T)(dict(RATIO, lp=lp))
    close(still.gradients["lp"], 0.0, 1e-12)
    shifted = objective("nca", beta=beta, T=T)(dict(RATIO, lp=lp + 1.0))
    assert shifted.value > still.value + 1e-3


@settings(max_examples=10)
@given(st.floats(-4, 4), st.floats(-4, 4))
def test_what_a_whole_list_shares_changes_no_loss_of_differences(of_rewards, of_scores):
    moved = dict(RATIO, lp=RATIO["lp"] + of_rewards, r=RATIO["r"] + of_scores)
    for id, hyper in (("infonca", {"T": 0.5}), ("exo", {}), ("brain", {})):
        close(objective(id, **hyper)(moved).per_unit, objective(id, **hyper)(RATIO).per_unit, 1e-8)


def test_brain_without_spread_of_scores_has_no_gradient_where_all_laws_agree():
    flat = dict(RATIO, lp=RATIO["rf"], r=np.where(THERE, 0.7, np.nan))
    close(objective("brain")(flat).gradients["lp"], 0.0, 1e-15)
    dpg = objective("brain", form="dpg")(flat).gradients["lp"]
    close(dpg.sum(1), np.full(U, -1.0 / U))


def test_without_its_baseline_brain_weighs_log_probabilities_by_the_posterior():
    result = objective("brain", form="dpg", g=0.6)(RATIO)
    for u in range(U):
        a = softmax(LISTS["r"][u, THERE[u]] / 0.6)
        close(result.gradients["lp"][u, THERE[u]], -a / U)
    given = objective("brain", form="dpg", g=0.6, proposal="given")({**RATIO, "lq": LISTS["lq"]})
    u = 0
    a = softmax((LISTS["rf"] - LISTS["lq"] + LISTS["r"] / 0.6)[u, THERE[u]])
    close(given.gradients["lp"][u, THERE[u]], -a / U)


def test_brains_gdcpp_has_the_ratios_themselves_as_baseline():
    result = objective("brain", form="gdc++", g=0.6, proposal="given")({**RATIO, "lq": LISTS["lq"]})
    for u in range(U):
        own = THERE[u]
        lp, lq, rf, r = (LISTS[k][u, own] for k in ("lp", "lq", "rf", "r"))
        a, b = softmax(rf - lq + r / 0.6), np.exp(lp - lq) / own.sum()
        close(result.per_unit[u], b.sum() - (a * (lp - lq)).sum())
        close(result.gradients["lp"][u, own], (b - a) / U)


def test_over_the_whole_support_gdcpps_fixed_point_is_the_posterior_too():
    ref, r, g = np.log([0.1, 0.6, 0.3]), np.array([1.0, 0.2, 0.5]), 0.4
    best = np.log(softmax(ref + r / g))
    a = {"lp": [best], "rf": [ref], "lq": [np.full(3, -np.log(3))], "r": [r]}
    close(objective("brain", form="gdc++", g=g, proposal="given")(a).gradients["lp"], 0.0, 1e-12)


def test_over_the_whole_support_brains_fixed_point_is_the_posterior():
    ref, r, g = np.log([0.1, 0.6, 0.3]), np.array([1.0, 0.2, 0.5]), 0.4
    uniform = np.full(3, -np.log(3))
    best = np.log(softmax(ref + r / g))
    a = {"lp": [best], "rf": [ref], "lq": [uniform], "r": [r]}
    result = objective("brain", g=g, proposal="given")(a)
    close(result.gradients["lp"], 0.0, 1e-12)


# Ties


def test_equal_scores_make_no_pair_and_share_targets():
    flat = dict(RATIO, r=np.where(THERE, 0.5, np.nan))
    for variant in ("lambda", "pair-logistic", "pair-hinge"):
        assert objective("lipo", variant=variant)(flat).value == 0
    uniform = objective("infonca", beta=0.4)(flat)
    for u in range(U):
        q = softmax(0.4 * (LISTS["lp"] - LISTS["rf"])[u, THERE[u]])
        close(uniform.per_unit[u], -np.log(q).mean())


def test_equal_scores_give_pro_the_number_of_remaining_answers_and_no_gradient():
    flat = dict(LENGTHS, r=np.where(THERE, 0.5, np.nan))
    result = objective("pro", sft_weight=0.0)(flat)
    close(result.per_unit, [math.log(math.factorial(size)) for size in SIZES])
    close(result.gradients["lp"], 0.0, 1e-15)


def test_pro_takes_the_mean_over_the_orders_of_tied_answers():
    p, r = np.array([-0.4, -1.3, -0.8, -2.0]), np.array([0.9, 0.5, 0.5, 0.1])
    orders = [(0, 1, 2, 3), (0, 2, 1, 3)]

    def loss(order):
        q, s, total = p[list(order)], r[list(order)], 0.0
        for k in range(3):
            tau = s[k] - s[k:]
            tau[0] = tau[1:].max()
            total += log_sum(tau * q[k:]) - tau[0] * q[k]
        return total

    found = objective("pro", sft_weight=0.0)(lp=[p], n=[[1] * 4], r=[r]).value
    close(found, np.mean([loss(order) for order in orders]))


def test_lambda_takes_the_mean_weight_over_the_orders_of_tied_rewards():
    s, r = np.array([0.3, 0.3, -0.2, 0.3]), np.array([1.0, 0.2, 0.5, 0.7])
    total, orders = 0.0, 0
    for order in itertools.permutations(range(4)):
        if any(s[order[k]] < s[order[k + 1]] for k in range(3)):
            continue
        rank = np.argsort(order) + 1
        orders += 1
        for i, j in ordered(r):
            weight = abs(2 ** r[i] - 2 ** r[j]) * abs(
                1 / np.log(1 + rank[i]) - 1 / np.log(1 + rank[j])
            )
            total += weight * neg_logsig(s[i] - s[j])
    result = objective("lipo", beta=1.0)(lp=[s], rf=[np.zeros(4)], r=[r])
    close(result.value, total / orders)


def test_efrons_rule_for_tied_labels_of_list_mle():
    s, r = np.array([0.2, -0.5, 1.0, 0.4]), np.array([2.0, 1.0, 1.0, 0.0])
    e = np.exp(s)
    value = np.log(e.sum()) + np.log(e[1:].sum()) + np.log((e[1] + e[2]) / 2 + e[3]) - s[:3].sum()
    result = objective("lipo", variant="list-mle", beta=1.0)(lp=[s], rf=[np.zeros(4)], r=[r])
    close(result.value, value)


def test_several_best_answers_are_imitated_alike():
    a = {"lp": [[-2.0, -3.0, -9.0]], "n": [[1, 1, 1]], "r": [[1.0, 1.0, 0.0]]}
    close(objective("rrhf")(a).value, 2.5)
    close(objective("pro", sft_weight=0.1)(a).value - objective("pro", sft_weight=0.0)(a).value,
          0.1 * 4 * 2.5)  # fmt: skip


def test_the_authors_bonus_breaks_ties_towards_the_first():
    flat = {"lp": [[-1.0, -2.0]], "rf": [[-1.0, -2.0]], "r": [[3.0, 3.0]]}
    for id in ("infonca", "nca"):
        g = objective(id, form="code", beta=1.0)(flat).gradients["lp"][0]
        assert g[0] < 0 < g[1]
        close(objective(id, beta=1.0)(flat).gradients["lp"][0], 0.0, 1e-15)


# Signs and order


def test_minimising_lambda_loss_sorts_the_rewards_as_the_labels():
    r = np.array([[0.1, 0.9, 0.5, 0.3]])
    lp = np.array([[0.4, -0.4, 0.0, 0.2]])
    step = objective("lipo", beta=1.0)
    for _ in range(60):
        lp = lp - 2.0 * step(lp=lp, rf=np.zeros((1, 4)), r=r).gradients["lp"]
    assert (np.argsort(lp) == np.argsort(r)).all()


def test_swapping_two_rewards_of_neighbouring_rank_leaves_their_own_weight():
    r = [[1.0, 0.2, 0.6]]
    step = objective("lipo", beta=1.0)
    one = step(lp=[[0.5, 0.4, -9.0]], rf=[[0.0] * 3], r=r)
    other = step(lp=[[0.4, 0.5, -9.0]], rf=[[0.0] * 3], r=r)
    weight = (2**1.0 - 2**0.2) * (1 / np.log(2) - 1 / np.log(3))
    others = 0.0
    for s, found in (([0.5, 0.4], one), ([0.4, 0.5], other)):
        rank = {0: 1, 1: 2} if s[0] > s[1] else {0: 2, 1: 1}
        rest = sum(
            abs(2 ** r[0][i] - 2**0.6) * (1 / np.log(1 + rank[i]) - 1 / np.log(4))
            * neg_logsig((s[i] + 9.0) * (1 if i == 0 else -1))
            for i in (0, 1)
        )  # fmt: skip
        close(found.value - rest, weight * neg_logsig(s[0] - s[1]))
        others += rest
    assert others > 0


def test_rrhf_leaves_what_is_in_order_and_moves_the_rest_equally():
    right = objective("rrhf")(lp=[[-1.0, -2.0]], n=[[1, 1]], r=[[1.0, 0.0]])
    close(right.gradients["lp"], [[-1.0, 0.0]])
    wrong = objective("rrhf")(lp=[[-2.0, -1.0]], n=[[1, 1]], r=[[1.0, 0.0]])
    close(wrong.gradients["lp"], [[-2.0, 1.0]])


def test_metrics_are_of_the_best_and_the_worst_and_count_ordered_pairs():
    a = {"lp": [[-1.0, -5.0, -2.0], [-1.0, -3.0, np.nan]], "rf": [[-2.0] * 3, [-2.0, -2.0, np.nan]]}
    m = objective("infonca", beta=1.0)(a, r=[[2.0, 0.0, 1.0], [0.5, 0.5, np.nan]]).metrics
    close(m["rewards/chosen"], (1.0 + 0.0) / 2)
    close(m["rewards/rejected"], (-3.0 + 0.0) / 2)
    close(m["rewards/margins"], 4.0)
    close(m["rewards/accuracies"], 1.0)
    close(m["logps/chosen"], (-1.0 - 2.0) / 2)


def test_labels_may_be_the_shares_of_answers_that_each_one_beats():
    """Any scores, or ranks: only their order counts, and ties count half."""
    ranks = {"lp": [[-1.0, -2.0, -4.0]], "rf": [[-2.0] * 3], "r": [[-1.0, -3.0, -1.0]]}
    shares = dict(ranks, r=[[0.75, 0.0, 0.75]])
    for variant in ("lambda", "softmax", "point-mse", "point-sigmoid"):
        of_ranks = objective("lipo", variant=variant, labels="wins")(ranks)
        given = objective("lipo", variant=variant)(shares)
        close(of_ranks.value, given.value)
        close(of_ranks.gradients["lp"], given.gradients["lp"])
