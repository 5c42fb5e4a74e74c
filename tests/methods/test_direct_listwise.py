"""infonca, exo, nca, lipo, pro, rrhf and brain against their cards, list by list."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyalign import objective
from tests.methods.by_hand import close, sig
from tests.methods.lists_by_hand import (
    DRAW,
    LENGTHS,
    LISTS,
    RATIO,
    SIZES,
    THERE,
    K,
    N,
    U,
    brain,
    check,
    exo,
    infonca,
    lipo,
    nca,
    pro,
    rrhf,
    softmax,
)

CASES = [
    ("infonca", {"beta": 0.4, "T": 0.3}, infonca(0.4, 0.3), RATIO),
    ("nca", {"beta": 0.4, "T": 0.3}, nca(0.4, 0.3), RATIO),
    ("exo", {"beta_pi": 0.4, "beta_r": 0.3}, exo(0.4, 0.3), RATIO),
    ("brain", {"g": 0.6}, brain(0.6, False), RATIO),
    ("brain", {"g": 0.6, "proposal": "given"}, brain(0.6, True), {**RATIO, "lq": LISTS["lq"]}),
    ("pro", {"sft_weight": 0.2}, pro(0.2, "paper"), LENGTHS),
    ("pro", {"form": "plackett-luce"}, pro(0.05, "plackett-luce"), LENGTHS),
    ("rrhf", {}, rrhf(1.0, 1.0, "sum"), LENGTHS),
    (
        "rrhf",
        {"rrhf_weight": 7.0, "length_penalty": 0.5, "nll": "mean"},
        rrhf(7.0, 0.5, "mean"),
        LENGTHS,
    ),
    *(
        ("lipo", {"variant": v, "beta": 0.4}, lipo(v, 0.4), RATIO)
        for v in (
            "lambda",
            "pair-logistic",
            "pair-hinge",
            "list-mle",
            "softmax",
            "point-mse",
            "point-sigmoid",
        )
    ),
]
EVERY = pytest.mark.parametrize(
    ("id", "hyper", "loss", "arrays"),
    CASES,
    ids=[f"{c[0]}-{'-'.join(map(str, c[1].values()))}" for c in CASES],
)


@EVERY
def test_loss_and_gradient_are_the_cards(id, hyper, loss, arrays):
    check(objective(id, **hyper)(arrays), loss)


@pytest.mark.parametrize(
    ("id", "beta", "slope_of"),
    [
        ("infonca", 0.4, lambda p, q, R: q - p),
        ("nca", 0.4, lambda p, q, R: sig(R) / len(R) - p * sig(-R)),
        ("exo", 0.4, lambda p, q, R: q * (np.log(q / p) - (q * np.log(q / p)).sum())),
    ],
)
def test_gradients_are_the_cards_closed_forms(id, beta, slope_of):
    hyper = {"beta_pi": beta, "beta_r": 0.3} if id == "exo" else {"beta": beta, "T": 0.3}
    found = objective(id, **hyper)(RATIO).gradients["lp"]
    for u in range(U):
        own = THERE[u]
        R = beta * (LISTS["lp"] - LISTS["rf"])[u, own]
        p, q = softmax(LISTS["r"][u, own] / 0.3), softmax(R)
        close(found[u, own], beta / U * slope_of(p, q, R))
        assert (found[u, ~own] == 0).all()


# The order of a list, and what is missing


@EVERY
@settings(max_examples=5)
@given(order=st.permutations(range(K)))
def test_the_order_of_a_list_says_nothing(id, hyper, loss, arrays, order):
    moved = objective(id, **hyper)({k: v[:, order] for k, v in arrays.items()})
    plain = objective(id, **hyper)(arrays)
    close(moved.per_unit, plain.per_unit)
    close(moved.gradients["lp"], plain.gradients["lp"][:, order])


@EVERY
@settings(max_examples=5)
@given(order=st.permutations(range(K)), tie=st.sampled_from([0.1, 0.4, 1.0]))
def test_neither_does_it_with_ties_of_scores_or_of_rewards(id, hyper, loss, arrays, order, tie):
    tied = dict(arrays, r=np.where(THERE, np.where(LISTS["r"] > 0.4, tie, 0.4), np.nan))
    if "rf" in arrays:  # several answers at their reference
        tied["lp"] = np.where(N % 2 == 0, arrays["rf"], arrays["lp"])
    plain = objective(id, **hyper)(tied)
    moved = objective(id, **hyper)({k: v[:, order] for k, v in tied.items()})
    close(moved.per_unit, plain.per_unit)
    close(moved.gradients["lp"], plain.gradients["lp"][:, order])


@EVERY
def test_missing_members_count_for_nothing_however_they_are_told(id, hyper, loss, arrays):
    plain = objective(id, **hyper)(arrays)
    rubbish = {k: np.where(THERE, v, 1e6 if k != "n" else 3) for k, v in arrays.items()}
    masked = objective(id, **hyper)(rubbish, mask=THERE)
    close(masked.per_unit, plain.per_unit)
    close(masked.gradients["lp"], plain.gradients["lp"])
    for u in range(U):  # each list alone, without its gaps
        one = {k: v[u : u + 1, THERE[u]] for k, v in arrays.items()}
        close(objective(id, **hyper)(one).value, plain.per_unit[u])


@EVERY
def test_sums_and_steps_agree_in_lists(id, hyper, loss, arrays):
    mask = (np.arange(8) < N[..., None]) & THERE[..., None]
    weight = mask * DRAW.uniform(0.1, 1, mask.shape)
    weight = weight / np.where(weight.sum(-1) > 0, weight.sum(-1), 1)[..., None]
    steps = {
        {"lp": "logp", "rf": "ref"}.get(k, k): v[..., None] * weight if k in ("lp", "rf") else v
        for k, v in arrays.items()
        if k != "n"
    }
    result = objective(id, **hyper)(steps, mask=mask)
    plain = objective(id, **hyper)({**arrays, "n": LISTS["n"]} if "rf" not in arrays else arrays)
    close(result.per_unit, plain.per_unit)
    close(result.gradients["logp"], mask * plain.gradients["lp"][..., None])


def test_a_mean_over_pairs_divides_by_their_number():
    total = objective("lipo", variant="pair-logistic")(RATIO).per_unit
    mean = objective("lipo", variant="pair-logistic", pair_reduction="mean")(RATIO).per_unit
    count = [size * (size - 1) / 2 for size in SIZES]
    close(mean, total / count)
