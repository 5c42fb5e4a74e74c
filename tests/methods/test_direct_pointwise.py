"""bco, apo-zero, apo-down, asft, cal-dpo and nca on pairs against their cards."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polyalign import objective
from polyalign.errors import NumericsError, OptionError, PolyalignWarning
from polyalign.feedback.records import Pair
from polyalign.methods import get
from polyalign.objectives import ShiftedBinary
from polyalign.types import Scores
from tests.methods.by_hand import close, neg_logsig, pairs, sig

A = pairs(1, 7)
B = len(A["lp_w"])
SUMS = {k: v for k, v in A.items() if k[0] != "n"}
H_W, H_L = A["lp_w"] - A["rf_w"], A["lp_l"] - A["rf_l"]
D = H_W - H_L
SAME = {"lp_w": [-3.0], "rf_w": [-3.0], "lp_l": [-5.0], "rf_l": [-5.0]}
DRAW = np.random.default_rng(3)
THUMBS = {
    "lp": -DRAW.uniform(2, 20, 6),
    "rf": -DRAW.uniform(2, 20, 6),
    "label": np.array([1, 0, 1, 1, 0, 1]),
}


def check(result, value, by_w, by_l):
    """Per-unit losses and the two gradients, which the card gives for a sum over the batch."""
    close(result.per_unit, value)
    close(result.value, np.mean(value))
    close(result.gradients["lp_w"], by_w / len(value))
    close(result.gradients["lp_l"], by_l / len(value))


# apo


def test_apo_zero_is_the_cards():
    beta = 0.3
    s_w, s_l = sig(beta * H_W), sig(beta * H_L)
    result = objective("apo-zero", beta=beta)(SUMS)
    check(result, 1 - s_w + s_l, -beta * s_w * (1 - s_w), beta * s_l * (1 - s_l))
    assert ((result.per_unit >= 0) & (result.per_unit <= 2)).all()
    assert (result.gradients["lp_w"] <= 0).all()


def test_apo_down_is_the_cards():
    beta = 0.3
    s_w, s_d = sig(beta * H_W), sig(beta * D)
    by_w = beta * (s_w * (1 - s_w) - s_d * (1 - s_d))
    result = objective("apo-down", beta=beta)(SUMS)
    check(result, s_w + 1 - s_d, by_w, beta * s_d * (1 - s_d))


def test_at_the_reference_apo_zero_pushes_both_and_apo_down_the_rejected_alone():
    beta = 0.2
    zero, down = objective("apo-zero", beta=beta)(SAME), objective("apo-down", beta=beta)(SAME)
    close([zero.value, down.value], [1.0, 1.0])
    close([zero.gradients["lp_w"][0], zero.gradients["lp_l"][0]], [-beta / 4, beta / 4])
    close([down.gradients["lp_w"][0], down.gradients["lp_l"][0]], [0.0, beta / 4])


def test_with_the_chosen_answer_at_its_reference_apo_down_pushes_it_down():
    ahead = {"lp_w": [-3.0], "rf_w": [-3.0], "lp_l": [-9.0], "rf_l": [-5.0]}
    assert objective("apo-down")(ahead).gradients["lp_w"][0] > 0


@pytest.mark.parametrize(
    ("id", "h_w", "h_l"), [("apo-zero", 900.0, -900.0), ("apo-down", -900.0, -9000.0)]
)
def test_apo_reaches_its_infimum_of_zero_far_from_the_reference(id, h_w, h_l):
    far = {"lp_w": [h_w], "rf_w": [0.0], "lp_l": [h_l], "rf_l": [0.0]}
    close(objective(id)(far).value, 0.0, 1e-12)


def test_kto_without_a_zero_point_is_apo_zero_on_both_sides():
    thumbs = {
        "lp": np.concatenate([A["lp_w"], A["lp_l"]]),
        "rf": np.concatenate([A["rf_w"], A["rf_l"]]),
        "label": np.repeat([1, 0], B),
    }
    single = objective("kto", zero_point="none", beta=0.3)(thumbs)
    pair = objective("apo-zero", beta=0.3)(SUMS)
    close(single.per_unit[:B] + single.per_unit[B:], pair.per_unit)
    close(2 * single.gradients["lp"][:B], pair.gradients["lp_w"])
    assert "kl" not in single.metrics


# bco


def bco_by_hand(a, beta, form, weight=1.0):
    rho, good = beta * (a["lp"] - a["rf"]), a["label"] == 1
    delta = rho.mean() if form == "code" else (rho[good].mean() + rho[~good].mean()) / 2
    w = np.where(good, 1.0, weight)
    value = w * np.where(good, neg_logsig(rho - delta), neg_logsig(delta - rho))
    slope = w * beta * np.where(good, -sig(delta - rho), sig(rho - delta)) / len(rho)
    return value, slope, delta


@pytest.mark.parametrize("form", ["paper", "code"])
def test_bco_is_the_cards(form):
    value, slope, delta = bco_by_hand(THUMBS, 0.2, form)
    result = objective("bco", form=form, beta=0.2)(THUMBS)
    close(result.per_unit, value)
    close(result.gradients["lp"], slope)
    close(result.metrics["shift"], delta)


def test_matching_weighs_bad_examples_by_clipped_odds():
    p = np.array([0.3, 0.5, 0.9, 0.2, 0.999, 0.01])
    label = np.array([1, 0, 1, 0, 0, 1])
    weight = np.clip(p / (1 - p + 1e-8), 0.4, 3.0)
    assert {0.4, 3.0} < set(weight)
    value, slope, _ = bco_by_hand(dict(THUMBS, label=label), 0.2, "paper", weight)
    match = objective("bco", beta=0.2, matching=True, w_min=0.4, w_max=3.0)
    result = match(dict(THUMBS, label=label), p=p)
    close(result.per_unit, value)
    close(result.gradients["lp"], slope)
    close(match(dict(THUMBS, label=label), p_desirable=p).value, result.value)


def test_at_the_reference_bcos_shift_is_zero_and_each_term_log_2():
    result = objective("bco")(dict(THUMBS, rf=THUMBS["lp"]))
    close(result.per_unit, np.full(6, np.log(2)))
    assert result.metrics["shift"] == 0


@settings(max_examples=15)
@given(st.floats(-5, 5))
def test_bcos_shift_absorbs_what_all_rewards_share(by):
    moved = objective("bco", beta=0.3)(dict(THUMBS, lp=THUMBS["lp"] + by))
    close(moved.value, objective("bco", beta=0.3)(THUMBS).value)


@settings(max_examples=15)
@given(st.floats(-3, 3), st.integers(0, 50))
def test_for_any_shift_the_two_thumbs_of_a_pair_bound_its_dpo_loss(shift, seed):
    a = pairs(seed)
    h_w, h_l = a["lp_w"] - a["rf_w"], a["lp_l"] - a["rf_l"]
    both = neg_logsig(h_w - shift) + neg_logsig(shift - h_l)
    dpo = objective("dpo", beta=1.0)({k: v for k, v in a.items() if k[0] != "n"})
    assert (both > dpo.per_unit).all()
    balanced = {
        "lp": np.concatenate([a["lp_w"], a["lp_l"]]),
        "rf": np.concatenate([a["rf_w"], a["rf_l"]]),
        "label": np.repeat([1, 0], len(h_w)),
    }
    assert 2 * objective("bco", beta=1.0)(balanced).value > dpo.value


def thumbs(h, label):
    """Scores of single-step answers with these log-ratios."""
    size = len(h)
    return Scores(
        logp=torch.tensor(h, dtype=torch.float64).unsqueeze(-1),
        mask=torch.ones(size, 1, dtype=torch.bool),
        weight=torch.ones(size, dtype=torch.float64),
        roles={"own": torch.arange(size)},
        refs={"ref": torch.zeros(size, 1, dtype=torch.float64)},
        fields={"label": torch.tensor(label, dtype=torch.float64)},
    )


def test_bcos_shift_is_a_mean_over_all_examples_so_far():
    """Two steps of unequal sizes and classes: not the mean of the steps' means."""
    part = ShiftedBinary(beta=0.5)
    first = part.before(thumbs([1.0, 2.0, 9.0], [0, 0, 1]), part.start())
    both = part.before(thumbs([4.0, 1.0], [0, 1]), first)
    close(float(part.delta(first)), 0.5 * (1.5 + 9.0) / 2)
    close(float(part.delta(both)), 0.5 * (7.0 / 3 + 5.0) / 2)
    close(float(ShiftedBinary(beta=0.5, shift="pooled").delta(both)), 0.5 * 17.0 / 5)


