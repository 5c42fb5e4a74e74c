"""wpo, h-dpo and bvpo against their cards, worked out by hand in float64."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyalign import objective
from polyalign.errors import NumericsError, OptionError
from polyalign.objectives.mixtures import best_share
from tests.methods.by_hand import close, neg_logsig, pairs, sig

A = pairs()
SIZE, T, V = 5, 6, 7
ROWS = {"w": 0, "l": 1}


def laws(seed=1):
    """Policy and reference logits, tokens and masks of pairs of unequal lengths."""
    draw = np.random.default_rng(seed)
    out = {}
    for s in ROWS:
        out[f"logits_{s}"] = draw.normal(0, 1.5, (SIZE, T, V))
        out[f"ref_logits_{s}"] = draw.normal(0, 1.5, (SIZE, T, V))
        out[f"tokens_{s}"] = draw.integers(0, V, (SIZE, T))
        out[f"mask_{s}"] = np.arange(T) < draw.integers(1, T + 1, SIZE)[:, None]
    return out


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def taken(p, tokens):
    return np.take_along_axis(np.log(p), tokens[..., None], -1)[..., 0]


def side(a, s, alignment):
    """Summed log-ratio, mean alignment, and the gradient of the summed logp by the logits."""
    p, q, mask = softmax(a[f"logits_{s}"]), softmax(a[f"ref_logits_{s}"]), a[f"mask_{s}"]
    logp, ref = taken(p, a[f"tokens_{s}"]), taken(q, a[f"tokens_{s}"])
    usual = {
        "sampled": np.log((p * p).sum(-1)),
        "greedy": np.log(p.max(-1)),
        "none": np.zeros(logp.shape),
    }[alignment]
    h = ((logp - ref) * mask).sum(-1)
    alike = ((logp - usual) * mask).sum(-1) / mask.sum(-1)
    slope = (np.eye(V)[a[f"tokens_{s}"]] - p) * mask[..., None]
    return h, alike, slope


@pytest.mark.parametrize("alignment", ["sampled", "greedy", "none"])
def test_wpo_loss_and_gradient_are_the_cards_with_a_constant_weight(alignment):
    a, beta = laws(), 0.3
    h_w, a_w, d_w = side(a, "w", alignment)
    h_l, a_l, d_l = side(a, "l", alignment)
    w = np.minimum(1.0, np.exp(a_w + a_l))
    z = beta * (h_w - h_l)
    result = objective("wpo", alignment=alignment, beta=beta)(a)
    close(result.per_unit, w * neg_logsig(z))
    close(result.value, (w * neg_logsig(z)).mean())
    slope = (-w * beta * sig(-z) / SIZE)[:, None, None]
    close(result.gradients["logits_w"], slope * d_w)
    close(result.gradients["logits_l"], -slope * d_l)
    close(result.metrics["weights"], w.mean())


def test_wpo_smooths_both_terms_under_one_weight():
    a = laws()
    h_w, a_w, _ = side(a, "w", "sampled")
    h_l, a_l, _ = side(a, "l", "sampled")
    w, z = np.minimum(1.0, np.exp(a_w + a_l)), 0.01 * (h_w - h_l)
    smoothed = objective("wpo", label_smoothing=0.2)(a)
    close(smoothed.per_unit, w * (0.8 * neg_logsig(z) + 0.2 * neg_logsig(-z)))


def test_wpo_of_uniform_laws_is_dpo():
    a = laws()
    for s in ROWS:
        a[f"logits_{s}"] = np.full((SIZE, T, V), 0.7)
    close(objective("wpo", beta=0.2)(a).per_unit, objective("dpo", beta=0.2)(a).per_unit)


def test_wpo_of_deterministic_laws_is_dpo():
    a = laws()
    for s in ROWS:
        a[f"logits_{s}"] = 60.0 * np.eye(V)[a[f"tokens_{s}"]]
    close(objective("wpo", beta=0.2)(a).per_unit, objective("dpo", beta=0.2)(a).per_unit, 1e-6)


def test_wpo_greedy_weights_are_one_only_where_both_answers_are_greedy():
    a = laws()
    for s in ROWS:
        a[f"tokens_{s}"] = a[f"logits_{s}"].argmax(-1)
    greedy = objective("wpo", alignment="greedy", beta=0.2, clip_max=5.0)
    close(greedy(a).per_unit, objective("dpo", beta=0.2)(a).per_unit)
    a["tokens_l"] = a["logits_l"].argmin(-1)
    assert (greedy(a).per_unit < objective("dpo", beta=0.2)(a).per_unit).all()


def test_wpo_reads_single_steps_with_their_signals():
    a = laws()
    by_step = {}
    for s in ROWS:
        p, q = softmax(a[f"logits_{s}"]), softmax(a[f"ref_logits_{s}"])
        by_step |= {
            f"logp_{s}": taken(p, a[f"tokens_{s}"]),
            f"ref_{s}": taken(q, a[f"tokens_{s}"]),
            f"log_collision_{s}": np.log((p * p).sum(-1)),
            f"mask_{s}": a[f"mask_{s}"],
        }
    close(objective("wpo")(by_step).per_unit, objective("wpo")(a).per_unit)


def test_wpo_padding_changes_nothing():
    a = laws()
    wide = {
        k: np.concatenate([v, np.full((SIZE, 3, *v.shape[2:]), 3)], 1) if k[:4] != "mask" else
        np.concatenate([v, np.zeros((SIZE, 3), bool)], 1)
        for k, v in a.items()
    }  # fmt: skip
    close(objective("wpo")(wide).per_unit, objective("wpo")(a).per_unit)


def test_wpo_refuses_sums_and_unknown_alignments():
    with pytest.raises(OptionError, match="looks at single steps"):
        objective("wpo")(A)
    with pytest.raises(OptionError, match="alignment='lazy' is not allowed"):
        objective("wpo", alignment="lazy")
    with pytest.raises(NumericsError, match="no step that counts"):
        objective("wpo")(dict(laws(), mask_w=np.zeros((SIZE, T))))


@pytest.mark.parametrize("alpha", [0.5, 1.3])
def test_h_dpo_loss_and_gradient_are_the_cards(alpha):
    beta = 0.2
    z = alpha * beta * (A["lp_w"] - A["lp_l"]) - beta * (A["rf_w"] - A["rf_l"])
    result = objective("h-dpo", alpha=alpha, beta=beta)(A)
    close(result.per_unit, neg_logsig(z))
    close(result.gradients["lp_w"], -alpha * beta / SIZE * sig(-z))
    close(result.gradients["lp_l"], alpha * beta / SIZE * sig(-z))
    close(result.metrics["rewards/chosen"], (beta * (alpha * A["lp_w"] - A["rf_w"])).mean())


def test_h_dpo_with_alpha_one_is_dpo():
    one, dpo = objective("h-dpo", alpha=1.0, beta=0.2)(A), objective("dpo", beta=0.2)(A)
    close(one.per_unit, dpo.per_unit)
    close(one.gradients["lp_w"], dpo.gradients["lp_w"])


@given(st.floats(0.1, 3), st.floats(-20, 20), st.floats(-20, 20))
def test_h_dpo_ignores_constants_of_the_prompt(alpha, a, b):
    h_dpo = objective("h-dpo", alpha=alpha)
    moved = dict(A, lp_w=A["lp_w"] + a, lp_l=A["lp_l"] + a, rf_w=A["rf_w"] + b, rf_l=A["rf_l"] + b)
    close(h_dpo(moved).value, h_dpo(A).value)


def test_h_dpo_has_no_gradient_at_its_closed_form():
    """log pi = (log ref + r / beta) / alpha makes the sigmoid's argument the reward gap."""
    alpha, beta, gap = 0.8, 0.1, 1.5
    a = {"rf_w": [-3.0], "rf_l": [-4.0], "lp_l": [-4.0 / alpha]}
    a["lp_w"] = [(-3.0 + gap / beta) / alpha]
    p = sig(gap)
    seen = objective("h-dpo", alpha=alpha, beta=beta)(a).gradients["lp_w"][0]
    swapped = {k[:-1] + {"w": "l", "l": "w"}[k[-1]]: v for k, v in a.items()}
    flipped = objective("h-dpo", alpha=alpha, beta=beta)(swapped).gradients["lp_l"][0]
    close(p * seen + (1 - p) * flipped, 0.0, 1e-12)


