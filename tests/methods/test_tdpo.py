"""tdpo against its card, from whole laws over a small vocabulary."""

import math

import numpy as np
import pytest

from polyalign import objective
from polyalign.errors import NumericsError, OptionError
from tests.methods.by_hand import close, neg_logsig, sig

B, T, V = 3, 4, 3
DRAW = np.random.default_rng(0)
MASK = {"w": np.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 1, 1, 0]]), "l": np.ones((B, T))}
LAWS = {}
for side in ("w", "l"):
    LAWS |= {
        f"logits_{side}": DRAW.normal(0, 1, (B, T, V)),
        f"ref_logits_{side}": DRAW.normal(0, 1, (B, T, V)),
        f"tokens_{side}": DRAW.integers(0, V, (B, T)),
        f"mask_{side}": MASK[side],
    }


def log_softmax(x):
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def side_by_hand(laws, side):
    """h [B], D [B], and their gradients by the logits [B, T, V]."""
    law, ref = log_softmax(laws[f"logits_{side}"]), log_softmax(laws[f"ref_logits_{side}"])
    mask = laws[f"mask_{side}"]
    taken = np.eye(V)[laws[f"tokens_{side}"]]
    h = (((law - ref) * taken).sum(-1) * mask).sum(-1)
    kl = ((np.exp(ref) * (ref - law)).sum(-1) * mask).sum(-1)
    slope_h = (taken - np.exp(law)) * mask[..., None]
    slope_kl = (np.exp(law) - np.exp(ref)) * mask[..., None]
    return h, kl, slope_h, slope_kl


@pytest.mark.parametrize("variant", ["tdpo1", "tdpo2"])
def test_tdpo_loss_and_gradient_by_every_logit_are_the_cards(variant):
    beta, alpha = 0.3, 0.7
    h_w, D_w, dh_w, dD_w = side_by_hand(LAWS, "w")
    h_l, D_l, dh_l, dD_l = side_by_hand(LAWS, "l")
    a = 1.0 if variant == "tdpo1" else alpha
    z = beta * (h_w - h_l) - a * beta * (D_l - D_w)
    g = (-sig(-z) * beta / B)[:, None, None]
    own = {"alpha": alpha} if variant == "tdpo2" else {}
    result = objective("tdpo", variant=variant, beta=beta, **own)(LAWS)
    close(result.per_unit, neg_logsig(z))
    close(result.gradients["logits_w"], g * (dh_w + (dD_w if variant == "tdpo1" else 0)))
    close(result.gradients["logits_l"], -g * (dh_l + a * dD_l))
    close(result.metrics["rewards/chosen"], (beta * (h_w + D_w)).mean())


def test_D_is_the_forward_kl_over_every_path_of_the_tree():
    # The chain rule: the sequential KL, averaged over the reference's paths, is the KL of the
    # two laws over whole sequences, counted one by one.
    tables = DRAW.normal(0, 1, (2, 1 + V + V * V, V))
    law, ref = log_softmax(tables[0]), log_softmax(tables[1])

    def node(prefix):
        place = 0
        for token in prefix:
            place = place * V + token + 1
        return place

    paths = [(i, j, k) for i in range(V) for j in range(V) for k in range(V)]
    nodes = np.array([[node(p[:t]) for t in range(3)] for p in paths])
    laws = {
        "logits_w": tables[0][nodes],
        "ref_logits_w": tables[1][nodes],
        "tokens_w": np.array(paths),
    }
    laws |= {k.replace("_w", "_l"): v for k, v in laws.items()}
    joint = [sum(x[n[t], p[t]] for t in range(3)) for x in (law, ref) for p, n in zip(paths, nodes)]
    lp, rf = np.array(joint[:27]), np.array(joint[27:])
    weight = np.exp(rf)
    with pytest.warns(UserWarning, match="identical"):
        metrics = objective("tdpo", beta=1.0)(laws, weight=weight).metrics
    # rewards/chosen is beta (h + D); h = lp - rf, so D is what is left of it.
    expected_D = (weight * (rf - lp)).sum()
    close(metrics["rewards/chosen"] - (weight * (lp - rf)).sum(), expected_D)
    reverse = (np.exp(lp) * (lp - rf)).sum()
    assert abs(expected_D - reverse) > 0.01  # the other direction would show


def test_tdpo_where_policy_is_reference_is_dpo():
    same = LAWS | {"ref_logits_w": LAWS["logits_w"], "ref_logits_l": LAWS["logits_l"]}
    dpo = objective("dpo", beta=0.1)(same)
    for variant in ("tdpo1", "tdpo2"):
        result = objective("tdpo", variant=variant)(same)
        close(result.per_unit, math.log(2))
        close(result.gradients["logits_w"], dpo.gradients["logits_w"])


def test_tdpo2_without_alpha_is_dpo():
    close(
        objective("tdpo", alpha=0, beta=0.3)(LAWS).per_unit,
        objective("dpo", beta=0.3)(LAWS).per_unit,
    )


def test_both_variants_agree_in_value_at_alpha_one_and_not_in_gradient():
    one = objective("tdpo", variant="tdpo1")(LAWS)
    two = objective("tdpo", variant="tdpo2", alpha=1.0)(LAWS)
    close(one.value, two.value)
    assert np.abs(one.gradients["logits_w"] - two.gradients["logits_w"]).max() > 1e-3
    close(one.gradients["logits_l"], two.gradients["logits_l"])


def test_summed_divergences_are_enough():
    a = {"lp_w": [-3.0], "lp_l": [-4.0], "rf_w": [-3.5], "rf_l": [-3.0], "D_w": [0.4], "D_l": [0.9]}
    z = 0.1 * (0.5 + 1.0) - 0.5 * 0.1 * (0.9 - 0.4)
    result = objective("tdpo")(a)
    close(result.value, neg_logsig(z))
    close(result.gradients["D_w"], 0)
    close(result.gradients["D_l"], 0.05 * sig(-z))


def test_token_log_probabilities_alone_are_refused():
    with pytest.raises(OptionError, match="needs the array .D_w.: KL.*whole law"):
        objective("tdpo")(lp_w=[-1.0], lp_l=[-2.0], rf_w=[-1.0], rf_l=[-2.0])


def test_a_reference_without_probability_for_a_token_is_refused():
    broken = dict(LAWS, ref_logits_w=LAWS["ref_logits_w"].copy())
    broken["ref_logits_w"][0, 0, 0] = -np.inf
    with pytest.raises(NumericsError, match=r"'ref_logits_w' is not finite at \[0, 0, 0\]"):
        objective("tdpo")(broken)


def test_a_single_choice_has_no_divergence():
    one = {f"logits_{s}": np.zeros((2, 3, 1)) for s in "wl"}
    one |= {f"ref_logits_{s}": np.ones((2, 3, 1)) for s in "wl"}
    one |= {f"tokens_{s}": np.zeros((2, 3)) for s in "wl"}
    with pytest.warns(UserWarning, match="identical"):
        close(objective("tdpo")(one).per_unit, math.log(2))