def test_while_one_class_is_unseen_bcos_shift_is_the_others_mean():
    part = ShiftedBinary(beta=0.5)
    assert float(part.delta(part.start())) == 0
    close(float(part.delta(part.before(thumbs([4.0, 2.0], [1, 1]), part.start()))), 1.5)


def test_bco_warns_of_one_class_and_refuses_impossible_probabilities():
    with pytest.warns(PolyalignWarning, match="only one side"):
        objective("bco")(dict(THUMBS, label=np.ones(6)))
    with pytest.raises(NumericsError, match="'p_desirable' holds numbers outside"):
        objective("bco", matching=True)(THUMBS, p=np.full(6, 1.5))
    with pytest.raises(OptionError, match="exceeds w_max"):
        get("bco")(matching=True, w_min=3.0, w_max=2.0)
    with pytest.raises(OptionError, match="read with matching=true only"):
        get("bco")(w_max=3.0)


# nca on pairs


@pytest.mark.parametrize("form", ["pair", "biased"])
def test_nca_on_pairs_is_the_cards(form):
    beta = 0.3
    r_w, r_l = beta * H_W, beta * H_L
    half = 0.5 if form == "pair" else 1.0
    value = neg_logsig(r_w) + half * neg_logsig(-r_l)
    by_w, by_l = -beta * sig(-r_w), beta * half * sig(r_l)
    if form == "pair":
        value, by_w = value + 0.5 * neg_logsig(-r_w), by_w + 0.5 * beta * sig(r_w)
    check(objective("nca", form=form, beta=beta)(SUMS), value, by_w, by_l)