@pytest.mark.parametrize("hyper", [{"alpha": 0.0}, {"beta": 0.0}, {"alpha": -1.0}])
def test_h_dpo_refuses_coefficients_that_are_not_positive(hyper):
    with pytest.raises(OptionError, match="is not allowed"):
        objective("h-dpo", **hyper)


def test_h_dpo_refuses_missing_references():
    with pytest.raises(OptionError, match="needs the array 'rf_l'"):
        objective("h-dpo")({k: v for k, v in A.items() if k != "rf_l"})


TRACE = np.array([1, 0, 0, 1, 0])


@pytest.mark.parametrize("a", [0.0, 0.3, 1.0])
def test_bvpo_loss_and_gradient_are_the_cards(a):
    beta = 0.3
    z = beta * ((A["lp_w"] - A["rf_w"]) - (A["lp_l"] - A["rf_l"]))
    each = neg_logsig(z)
    mix = a * each[TRACE == 1].mean() + (1 - a) * each[TRACE == 0].mean()
    result = objective("bvpo", a=a, beta=beta)(dict(A, trace=TRACE))
    close(result.value, mix)
    share = np.where(TRACE == 1, a / 2, (1 - a) / 3)
    close(result.gradients["lp_w"], -share * beta * sig(-z))
    close(result.metrics["loss/trace"], each[TRACE == 1].mean())
    close(result.metrics["loss/empty"], each[TRACE == 0].mean())


def test_bvpo_refuses_a_kind_that_is_neither_and_a_share_outside_0_and_1():
    with pytest.raises(NumericsError, match="'trace' holds numbers outside"):
        objective("bvpo")(dict(A, trace=TRACE * 2))
    with pytest.raises(OptionError, match=r"a=1\.2 is not allowed"):
        objective("bvpo", a=1.2)


@given(st.floats(0.1, 5), st.floats(0.1, 5), st.floats(-0.9, 0.9))
def test_the_best_share_is_that_of_a_grid_search_and_beats_both_ends(first, second, correlation):
    cross = correlation * np.sqrt(first * second)

    def error(a):
        return a * a * first + (1 - a) ** 2 * second + 2 * a * (1 - a) * cross

    found = best_share(first, second, cross)
    grid = np.linspace(0, 1, 2001)
    assert error(found) <= error(grid).min() + 1e-12
    assert abs(found - grid[error(grid).argmin()]) <= 1e-3
    assert error(found) <= min(first, second) + 1e-12


def test_the_best_share_of_one_gradient_twice_is_refused():
    with pytest.raises(ValueError, match="the same"):
        best_share(2.0, 2.0, 2.0)