def test_the_biased_form_is_bco_with_a_shift_of_zero():
    h = np.concatenate([H_W, H_L])
    zero = neg_logsig(np.where(np.arange(2 * B) < B, 1, -1) * 0.3 * h)
    biased = objective("nca", form="biased", beta=0.3)(SUMS)
    close(biased.per_unit, zero[:B] + zero[B:])


def test_forms_on_pairs_learn_from_pairs_and_read_no_temperature():
    assert get("nca")(form="pair").feedback is Pair
    assert get("exo")(form="pref").feedback is Pair
    with pytest.raises(OptionError, match="T has no place in form=biased"):
        get("nca")(form="biased", T=0.1)


# asft


@pytest.mark.parametrize("lam", [0.0, 0.1, 1.0])
def test_asft_is_likelihood_and_unlikelihood(lam):
    a_w, a_l = A["lp_w"] / A["n_w"], A["lp_l"] / A["n_l"]
    arrays = {k: v for k, v in A.items() if k[:2] != "rf"}
    p_l = np.exp(a_l)
    check(
        objective("asft", lam=lam)(arrays),
        -(1 + lam) * a_w - lam * np.log1p(-p_l),
        -(1 + lam) / A["n_w"],
        lam * p_l / (1 - p_l) / A["n_l"],
    )


def test_without_its_weight_asft_is_sft_by_sequence():
    arrays = {k: v for k, v in A.items() if k[:2] != "rf"}
    chosen = {"lp": A["lp_w"], "n": A["n_w"]}
    sft = objective("sft", reduction="sequence")(chosen)
    close(objective("asft", lam=0.0)(arrays).value, sft.value)


@pytest.mark.parametrize(("p_l", "stronger"), [(0.6, False), (0.7, True)])
def test_asfts_rejected_force_exceeds_the_chosen_one_above_two_thirds(p_l, stronger):
    a = {"lp_w": [-1.0], "n_w": [1], "lp_l": [np.log(p_l)], "n_l": [1]}
    g = objective("asft", lam=1.0)(a).gradients
    assert (g["lp_l"][0] > -g["lp_w"][0]) == stronger


def test_asft_refuses_a_probability_of_one():
    with pytest.raises(NumericsError, match="has no odds"):
        objective("asft")(lp_w=[-1.0], n_w=[1], lp_l=[0.0], n_l=[2])


# cal-dpo


@pytest.mark.parametrize("c", [1.0, 0.5])
def test_cal_dpo_is_the_cards(c):
    beta = 0.2
    t = 1 / (2 * beta)
    check(
        objective("cal-dpo", beta=beta, cal_weight=c)(SUMS),
        neg_logsig(D) + c * ((H_W - t) ** 2 + (H_L + t) ** 2),
        -sig(-D) + 2 * c * (H_W - t),
        sig(-D) + 2 * c * (H_L + t),
    )


def test_cal_dpo_starts_at_log_2_plus_its_targets_and_without_them_is_dpo():
    close(objective("cal-dpo", beta=0.1)(SAME).value, np.log(2) + 1 / (2 * 0.1**2))
    without = objective("cal-dpo", cal_weight=0.0)(SUMS)
    dpo = objective("dpo", beta=1.0)(SUMS)
    close(without.per_unit, dpo.per_unit)
    close(without.gradients["lp_w"], dpo.gradients["lp_w"])


def test_cal_dpo_stands_still_just_beyond_its_targets():
    beta, u = 0.25, 2.0
    for _ in range(60):
        u = 1 / (2 * beta) + sig(-2 * u) / 2
    still = {"lp_w": [u], "rf_w": [0.0], "lp_l": [-u], "rf_l": [0.0]}
    result = objective("cal-dpo", beta=beta)(still)
    assert u > 1 / (2 * beta)
    close([result.gradients["lp_w"][0], result.gradients["lp_l"][0]], [0.0, 0.0])


# What cards refuse


@pytest.mark.parametrize("id", ["bco", "apo-zero", "apo-down", "cal-dpo", "nca"])
@pytest.mark.parametrize("value", ["0", "-1", "nan"])
def test_beta_must_be_positive(id, value):
    with pytest.raises(OptionError, match=f"{id}: beta="):
        get(id)(beta=value)


@pytest.mark.parametrize("id", ["apo-zero", "apo-down", "cal-dpo"])
def test_the_reference_is_asked_for(id):
    with pytest.raises(OptionError, match="needs the array 'rf_l'"):
        objective(id)(lp_w=[-1.0], lp_l=[-1.0], rf_w=[-1.0])


# bco on pairs


def test_bco_of_pairs_is_the_cards_and_bounds_dpo():
    beta = 0.2
    delta = beta * np.concatenate([H_W, H_L]).mean()
    found = objective("bco", form="pair", beta=beta)(SUMS)
    value = neg_logsig(beta * H_W - delta) + neg_logsig(delta - beta * H_L)
    check(found, value, -beta * sig(delta - beta * H_W), beta * sig(beta * H_L - delta))
    close(found.metrics["shift"], delta)
    assert (found.per_unit >= neg_logsig(beta * D)).all()
    assert get("bco")(form="pair").feedback is Pair
    with pytest.raises(OptionError, match="matching has no place in form=pair"):
        get("bco")(form="pair", matching=True)


def test_bco_of_pairs_shifts_by_the_mean_over_all_steps_so_far():
    loss = get("bco")(form="pair", beta=0.5).stages[0].updates[0].objective

    def scores(w, l):  # noqa: E741
        logp = torch.tensor([[w], [l]], dtype=torch.float64)
        mask = torch.ones_like(logp, dtype=torch.bool)
        roles = {"chosen": torch.tensor([0]), "rejected": torch.tensor([1])}
        weight = torch.ones(1, dtype=torch.float64)
        return Scores(logp, mask, weight, roles, refs={"ref": torch.zeros_like(logp)})

    state = loss.before(scores(-1.0, -3.0), loss.start())
    second = scores(-2.0, -6.0)
    state = loss.before(second, state)
    delta = 0.5 * (-1 - 3 - 2 - 6) / 4
    value = loss(second, state).terms[0].value
    close(float(value), float(neg_logsig(0.5 * -2 - delta) + neg_logsig(delta - 0.5 * -6)))
